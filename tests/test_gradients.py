"""Published tricks on gradients and weights, against their equations in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrok
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.training.gradients import grokfast, grokfast_of_window, muon, orthograd, schedule_free, within_norm
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import make_program
from jaxgrok.training.sweep import sweep

SMALL = {"p": 5, "d_model": 8, "n_heads": 2, "dtype": "float64"}


def tree(rng):
    return {"a": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}


def test_grokfast_adds_the_moving_average_that_starts_at_the_first_gradient(rng):
    alpha, factor = 0.9, 2.5
    transform, weights = grokfast(alpha, factor), tree(rng)
    state, average = transform.init(weights), None
    for _ in range(4):
        g = tree(rng)
        average = g if average is None else jax.tree.map(lambda m, g: alpha * m + (1 - alpha) * g, average, g)
        found, state = transform.update(g, state, weights)
        expected = jax.tree.map(lambda g, m: g + factor * m, g, average)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found, expected)


def test_grokfast_of_a_window_adds_the_mean_of_its_gradients_once_it_is_full(rng):
    window, factor = 3, 2.5
    transform, weights = grokfast_of_window(window, factor), tree(rng)
    state, seen = transform.init(weights), []
    for step in range(1, 9):
        seen.append(g := tree(rng))
        found, state = transform.update(g, state, weights)
        expected = g
        if step >= window:
            mean = jax.tree.map(lambda *of: sum(of) / window, *seen[-window:])
            expected = jax.tree.map(lambda g, m: g + factor * m, g, mean)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found, expected)


@pytest.mark.parametrize("warmup", [3, 0])
def test_schedule_free_is_its_equations(warmup):
    """Defazio et al. 2024: gradients at y = (1 - b) z + b x, steps of z without momentum, and x the average of z,
    weighted by the square of the largest learning rate so far."""
    fields = {**SMALL, "optimizer": "schedule_free", "warmup_steps": warmup}
    config = Config(**fields)
    program, run = make_program(config, 1), Run(config, frac=0.5, weight_decay=0.3, lr=0.02)
    plain = make_program(Config(**SMALL, optimizer="sgd", b1=0.0, regulariser="none", warmup_steps=0), 1)
    train, _ = program.task.split(0.5, 0)
    state = program.init(run.hyper())
    x = z = state.params
    v, weights, most = jax.tree.map(np.zeros_like, x), 0.0, 0.0
    for step in range(6):
        y = jax.tree.map(lambda z, x: 0.1 * z + 0.9 * x, z, x)
        one = Run(plain.config, lr=1.0).hyper()
        moved, *_ = plain.advance(plain.start(y, one), train, one, 1)
        g = jax.tree.map(lambda y, after: np.asarray(y - after), y, moved.params)
        v = jax.tree.map(lambda v, g: 0.98 * v + 0.02 * g**2, v, g)
        lr = 0.02 * min(step / warmup, 1) if warmup else 0.02
        z = jax.tree.map(
            lambda z, y, g, v, lr=lr, step=step: (
                z - lr * (g / (np.sqrt(v / (1 - 0.98 ** (step + 1))) + 1e-8) + 0.3 * y)
            ),
            *(z, y, g, v),
        )
        most = max(most, lr)
        weights += most**2
        share = most**2 / weights if weights else 0
        x = jax.tree.map(lambda x, z, share=share: (1 - share) * x + share * z, x, z)
        state, *_ = program.advance(state, train, run.hyper(), 1)
        jax.tree.map(lambda ours, x: np.testing.assert_allclose(ours, x, rtol=1e-8, atol=1e-10), state.params, x)


@pytest.mark.parametrize("b1", [0.9, 0.1, 0.0])
def test_schedule_free_keeps_the_digits_of_its_average(b1, rng):
    """Optax's loses them: 0.26 of 1 at b1 = 0.001, 5e-4 at 0.9."""
    steps = rng.normal(size=(2000, 50)) * 1e-3
    averages = []
    for dtype in (np.float32, np.float64):
        transform = schedule_free(optax.identity(), lambda count, dtype=dtype: jnp.ones((), dtype), b1)

        def body(carry, step, transform=transform):
            x, state = carry
            moved, state = transform.update(step, state, x)
            return (x + moved, state), None

        x = jnp.ones(50, dtype)
        (x, _), _ = jax.lax.scan(body, (x, transform.init(x)), steps.astype(dtype))
        averages.append(np.asarray(x))
    np.testing.assert_allclose(*averages, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "float64", "stablemax"])
