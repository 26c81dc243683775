"""Networks with LayerNorm or RMSNorm: their forward pass, files, costs and measures."""

import csv
import dataclasses

import jax
import numpy as np
import pytest

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.measures import circuits
from jaxgrok.measures.checkpoints import analyze
from jaxgrok.nets import interop
from jaxgrok.nets.model import make_model
from jaxgrok.report.data import computes_in_page
from jaxgrok.tables.circuits import write_circuit_tables
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import make_program, train
from jaxgrok.training.sweep import sweep
from tests.reference import plain

TIGHT = {"rtol": 1e-10, "atol": 1e-11}
NORMS = ("layernorm", "rmsnorm")
SMALL = {"p": 7, "d_model": 12, "n_heads": 3, "dtype": "float64"}


def network(rng, **fields):
    config = Config(**{**SMALL, **fields})
    task = make_task(config)
    model, tokens = make_model(config, task), task.pairs(np.arange(config.p**2), 0).tokens
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return config, model, jax.tree.map(lambda x: rng.normal(size=x.shape), shapes), tokens


def logits_of(model, params, tokens):
    return model.apply({"params": params}, tokens)[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "fields", [{}, {"n_layers": 2}, {"arch": "attn_only", "n_layers": 2}, {"sequence": "xy", "attention": "full"}]
)
def test_logits_and_gradients_are_those_of_the_plain_forward(norm, fields, rng):
    config, model, params, tokens = network(rng, norm=norm, **fields)
    options = {"attention": config.attention}
    expected = plain.transformer(params, tokens, **options)[0][:, -1:]
    slopes = rng.normal(size=expected.shape)
    np.testing.assert_allclose(logits_of(model, params, tokens), expected, **TIGHT)
    gradient = jax.jit(jax.grad(lambda params: (logits_of(model, params, tokens) * slopes).sum()))(params)
    towards = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    ends = [jax.tree.map(lambda x, d, sign=sign: x + sign * 1e-6 * d, params, towards) for sign in (1, -1)]
    above, below = ((plain.transformer(end, tokens, **options)[0][:, -1:] * slopes).sum() for end in ends)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, towards)))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sequence", ["xy=", "xy"])
def test_few_examples_without_tables_are_the_same(norm, sequence, rng):
    """With fewer examples than tokens every embedding is normalised and projected by itself."""
    _, model, params, tokens = network(rng, norm=norm, sequence=sequence)
    assert not model.prepare(params, 5).first
    assert set(model.prepare(params, 49).first) == ({"v", "scores"} if sequence == "xy=" else {"q", "k", "v"})
    np.testing.assert_allclose(
        logits_of(model, params, tokens[20:25]), logits_of(model, params, tokens)[20:25], **TIGHT
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_torchs(norm, rng):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    x, w, b = rng.normal(size=(4, 3, 12)), rng.normal(size=12), rng.normal(size=12)
    as_torch = [torch.from_numpy(array) for array in (x, w, b)]
    if norm == "layernorm":
        expected = torch.nn.functional.layer_norm(as_torch[0], (12,), *as_torch[1:], eps=1e-5)
    else:
        expected = torch.nn.functional.rms_norm(as_torch[0], (12,), as_torch[1], eps=1e-5)
    weights = {"w": w} | ({"b": b} if norm == "layernorm" else {})
    np.testing.assert_allclose(plain.norm(x, weights), expected.numpy(), **TIGHT)


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_starts_as_one_and_trains_in_blocks(norm):
    config = Config(**{**SMALL, "norm": norm})
    state, curves = train(config, epochs=30, lr=1e-2, frac=0.6, eval_every=5)
    start = jax.jit(make_program(config).init)(Run(config).hyper()).params
    for place in (start["blocks_0"]["ln1"], start["blocks_0"]["ln2"], start["ln_final"]):
        assert (np.asarray(place["w"]) == 1).all()
        assert set(place) == ({"w", "b"} if norm == "layernorm" else {"w"})
    assert curves.train_loss[-1] < curves.train_loss[0] / 2
    moved = np.abs(np.asarray(state.params["ln_final"]["w"]) - 1).max()
    assert moved > 1e-3
    task, run = make_task(config), Run(config, frac=0.6)
    data, _ = task.split(0.6, 0)
    whole, blocked = (
        jax.jit(make_program(config, 5, block).advance)(make_program(config).init(run.hyper()), data, run.hyper(), 5)
        for block in (None, 7)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TIGHT), whole, blocked)


