"""All pairs in blocks of columns: every pair is there, every column is counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.config import Config
from jaxgrok.measures import fourier
from jaxgrok.measures.all_pairs import run_network
from jaxgrok.measures.columns import Parts, columns_of, in_columns
from jaxgrok.nets.model import ACTIVATIONS, affine, make_model, unembedding
from jaxgrok.tasks import make_task


@pytest.mark.parametrize("pairs_at_once", [0, 1, 7, 30, 48, 49, 1000])
def test_every_pair_is_there_and_every_column_is_counted_once(pairs_at_once, rng):
    x = jnp.asarray(rng.normal(size=(7, 7, 2)))

    def of_block(columns, is_new):
        here = columns_of(x, columns)
        assert here.shape[1] <= max(1, -(-pairs_at_once // 7))
        assert here.shape[1] <= 7
        of_new = jnp.where(is_new[None, :, None], here, 0).sum(axis=1)
        return Parts(2 * here, here.sum(axis=0), {"n": is_new.sum(), "sum": of_new})

    found = in_columns(of_block, 7, pairs_at_once)
    np.testing.assert_array_equal(found.pairs, 2 * x)
    np.testing.assert_allclose(found.columns, x.sum(axis=0), rtol=1e-13)
    assert int(found.sums["n"]) == 7
    np.testing.assert_allclose(found.sums["sum"], x.sum(axis=1), rtol=1e-12)


CASES = [
    {},
    {"p": 58, "tied": "yes"},
    {"residual_factor": 2.0},
    {"n_layers": 2, "act": "gelu"},
    {"task": "subtract", "sequence": "xy"},
    {"arch": "mlp"},
    {"norm": "rmsnorm"},
]


@pytest.mark.parametrize("fields", CASES)
def test_a_network_in_several_blocks_is_the_whole_network(fields, rng):
    p, fields = fields.get("p", 59), {"d_model": 8, "n_heads": 2, **fields}
    if fields.get("arch") == "mlp":
        fields = {"arch": "mlp", "d_mlp": 24}
    config = Config(**{"p": p, "dtype": "float64", **fields})
    model, tokens = make_model(config, make_task(config)), make_task(config).pairs(np.arange(p * p), 0).tokens
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    logits, activations = model.apply({"params": params}, tokens)
    net = jax.jit(lambda params: run_network(config, params))(params)
    np.testing.assert_allclose(net.all_logits, logits.reshape(p, p, -1), rtol=1e-9, atol=1e-9)
    last = "" if config.arch == "mlp" else f"blocks.{config.n_layers - 1}."
    neurons = np.asarray(activations[last + "mlp.hook_post"]).reshape(p, p, -1)
    np.testing.assert_allclose(net.neurons, neurons, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(net.least, neurons.min(axis=(0, 1)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(net.greatest, neurons.max(axis=(0, 1)), rtol=1e-9, atol=1e-9)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-8),
        net.of_neurons,
        fourier.neuron_blocks(neurons),
    )
    if net.stream is None:
        return
    before = np.asarray(activations[last + "hook_resid_pre"]).reshape(p * p, -1)
    mid = np.asarray(activations[last + "hook_resid_mid"]).reshape(p * p, -1)
    np.testing.assert_allclose(net.stream.mid.reshape(p * p, -1), mid, rtol=1e-9, atol=1e-9)
    mlp, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"], unembedding(params)

    def logits_from(stream):
        neurons = ACTIVATIONS[config.act](affine(stream, mlp["W_in"], mlp["b_in"]))
        return ((stream + affine(neurons, mlp["W_out"], mlp["b_out"])) @ W_U)[:, :p].reshape(p, p, p)

    np.testing.assert_allclose(net.stream.direct, (mid @ W_U)[:, :p].reshape(p, p, p), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(net.stream.logits_of_start, logits_from(before), rtol=1e-8, atol=1e-8)
    if config.norm == "none" and config.residual_factor == 1:
        np.testing.assert_allclose(net.stream.logits_of_attention, logits_from(mid - before), rtol=1e-8, atol=1e-8)
