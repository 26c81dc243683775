"""The networks against a plain float64 forward pass, and their parameters' names, shapes and initial values."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.config import BadInput, Config
from jaxgrok.nets.model import Transformer, context, make_model
from jaxgrok.tasks import make_config, make_task
from jaxgrok.tasks.skip_trigram import END
from tests.reference import plain

# float64 sums of at most a few hundred terms of order 1, in another order
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def network(read=(2, 3), n_ctx=3, **fields):
    config = Config(**{"p": 11, "d_model": 12, "n_heads": 3, "dtype": "float64", **fields})
    model = Transformer(config, d_vocab=12, d_vocab_out=7, n_ctx=n_ctx, read=read)
    params = model.init(jax.random.key(1), jnp.zeros((1, n_ctx), jnp.int32))["params"]
    # Biases start at zero. They are moved, so that the tests see a bias that is not added.
    params = jax.tree.map(lambda x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape), params)
    return model, params


def apply(model, params, tokens):
    return model.apply({"params": params}, tokens)


@pytest.mark.parametrize(("act", "n_layers"), [("relu", 1), ("gelu", 1), ("relu", 3)])
@pytest.mark.parametrize(("n_ctx", "read"), [(3, (2, 3)), (6, (2, 5)), (5, (0, 5))])
def test_logits_and_activations_are_those_of_the_plain_forward(act, n_layers, n_ctx, read, rng):
    model, params = network(read, n_ctx, n_layers=n_layers, act=act)
    tokens = rng.integers(12, size=(9, n_ctx))
    logits, activations = apply(model, params, tokens)
    expected, seen = plain.transformer(jax.tree.map(np.asarray, params), tokens, act)
    np.testing.assert_allclose(logits, expected[:, slice(*read)], **TIGHT)
    assert set(seen) <= set(activations)
    for name, value in seen.items():
        # The last layer is computed at the read positions alone; keys and values are needed everywhere.
        if name.startswith(f"blocks.{n_layers - 1}.") and not name.endswith(("hook_k", "hook_v")):
            value = value[:, :, slice(*read)] if name.endswith("hook_pattern") else value[:, slice(*read)]
        np.testing.assert_allclose(activations[name], value, err_msg=name, **TIGHT)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize(
    "fields", [{"attention": "full"}, {"attn_coeff": 0.3}, {"attention": "full", "attn_coeff": 0.0}]
)
@pytest.mark.parametrize("sequence", ["xy=", "xy"])
def test_attention_of_clocks_and_pizzas_is_that_of_the_plain_forward(fields, n_layers, sequence, rng):
    config = Config(p=7, d_model=12, n_heads=3, n_layers=n_layers, sequence=sequence, dtype="float64", **fields)
    task = make_task(config)
    model, tokens = make_model(config, task), task.pairs(np.arange(49), 0).tokens
    assert tokens.shape == (49, len(sequence))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert shapes["embed"]["W_E"].shape == (7 + (sequence == "xy="), 12)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    expected, seen = plain.transformer(params, tokens, **fields)

    def summed(params):
        logits, activations = apply(model, params, tokens)
        return (logits * slopes).sum(), (logits, activations[f"blocks.{n_layers - 1}.attn.hook_pattern"])

    slopes = rng.normal(size=(49, 1, expected.shape[-1]))
    gradient, (logits, pattern) = jax.grad(summed, has_aux=True)(params)
    np.testing.assert_allclose(logits, expected[:, -1:], **TIGHT)
    np.testing.assert_allclose(pattern, seen[f"blocks.{n_layers - 1}.attn.hook_pattern"][:, :, -1:], **TIGHT)
    # The gradient in one random direction, by differences.
    towards = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    ends = [jax.tree.map(lambda x, d: x + sign * 1e-6 * d, params, towards) for sign in (1, -1)]  # noqa: B023
    above, below = ((plain.transformer(end, tokens, **fields)[0][:, -1:] * slopes).sum() for end in ends)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, towards)))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-4)


def test_tied_embeddings_are_those_of_the_plain_forward(rng):
    config = Config(p=7, d_model=12, n_heads=3, tied="yes", dtype="float64")
    task = make_task(config)
    model, tokens = make_model(config, task), task.pairs(np.arange(49), 0).tokens
    params = model.init(jax.random.key(0), tokens)["params"]
    assert "unembed" not in params
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    np.testing.assert_allclose(apply(model, params, tokens)[0], plain.transformer(params, tokens)[0][:, 2:], **TIGHT)
    # Both uses of W_E add to its gradient.
    untied = {**params, "unembed": {"W_U": params["embed"]["W_E"].T}}
    of_one, of_two = (jax.grad(lambda p: apply(model, p, tokens)[0].var())(p) for p in (params, untied))
    both = of_two["embed"]["W_E"] + of_two["unembed"]["W_U"].T
    np.testing.assert_allclose(of_one["embed"]["W_E"], both, rtol=1e-9, atol=1e-12)
    with pytest.raises(BadInput, match="tied"):
        Transformer(config, d_vocab=8, d_vocab_out=7, n_ctx=3, read=(2, 3)).init(jax.random.key(0), tokens)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"sequence": "xy", "task": "addition2"}, "sequence"),
        ({"attention": "full", "task": "induction", "arch": "attn_only"}, "attention"),
        ({"arch": "mlp", "attn_coeff": 0.5}, "attn_coeff"),
        ({"arch": "mlp", "tied": "yes"}, "tied"),
        ({"attn_coeff": 1.5}, "attn_coeff"),
        ({"attn_coeff": float("nan")}, "attn_coeff"),
        ({"sequence": "yx"}, "sequence"),
    ],
)
def test_networks_that_cannot_be_are_refused(fields, name):
    with pytest.raises(BadInput, match=f"^{name}: got"):
        Config(**fields)


@pytest.mark.parametrize(
    ("arch", "n_layers", "factor"),
    [("attn_only", 1, 1.0), ("attn_only", 2, 2.0), ("transformer", 1, 2.0), ("transformer", 2, 0.5)],
)
def test_attn_only_and_residual_factors_are_those_of_the_plain_forward(arch, n_layers, factor, rng):
    model, params = network((2, 5), 6, arch=arch, n_layers=n_layers, residual_factor=factor)
    assert ("mlp" in params["blocks_0"]) == (arch == "transformer")
    tokens = rng.integers(12, size=(9, 6))
    logits, activations = apply(model, params, tokens)
    expected, seen = plain.transformer(jax.tree.map(np.asarray, params), tokens, residual_factor=factor)
    np.testing.assert_allclose(logits, expected[:, 2:5], **TIGHT)
    last = f"blocks.{n_layers - 1}.hook_resid_post"
    np.testing.assert_allclose(activations[last], seen[last][:, 2:5], **TIGHT)
    assert {name for name in activations if "mlp" in name} == {name for name in seen if "mlp" in name}


def test_a_context_longer_than_the_sequence_has_positions_that_nothing_reads(rng):
    config = Config(task="skip_trigram", arch="attn_only", seq_len=5, n_ctx=8, d_model=12, n_heads=3, dtype="float64")
    model = make_model(config, make_task(config))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    assert shapes["pos_embed"]["W_pos"].shape == (8, 12)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    tokens = np.c_[rng.integers(22, size=(4, 4)), np.full(4, END)]

    def summed(params):
        logits, _ = apply(model, params, tokens)
        return logits.sum(), logits

    slopes, logits = jax.jit(jax.grad(summed, has_aux=True))(params)
    np.testing.assert_allclose(logits, plain.transformer(params, tokens)[0][:, 4:], **TIGHT)
    slopes = slopes["pos_embed"]["W_pos"]
    assert (np.abs(slopes).sum(axis=1) > 0).tolist() == [True] * 5 + [False] * 3


PLACES = {"transformer": {"W_O W_in", "b_in", "W_O W_U", "W_out W_U", "b_U"}, "attn_only": {"W_O W_U", "b_U"}}


@pytest.mark.parametrize(
    ("fields", "read_token", "n", "folded"),
    [
        ({}, 11, 200, PLACES["transformer"]),
        ({"residual_factor": 2.0, "act": "gelu"}, 11, 200, PLACES["transformer"]),
        ({}, None, 200, {"W_out W_U", "b_U"}),
        ({"residual_factor": 0.5, "n_layers": 2}, None, 200, {"W_out W_U", "b_U"}),
        ({"n_layers": 2}, 11, 200, {"W_out W_U", "b_U"}),  # what the second layer reads is no constant
        ({}, 11, 40, {"W_out W_U", "b_U"}),  # too few examples for W_O W_in
        ({}, 11, 4, set()),
        ({"dropout": 0.5}, 11, 200, set()),
        ({"d_model": 3, "d_mlp": 40}, 11, 200, set()),  # more classes than W_out has columns
        ({"arch": "attn_only", "residual_factor": 2.0}, 11, 200, PLACES["attn_only"]),
        ({"arch": "attn_only"}, None, 200, set()),
    ],
)
def test_products_of_weights_change_neither_logits_nor_gradients(fields, read_token, n, folded, rng):
    model, params = network(**fields)
    model = model.clone(read_token=read_token)
    tokens = np.c_[rng.integers(12, size=(9, 2)), np.full(9, 11)]
    slope = rng.normal(size=(9, 1, 7))

    def weighted(params, model, n):
        logits, activations = model.forward(model.prepare(params, n), tokens)
        return (slope * logits).sum(), (logits, activations)

    assert set(model.prepare(params, n).folded) == folded
    graded = jax.jit(jax.grad(weighted, has_aux=True), static_argnums=(1, 2))
    gradient, (logits, activations) = graded(params, model, n)
    plainly, (_, seen) = graded(params, model.clone(read_token=None), 1)
    assert not model.clone(read_token=None).prepare(params, 1).folded
    factor = {"residual_factor": fields.get("residual_factor", 1)}
    expected, _ = plain.transformer(jax.tree.map(np.asarray, params), tokens, fields.get("act", "relu"), **factor)
    np.testing.assert_allclose(logits, expected[:, 2:], **TIGHT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TIGHT), gradient, plainly)
    assert activations.keys() == seen.keys()
    for name, value in seen.items():
        np.testing.assert_allclose(activations[name], value, err_msg=name, **TIGHT)


@pytest.mark.parametrize("length", [14, 10])
@pytest.mark.parametrize(
    ("fields", "read", "first"),
    [
        ({}, (3, 7), {"qk", "W_V W_O"}),
        ({"n_layers": 2, "residual_factor": 2.0}, (3, 7), {"qk", "W_V W_O"}),
        ({"attention": "full", "attn_coeff": 0.3, "arch": "attn_only"}, (3, 7), {"qk", "W_V W_O"}),
        ({"dropout": 0.4}, (3, 7), {"qk", "W_V W_O"}),
        ({}, (9, 10), {"scores", "v"}),
        ({"arch": "attn_only"}, (9, 10), {"scores", "v"}),
    ],
)
def test_attention_by_token_changes_neither_activations_nor_gradients(fields, read, first, length, rng, monkeypatch):
    """In a context of 14, sequences of 14 and of 10 positions, and 12 tokens that repeat."""
    model, params = network(read, 14, **{"d_model": 39, **fields})
    is_constant = "scores" in first
    model = model.clone(read_token=11 if is_constant else None)
    tokens = rng.integers(12, size=(40, length))
    if is_constant:
        tokens[:, 9] = 11
    slope = rng.normal(size=(40, read[1] - read[0], 7))
    keys = jax.random.split(jax.random.key(0), 40) if "dropout" in fields else None

    def weighted(params):
        logits, activations = model.forward(model.prepare(params, 40), tokens, keys)
        return (slope * logits).sum(), (logits, activations)

    assert set(model.prepare(params, 40).first) == first
    gradient, (logits, activations) = jax.jit(jax.grad(weighted, has_aux=True))(params)
    monkeypatch.setattr(Transformer, "attends_by_token", False)
    assert "W_V W_O" not in model.prepare(params, 40).first
    plainly, (expected, seen) = jax.jit(jax.grad(weighted, has_aux=True))(params)
    if "dropout" not in fields:  # which the plain network has not
        options = {name: x for name, x in fields.items() if name in ("residual_factor", "attention", "attn_coeff")}
        of_plain, _ = plain.transformer(jax.tree.map(np.asarray, params), tokens, **options)
        np.testing.assert_allclose(logits, of_plain[:, slice(*read)], **TIGHT)
    np.testing.assert_allclose(logits, expected, **TIGHT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TIGHT), gradient, plainly)
    assert activations.keys() == seen.keys()
    for name, value in seen.items():
        np.testing.assert_allclose(activations[name], value, err_msg=name, **TIGHT)


@pytest.mark.parametrize(
    ("fields", "is_by_token"),
    [
        ({"task": "addition5"}, True),
        ({"task": "parity3"}, True),
        ({"task": "skip_trigram"}, True),  # more tokens than positions, but a constant query
        ({"task": "induction"}, False),
        ({"task": "induction", "n_tokens": 20}, False),  # too many positions
        ({"task": "addition5", "n_heads": 8}, True),
        ({"task": "addition5", "n_heads": 16}, False),  # heads too narrow
        ({"task": "add"}, False),
        ({"task": "addition5", "norm": "layernorm"}, False),  # which is not linear
    ],
)
def test_attention_is_by_token_where_that_is_quicker(fields, is_by_token):
    config = make_config(**fields)
    assert make_model(config, make_task(config)).attends_by_token == is_by_token


def test_gradients_are_the_slopes_of_the_plain_forward(rng):
    """Along a random direction in all parameters at once, by a central difference of the numpy network."""
    model, params = network(residual_factor=2.0, act="gelu")
    model = model.clone(read_token=11)
    tokens = np.c_[rng.integers(12, size=(9, 2)), np.full(9, 11)]
    slope, towards = rng.normal(size=(9, 1, 7)), jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    gradient = jax.grad(lambda w: (slope * model.forward(model.prepare(w, 200), tokens)[0]).sum())(params)

    def plainly(step):
        moved = jax.tree.map(lambda x, d: np.asarray(x) + step * d, params, towards)
        return (slope * plain.transformer(moved, tokens, "gelu", 2.0)[0][:, 2:]).sum()

    along = sum((g * d).sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(towards)))
    # The error of a central difference is of the order of the step squared.
    assert float(along) == pytest.approx((plainly(1e-5) - plainly(-1e-5)) / 2e-5, rel=1e-7)


def test_another_token_where_all_have_the_same_is_refused():
    model, params = network()
    model = model.clone(read_token=11)
    with pytest.raises(BadInput, match="11 at position 2"):
        apply(model, params, np.array([[1, 2, 11], [1, 2, 3]]))


@pytest.mark.parametrize(("n_ctx", "positions"), [(None, 5), (5, 5), (8, 8), (0, 0)])
def test_the_context_is_the_sequence_only_if_the_config_has_none(n_ctx, positions):
    """Config refuses 0, so that a stand-in is needed to see that 0 is not read as missing."""
    assert context(SimpleNamespace(n_ctx=n_ctx), SimpleNamespace(n_ctx=5)) == positions


def test_no_position_sees_a_later_one(rng):
    model, params = network((0, 5), 5, n_layers=2)
    tokens = rng.integers(12, size=(1, 5))

    def logits_at(embedding, position):
        moved = {**params, "pos_embed": {"W_pos": params["pos_embed"]["W_pos"] + embedding}}
        return apply(model, moved, tokens)[0][0, position].sum()

    for position in range(5):
        sensitivity = np.abs(jax.grad(logits_at)(jnp.zeros((5, 12)), position)).sum(axis=1)
        assert (sensitivity[: position + 1] > 0).all()
        assert (sensitivity[position + 1 :] == 0).all()


def test_parameters_have_the_fields_names_and_shapes():
    config = Config()
    task = make_task(config)
    shapes = jax.eval_shape(make_model(config, task).init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == {
        "embed": {"W_E": (114, 128)},
        "pos_embed": {"W_pos": (3, 128)},
        "blocks_0": {
            "attn": {"W_Q": (4, 128, 32), "W_K": (4, 128, 32), "W_V": (4, 128, 32), "W_O": (4, 32, 128)},
            "mlp": {"W_in": (128, 512), "b_in": (512,), "W_out": (512, 128), "b_out": (128,)},
        },
        "unembed": {"W_U": (128, 114)},
    }


def test_initial_weights_have_the_authors_scales():
    config = Config()
    params = make_model(config, make_task(config)).init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    for path, weight in jax.tree.leaves_with_path(params):
        name = path[-1].key
        if name.startswith("b_"):
            assert (weight == 0).all()
        else:
            std = 1 / np.sqrt(114 if name == "W_U" else 128)
            # 5 standard errors of a standard deviation
            assert abs(float(weight.std()) / std - 1) < 5 / np.sqrt(2 * weight.size), name


def test_float64_starts_from_the_float32_weights():
    weights = []
    for dtype in ("float32", "float64"):
        config = Config(p=7, d_model=8, dtype=dtype)
        weights.append(
            make_model(config, make_task(config)).init(jax.random.key(3), jnp.zeros((1, 3), jnp.int32))["params"]
        )
    single, double = (jax.tree.leaves(w) for w in weights)
    for a, b in zip(single, double):
        assert (a.dtype, b.dtype) == (np.float32, np.float64)
        np.testing.assert_array_equal(a.astype(np.float64), b)


@pytest.mark.parametrize("act", ["relu", "gelu", "square"])
def test_mlp_is_the_network_on_the_sum_of_one_hots(act, rng):
    config = Config(arch="mlp", p=9, d_mlp=14, act=act, dtype="float64")
    model = make_model(config, make_task(config))
    params = model.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape), params)
    tokens = np.c_[rng.integers(9, size=(30, 2)), np.full(30, 9)]
    tokens[0, 1] = tokens[0, 0]  # x = y: a 2 in the input
    logits, activations = apply(model, params, tokens)
    expected = plain.one_hot_mlp(jax.tree.map(np.asarray, params), tokens[:, 0], tokens[:, 1], 9, act)
    np.testing.assert_allclose(logits[:, 0], expected, **TIGHT)
    assert activations["mlp.hook_post"].shape == (30, 1, 14)
