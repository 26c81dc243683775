"""Products and quotients modulo a prime: sums and differences of discrete logarithms, and their Fourier analysis."""

import jax
import numpy as np
import pytest

from jaxgrok import measures
from jaxgrok.config import Config
from jaxgrok.measures import circuits, clock_pizza, fourier, subjects
from jaxgrok.measures.all_pairs import run_network, split_of
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_task, modular_task
from tests.test_interop import params_of

p, P = 7, 6
GROUP = [1, 3, 2, 6, 4, 5]  # the powers of 3, the least primitive root modulo 7
OPERATIONS = {"multiply": lambda i, j: (i + j) % P, "x/y": lambda i, j: (i - j) % P}


@pytest.mark.parametrize("prime", [5, 7, 11, 23, 97, 113])
def test_the_group_is_the_powers_of_the_least_primitive_root(prime):
    group = modular_task(Config(task="multiply", p=prime)).group
    assert sorted(group) == list(range(1, prime))
    root = group[1]
    assert [pow(int(root), i, prime) for i in range(prime - 1)] == group.tolist()
    for smaller in range(2, root):
        assert len({pow(smaller, i, prime) for i in range(prime - 1)}) < prime - 1


@pytest.mark.parametrize("task", OPERATIONS)
def test_an_answer_is_a_sum_of_logarithms(task):
    config = Config(task=task, p=p)
    found = modular_task(config)
    assert found.group.tolist() == GROUP
    i, j = np.indices((P, P))
    np.testing.assert_array_equal(found.group_labels(0).reshape(P, P), OPERATIONS[task](i, j))
    np.testing.assert_array_equal(fourier.wave_argument(found), OPERATIONS[task](i, j))
    for number, (x, y) in zip(found.group_pairs, zip(i.ravel(), j.ravel(), strict=True), strict=True):
        assert divmod(number, p) == (GROUP[x], GROUP[y])


@pytest.mark.parametrize("composite", [4, 6, 9])
def test_modulo_a_composite_there_is_no_such_group(composite):
    task = modular_task(Config(task="multiply", p=composite))
    assert task.group.tolist() == list(range(composite))
    assert not fourier.has_waves(task)


@pytest.mark.parametrize("task", OPERATIONS)
def test_a_split_counts_in_the_group_and_drops_the_pairs_with_0(task):
    config = Config(task=task, p=p)
    split = split_of(config, 0.5, 3)
    numbers, _ = make_task(config).split_indices(0.5, 3)
    expected = [
        GROUP.index(x) * P + GROUP.index(y) if x and y else P * P for x, y in (divmod(n, p) for n in numbers.tolist())
    ]
    np.testing.assert_array_equal(split.train, expected)
    assert P * P in expected


@pytest.mark.parametrize("arch", ["transformer", "mlp"])
@pytest.mark.parametrize("task", OPERATIONS)
def test_every_measure_is_that_of_addition_on_the_permuted_logits(task, arch):
    sizes = {"d_mlp": 9} if arch == "mlp" else {"d_model": 8, "n_heads": 2}
    config = Config(task=task, p=p, arch=arch, dtype="float64", **sizes)
    params = params_of(config)
    logits, _ = make_model(config, make_task(config)).apply(
        {"params": params}, make_task(config).pairs(np.arange(p * p), 0).tokens
    )
    logits = np.asarray(logits).reshape(p, p, -1)
    permuted = logits[np.ix_(GROUP, GROUP, [*GROUP, 0, *range(p, logits.shape[-1])])]
    net = jax.jit(run_network, static_argnums=0)(config, params)
    np.testing.assert_allclose(net.all_logits, permuted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(net.logits, permuted[..., :P], rtol=1e-9, atol=1e-9)
    # W_L: what a neuron adds to the classes of the group.
    stream = net.logits - net.neurons @ np.asarray(net.W_L).T
    rest = stream - (0 if net.stream is None else net.stream.direct) - net.bias[None, None]
    np.testing.assert_allclose(rest, 0, atol=1e-9)
    table = params["W_in"] if arch == "mlp" else params["embed"]["W_E"]
    np.testing.assert_array_equal(net.W_E, table[GROUP])
    # The measures of the logits alone are those of a sum modulo P with this split.
    split = split_of(config, 0.5, 3)
    inside = split.train[split.train < P * P]
    additive = Config(task={"multiply": "add", "x/y": "subtract"}[task], p=P, dtype="float64")
    ours = jax.tree.map(np.asarray, circuits.of_logits(config, logits, split))
    theirs = jax.tree.map(
        np.asarray, circuits.of_logits(additive, permuted[..., : P + 1], measures.Split(split.labels, inside))
    )
    for name in theirs:
        if name != "loss_all_classes":
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), ours[name], theirs[name])
    whole = jax.tree.map(np.asarray, measures.all(config, params, split, theirs["key_frequencies"]["keys"]))
    for name in ("loss", "accuracies", "restricted_loss", "excluded_loss_per_key", "alpha", "distance_irrelevance"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), whole[name], theirs[name])
    np.testing.assert_allclose(whole["W_E_frequency_norms"], fourier.frequency_norms(table[GROUP]), rtol=1e-12)
    assert float(whole["loss_all_classes"]["all"]) >= float(whole["loss"]["all"])
    plain = measures.to_json(config, whole)
    assert plain["group"] == GROUP
    assert plain["waves"] == {"multiply": "log a + log b", "x/y": "log a - log b"}[task]


def test_a_network_that_multiplies_by_logarithms_has_its_keys():
    prime, keys = 23, [3, 10]
    config = Config(task="multiply", p=prime, arch="mlp", d_mlp=8, act="square", dtype="float64")
    group = modular_task(config).group
    angles = 2 * np.pi * np.outer(np.arange(prime - 1), keys) / (prime - 1)
    phases = np.arange(4) * np.pi / 4
    params = {
        "W_in": np.zeros((prime, 8)),
        "b_in": np.zeros(8),
        "W_out": np.zeros((8, prime)),
        "b_out": np.zeros(prime),
    }
    params["W_in"][group] = np.concatenate([np.cos(angles + t) for t in phases], axis=1)
    params["W_out"][:, group] = 20 * np.concatenate([np.cos(angles.T + 2 * t) for t in phases])
    split = split_of(config, 0.3, 0)
    m = measures.all(config, params, split)
    assert fourier.frequencies_of(np.asarray(m["key_frequencies"]["keys"])) == keys
    # (cos u + cos v)^2 has waves of u and of v alone too, a third of the energy.
    assert float(m["logit_fve"]) == pytest.approx(2 / 3)
    assert float(m["accuracy"]) > 0.95
    assert float(m["restricted_loss"]["all"]) < 0.1 * float(m["excluded_loss"]["train"])
    subject = subjects.Subject(config, params, split, params, 0, {})
    lines = subjects.remarks(subject, jax.tree.map(np.asarray, m))
    assert any("the discrete logarithm to the base 5, modulo 22" in line for line in lines)


def test_distances_of_products_are_of_logarithms():
    config = Config(task="multiply", p=p)
    i, j = np.indices((P, P))
    labels = modular_task(config).group_labels(0).reshape(P, P)
    right = np.random.default_rng(0).normal(size=P)[(i - j) % P]
    logits = np.random.default_rng(1).normal(size=(P, P, P))
    np.put_along_axis(logits, labels[..., None], right[..., None], axis=2)
    assert float(clock_pizza.distance_irrelevance(config, logits, labels)) == pytest.approx(0, abs=1e-12)
