"""Gradient symmetricity and distance irrelevance, against brute force and closed forms."""

import jax
import numpy as np
import pytest

from jaxgrok.config import Config
from jaxgrok.measures import clock_pizza
from jaxgrok.measures.all_pairs import run_network
from jaxgrok.tasks import modular_task
from tests.reference import plain
from tests.test_interop import params_of

p = 7


@pytest.mark.parametrize("sequence", ["xy=", "xy"])
@pytest.mark.parametrize(
    "fields", [{}, {"n_layers": 2, "attention": "full", "attn_coeff": 0.4}], ids=["clock", "mixed"]
)
def test_symmetricity_is_the_mean_cosine_of_gradients_by_differences(sequence, fields):
    config = Config(p=p, d_model=6, n_heads=2, sequence=sequence, act="gelu", dtype="float64", **fields)
    params = jax.tree.map(lambda x: x / 3, params_of(config))
    triples = np.random.default_rng(3).integers(p, size=(3, 5))
    plain_fields = {name: x for name, x in fields.items() if name != "n_layers"}

    def logits(params, tokens):
        return plain.transformer(params, tokens, "gelu", **plain_fields)[0][0, -1]

    cosines = []
    for a, b, c in triples.T:
        # Embeddings of their own for a and b, so that a = b is no exception.
        W_E = np.concatenate([params["embed"]["W_E"][[a, b]], params["embed"]["W_E"][p:]])
        tokens = np.arange(len(sequence))[None]
        gradients = np.zeros((2, 6))
        for at in np.ndindex(2, 6):
            moved = []
            for step in (1e-6, -1e-6):
                rows = W_E.copy()
                rows[at] += step
                moved.append(logits({**params, "embed": {"W_E": rows}}, tokens)[c])
            gradients[at] = (moved[0] - moved[1]) / 2e-6
        of_a, of_b = gradients
        cosines.append(of_a @ of_b / np.linalg.norm(of_a) / np.linalg.norm(of_b))
    found = clock_pizza.gradient_symmetricity(config, params, triples)
    np.testing.assert_allclose(found, np.mean(cosines), rtol=1e-6)


def test_a_network_that_reads_a_and_b_alike_is_symmetric():
    config = Config(p=p, d_model=6, n_heads=2, sequence="xy", attention="full", attn_coeff=0.0, dtype="float64")
    params = params_of(config)
    # Constant attention, and no way past it: without the stream the MLP sees a + b alone.
    assert float(clock_pizza.gradient_symmetricity(config, params)) < 0.99
    attn = params["blocks_0"]["attn"]
    attn["W_O"] = 1e6 * attn["W_O"]
    assert float(clock_pizza.gradient_symmetricity(config, params)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("task", ["add", "subtract"])
def test_distance_irrelevance_of_logits_that_depend_on_one_thing(task):
    config = Config(task=task, p=p)
    labels = modular_task(config).labels(0).reshape(p, p)
    a, b = np.indices((p, p))
    distance = (a - b if task == "add" else a + b) % p
    rng = np.random.default_rng(0)

    def measured(right):
        logits = rng.normal(size=(p, p, p))
        np.put_along_axis(logits, labels[..., None], right[..., None], axis=2)
        return float(clock_pizza.distance_irrelevance(config, logits, labels))

    assert measured(rng.normal(size=p)[distance]) == pytest.approx(0, abs=1e-12)
    of_answer = rng.normal(size=p)[labels]
    assert measured(of_answer) == pytest.approx(1, abs=1e-12)
    both = measured(rng.normal(size=(p, p)))
    assert 0 < both < 1.2
    # The columns of the authors' matrix are the distances, its rows the answers.
    matrix = np.zeros((p, p))
    right = rng.normal(size=(p, p))
    matrix[labels, distance] = right
    assert measured(right) == pytest.approx(matrix.std(axis=0).mean() / matrix.std(), rel=1e-12)


def test_what_does_not_exist_is_none():
    mlp = Config(arch="mlp", p=p, d_mlp=5)
    assert clock_pizza.gradient_symmetricity(mlp, params_of(mlp)) is None
    config = Config(task="x2xyy2", p=p, d_model=6, n_heads=2)
    net = jax.jit(run_network, static_argnums=0)(config, params_of(config))
    labels = modular_task(config).labels(0).reshape(p, p)
    assert clock_pizza.distance_irrelevance(config, net.logits, labels) is None