def test_smoothed_labels_are_their_equation(mode, rng):
    logits, targets, s = 3 * rng.normal(size=(20, 7)), rng.integers(7, size=20), 0.2
    share = np.full((20, 7), s / 7)
    share[np.arange(20), targets] += 1 - s
    scores = (
        np.where(logits >= 0, logits + 1, 1 / (1 - np.minimum(logits, 0))) if mode == "stablemax" else np.exp(logits)
    )
    expected = -(share * np.log(scores / scores.sum(axis=1, keepdims=True))).sum(axis=1)
    np.testing.assert_allclose(cross_entropy(logits, targets, mode, s), expected, rtol=1e-12)
    np.testing.assert_array_equal(cross_entropy(logits, targets, mode, 0), cross_entropy(logits, targets, mode))


def test_orthograd_is_across_the_weights_and_as_long_as_the_gradient(rng):
    weights, g = tree(rng), tree(rng)
    found, _ = orthograd().update(g, optax.EmptyState(), weights)
    for w, before, after in zip(*map(jax.tree.leaves, (weights, g, found)), strict=True):
        assert abs((w * after).sum()) < 1e-12
        assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-12)
        rest = before - (w * before).sum() / (w * w).sum() * w
        np.testing.assert_allclose(after / np.linalg.norm(after), rest / np.linalg.norm(rest), rtol=1e-9)
    zero = jax.tree.map(np.zeros_like, weights)
    same, _ = orthograd().update(g, optax.EmptyState(), zero)  # biases start at zero
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), same, g)
    nothing, _ = orthograd().update(zero, optax.EmptyState(), weights)
    assert all((x == 0).all() for x in jax.tree.leaves(nothing))