def test_the_factor_of_a_norm_may_be_folded_into_the_weights_that_follow(rng):
    """What the module on measures says of folding."""
    _, model, params, tokens = network(rng, norm="rmsnorm")
    before = logits_of(model, params, tokens)
    w = params["ln_final"]["w"]
    params["unembed"]["W_U"] = w[:, None] * params["unembed"]["W_U"]
    params["ln_final"]["w"] = np.ones_like(w)
    np.testing.assert_allclose(logits_of(model, params, tokens), before, **TIGHT)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", ["transformer", "attn_only"])
def test_files_with_norms_come_back(norm, arch, rng, tmp_path):
    config, _, params, _ = network(rng, norm=norm, arch=arch, n_layers=2)
    path = tmp_path / "weights.safetensors"
    interop.save(path, config, params, names="transformer_lens")
    found = interop.load(path)
    assert dataclasses.replace(found.config, d_mlp=None) == config
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    with pytest.raises(BadInput, match="names: got 'authors'; accepted: transformer_lens"):
        interop.save(path, config, params)
    state = interop.to_state(config, params, "transformer_lens")
    del state["ln_final.w"]
    with pytest.raises(BadInput, match=r"weights: got 'no ln_final.w'"):
        interop.from_state(state)


def test_settings_in_a_file_must_name_the_norm_of_its_weights(rng, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    config, _, params, _ = network(rng, norm="layernorm")
    state = interop.to_state(config, params, "transformer_lens")
    path = tmp_path / "lens.pth"
    content = {name: torch.from_numpy(x.copy()) for name, x in state.items()}
    torch.save({"model": content, "config": {"normalization_type": "LN", "eps": 1e-2}}, path)
    with pytest.raises(BadInput, match=r"eps in the file: got 0\.01; accepted: 1e-05"):
        interop.load(path)
    for norm, fits in (("LN", True), ("RMS", False), ("LNPre", False), (None, False)):
        torch.save({"model": content, "config": {"normalization_type": norm, "eps": 1e-5}}, path)
        if fits:
            assert interop.load(path).config.norm == "layernorm"
        else:
            with pytest.raises(BadInput, match="normalization_type in the file"):
                interop.load(path)


@pytest.mark.parametrize("norm", NORMS)
def test_measures_are_those_of_the_logits_and_parts_are_unknown(norm, rng):
    config, model, params, tokens = network(rng, norm=norm)
    split = circuits.split_of(config, 0.5, 0)
    found = jax.tree.map(np.asarray, circuits.all(config, params, split, None, 0, 2))
    logits = np.asarray(logits_of(model, params, tokens)).reshape(7, 7, -1)
    of_logits = jax.tree.map(np.asarray, circuits.of_logits(config, logits, split))
    np.testing.assert_allclose(found["loss"]["test"], of_logits["loss"]["test"], rtol=1e-10)
    np.testing.assert_allclose(found["alpha"], of_logits["alpha"], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found["distance_irrelevance"], of_logits["distance_irrelevance"], rtol=1e-10)
    W_L = params["blocks_0"]["mlp"]["W_out"] @ params["unembed"]["W_U"][:, :7]
    assert found["sum_squared_weights"]["ln_final.w"] == pytest.approx((params["ln_final"]["w"] ** 2).sum())
    np.testing.assert_allclose(
        np.sqrt((np.asarray(found["W_L_frequency_norms"]) ** 2).sum()),
        np.linalg.norm(W_L - W_L.mean(axis=1, keepdims=True)),
        rtol=1e-10,
    )
    ablated = circuits.to_json(config, found)["ablation_loss"]
    assert ablated["mlp_skip_zero"] is None
    assert ablated["clustered_neurons_as_polynomials"] is None
    assert np.isfinite(found["gradient_symmetricity"])


def test_a_norm_is_not_for_the_one_hot_mlp():
    with pytest.raises(BadInput, match="norm: got 'rmsnorm'"):
        Config(arch="mlp", norm="rmsnorm")
    with pytest.raises(BadInput, match="init: got 'torch'"):
        interop.draw_with_torch(Config(norm="layernorm"), 0)


def test_a_sweep_with_a_norm_is_analysed(tmp_path):
    settings = {"p": 5, "d_model": 8, "n_heads": 2, "frac": 0.6, "norm": "layernorm", "seeds": 1, "epochs": 4}
    path = sweep(make_sweep({**settings, "checkpoint_every": 4}), tmp_path / "runs")
    results = analyze(path).results
    write_circuit_tables(results)
    assert "Of networks with a norm" in (path / "tables" / "networks.md").read_text()
    first, *rows = csv.DictReader((path / "tables" / "measures.csv").read_text().splitlines())
    assert first["ablation_loss_mlp_skip_zero"] == "nan"
    assert float(first["loss_all"]) > 0
    assert float(first["sum_squared_weights_ln_final.w"]) == pytest.approx(8)
    assert rows[-1]["epoch"] == "4"
    assert not computes_in_page(results.runs[0].config)
