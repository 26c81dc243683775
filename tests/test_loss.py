"""The loss against 60-digit arithmetic, its gradient, and the float32 floor of its naive form."""

from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.nets.loss import cross_entropy, is_correct
from tests.reference import plain

getcontext().prec = 60


def decimal_loss(logits, target):
    """-log softmax in 60 digits, more than any margin here needs."""
    values = [Decimal(float(x)) for x in logits]
    return float((sum(x.exp() for x in values)).ln() - values[target])


@pytest.mark.parametrize("mode", ["exact", "float64"])
def test_float64_against_numpy(mode, rng):
    logits, targets = rng.normal(size=(50, 2, 7)) * 5, rng.integers(7, size=(50, 2))
    # atol: the oracle's own difference of two numbers of order 1
    np.testing.assert_allclose(
        cross_entropy(logits, targets, mode), plain.cross_entropy(logits, targets), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("margin", [-50.0, -1.0, 0.0, 3.0, 16.0, 17.5, 30.0, 60.0, 85.0])
def test_exact_in_float32_at_any_margin(margin, rng):
    logits = rng.normal(size=113).astype(np.float32)
    logits[5] = logits.max() + np.float32(margin)
    exact = float(cross_entropy(jnp.asarray(logits), jnp.asarray(5), "exact"))
    # a float32 exponential of an argument near 85 is good to 85 * 6e-8
    assert exact == pytest.approx(decimal_loss(logits, 5), rel=1e-5)


def test_the_exact_gradient_survives_where_log_softmax_has_rounded_it_to_zero():
    logits = np.zeros(4, np.float32)
    logits[0] = 25
    expected = 3 / (np.exp(25.0) + 3)
    exact = jax.grad(lambda x: cross_entropy(x, jnp.asarray(0), "exact"))(jnp.asarray(logits))
    np.testing.assert_allclose(exact, [-expected, *[expected / 3] * 3], rtol=1e-5)
    naive = jax.grad(lambda x: cross_entropy(x, jnp.asarray(0), "float32"))(jnp.asarray(logits))
    assert naive[0] == 0


def test_naive_float32_has_the_floor_of_the_post():
    def loss(margin, mode):
        return float(cross_entropy(jnp.array([margin, 0.0], jnp.float32), jnp.asarray(0), mode))

    def distance_from_grid(mode):
        # 1 + exp(-margin) in float32 is 1 plus a multiple of 2^-23 = 1.19e-7, and the loss its logarithm
        steps = np.expm1([loss(margin, mode) for margin in np.linspace(10, 16, 40)]) * 2**23
        return np.abs(steps - np.round(steps)).max()

    assert distance_from_grid("float32") < 1e-3 < 0.1 < distance_from_grid("exact")
    assert loss(17.0, "float32") == 0 < loss(17.0, "exact")
    assert loss(17.0, "float64") == pytest.approx(np.exp(-17.0), rel=1e-6)


def test_dtypes():
    logits, target = jnp.zeros((3, 4), jnp.float32), jnp.zeros(3, jnp.int32)
    assert cross_entropy(logits, target, "exact").dtype == jnp.float32
    assert cross_entropy(logits, target, "float64").dtype == jnp.float64
    assert cross_entropy(logits.astype(jnp.float64), target, "float32").dtype == jnp.float32


def test_correct_is_argmax_and_a_tie_is_wrong(rng):
    logits, targets = rng.normal(size=(200, 5)), rng.integers(5, size=200)
    np.testing.assert_array_equal(is_correct(logits, targets), logits.argmax(axis=-1) == targets)
    assert not is_correct(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32)).any()