def newton_schulz(g):
    """Five steps of Muon's quintic iteration, on a matrix of norm 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.linalg.norm(g) + 1e-8)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def test_muon_makes_the_momentum_of_matrices_orthogonal_and_leaves_the_rest_to_adam(rng):
    shapes = {"attn": {"W_Q": (2, 8, 4)}, "mlp": {"W_in": (8, 32), "b_in": (32,)}}
    weights = {"blocks_0": shapes, "embed": {"W_E": (6, 8)}}

    def drawn():
        return jax.tree.map(lambda shape: rng.normal(size=shape), weights, is_leaf=lambda x: isinstance(x, tuple))

    transform, adam = muon(optax.scale_by_adam()), optax.scale_by_adam()
    params = drawn()
    state, adam_state, m = transform.init(params), adam.init(params), jax.tree.map(np.zeros_like, params)
    for step in range(1, 4):
        g = drawn()
        with jax.numpy_dtype_promotion("standard"):
            found, state = transform.update(g, state, params)
            others, adam_state = adam.update(g, adam_state, params)
        m = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g, m, g)
        # Nesterov: with the bias corrections of the next step and of this one.
        ahead = jax.tree.map(
            lambda m, g, step=step: 0.95 * m / (1 - 0.95 ** (step + 1)) + 0.05 * g / (1 - 0.95**step), m, g
        )
        W_in, W_Q = ahead["blocks_0"]["mlp"]["W_in"], ahead["blocks_0"]["attn"]["W_Q"]
        whole = 0.2 * 32**0.5 * newton_schulz(W_in)
        by_head = 0.2 * 8**0.5 * np.stack([newton_schulz(head) for head in W_Q])
        np.testing.assert_allclose(found["blocks_0"]["mlp"]["W_in"], whole, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found["blocks_0"]["attn"]["W_Q"], by_head, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(found["embed"]["W_E"], others["embed"]["W_E"])
        np.testing.assert_array_equal(found["blocks_0"]["mlp"]["b_in"], others["blocks_0"]["mlp"]["b_in"])


def test_a_norm_is_bounded_and_left_alone_below(rng):
    weights = tree(rng)
    norm = np.sqrt(sum((w**2).sum() for w in jax.tree.leaves(weights)))
    half = within_norm(weights, norm / 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y / 2, rtol=1e-12), half, weights)
    jax.tree.map(np.testing.assert_array_equal, within_norm(weights, 2 * norm), weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stablemax_is_its_equation_and_keeps_small_losses(dtype, rng):
    logits = (10 * rng.normal(size=(50, 7))).astype(dtype)
    targets = rng.integers(7, size=50)
    z = logits.astype(float)
    s = np.where(z >= 0, z + 1, 1 / (1 - np.minimum(z, 0)))
    expected = -np.log(s[np.arange(50), targets] / s.sum(axis=1))
    found = cross_entropy(logits, targets, "stablemax")
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-11)
    slopes = jax.grad(lambda x: cross_entropy(x, targets, "stablemax").sum())(logits)
    assert np.isfinite(slopes).all()
    at_zero = jax.grad(lambda z: cross_entropy(z, np.int32(0), "stablemax"))(np.array([0, 1, 2], dtype))
    near_zero = jax.grad(lambda z: cross_entropy(z, np.int32(0), "stablemax"))(np.array([1e-6, 1, 2], dtype))
    np.testing.assert_allclose(at_zero, near_zero, rtol=1e-4)
    sure = np.array([[3e4, 0, -3e4]], dtype)
    assert 0 < float(cross_entropy(sure, np.array([0]), "stablemax")[0]) < 1e-4


FIELDS = (
    *({"grokfast": 2.0}, {"orthograd": "yes"}, {"max_norm": 3.0}, {"loss": "stablemax"}, {"optimizer": "lion"}),
    *({"optimizer": "muon"}, {"optimizer": "schedule_free"}, {"label_smoothing": 0.1}),
    {"grokfast": 2.0, "grokfast_window": 3},
)


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_trick_changes_training_and_resumes(fields, tmp_path):
    config, plain = Config(**SMALL, **fields), Config(**SMALL)
    states = []
    for c in (config, plain):
        program, run = make_program(c, 6), Run(c, frac=0.5)
        train, _ = program.task.split(0.5, 0)
        state, losses, *_ = program.advance(program.init(run.hyper()), train, run.hyper(), 6)
        assert np.isfinite(losses).all()
        states.append(state)
    differ = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), *(state.params for state in states))
    assert max(jax.tree.leaves(differ)) > 1e-9
    if "max_norm" in fields:
        assert sum(float((w**2).sum()) for w in jax.tree.leaves(states[0].params)) <= 9 * (1 + 1e-9)
    settings = {**SMALL, **fields, "frac": 0.5, "eval_every": 5, "checkpoint_every": 10, "seeds": 2}
    sweep(make_sweep({**settings, "epochs": 20}), tmp_path / "a")
    for name in ("a", "b"):
        sweep(make_sweep({**settings, "epochs": 40}), tmp_path / name)
    resumed, whole = (jaxgrok.load(tmp_path / name).params(run=1) for name in ("a", "b"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"grokfast": -1.0}, "grokfast"),
        ({"grokfast_alpha": 1.0}, "grokfast_alpha"),
        ({"grokfast_alpha": 0.9}, "grokfast_alpha"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"grokfast_window": 3}, "grokfast_window"),
        ({"grokfast_window": 0, "grokfast": 2.0}, "grokfast_window"),
        ({"grokfast_window": 3, "grokfast": 2.0, "grokfast_alpha": 0.9}, "grokfast_alpha"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"optimizer": "schedule_free", "max_norm": 3.0}, "max_norm"),
        ({"optimizer": "muon", "arch": "mlp"}, "optimizer"),
        ({"orthograd": "yes", "regulariser": "l2"}, "regulariser"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, name):
    with pytest.raises(BadInput, match=f"^{name}: got"):
        Config(**fields)


def test_evaluations_of_stablemax_are_cross_entropies_and_a_bound_holds_from_the_start():
    config, plain = Config(**SMALL, loss="stablemax", max_norm=1.5), Config(**SMALL)
    programs, run = [make_program(c, 3) for c in (config, plain)], Run(config, frac=0.5)
    state = programs[0].init(run.hyper())
    assert sum(float((w**2).sum()) for w in jax.tree.leaves(state.params)) == pytest.approx(2.25)
    _, test = programs[0].task.split(0.5, 0)
    ours, theirs = (program.evaluate(state.params, test) for program in programs)
    np.testing.assert_array_equal(ours.loss, theirs.loss)


def test_a_trick_that_is_off_is_a_value_of_its_axis():
    for value in ("none,30", ["none", 30], "30,none"):
        bounds = [config.max_norm for config in make_sweep({"max_norm": value}).configs]
        assert sorted(bounds, key=str) == [30.0, None]
    assert [config.max_norm for config in make_sweep({"max_norm": "none"}).configs] == [None]
    windows = make_sweep({"grokfast": "2", "grokfast_window": "5,none,7"}).configs
    assert [config.grokfast_window for config in windows] == [5, None, 7]
    for value in ("none,none", "none,x", "none,30,30"):
        with pytest.raises(BadInput, match="max_norm"):
            make_sweep({"max_norm": value})


def test_tricks_are_axes_of_a_sweep():
    made = make_sweep({"grokfast": "0,2", "max_norm": "20.5", "orthograd": "no,yes", "seeds": 3})
    assert len(list(made.runs())) == 12
    assert {config.max_norm for config in made.configs} == {20.5}
