"""Import and export of weights: names, shapes, every way a file can be wrong, and bit-exact round trips."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxgrok.config import BadInput, Config
from jaxgrok.nets import interop
from jaxgrok.nets.model import context, make_model
from jaxgrok.tasks import make_task
from jaxgrok.training.run import make_program
from tests.reference import analysis

# All sizes differ, so that no shape fits by accident: V 12, S 3, D 6, H 2, K 3, M 5, C 12.
SMALL = Config(p=11, n_layers=2, n_heads=2, d_model=6, d_mlp=5)
MLP = Config(p=11, arch="mlp", d_mlp=5)
# Other tasks and no MLPs: V, S and C are (12, 9, 10), (11, 13, 11), (22, 8, 10) and (12, 3, 12).
REPEATS = {"seq_len": 13, "repeat_len": 3, "n_repeats": 3, "n_tokens": 11}
OTHERS = {
    "addition": Config(task="addition2", n_layers=2, n_heads=2, d_model=6, d_mlp=5),
    "induction": Config(
        task="induction", arch="attn_only", n_layers=2, n_heads=2, d_model=6, residual_factor=2.0, **REPEATS
    ),
    "skip trigrams, longer context": Config(
        task="skip_trigram", arch="attn_only", n_heads=3, d_model=6, seq_len=5, n_ctx=8
    ),
    "attention only": Config(p=11, arch="attn_only", n_heads=2, d_model=6, dtype="float64"),
}
RELEASED = "reference/published/wd_10-1_mod_addition_loss_curve.pth"


def params_of(config, seed=0):
    # Random, biases too, so that the tests see a bias that is lost.
    task = make_task(config)
    tokens = np.zeros((1, task.n_ctx), np.int32)
    shapes = jax.eval_shape(make_model(config, task).init, jax.random.key(0), tokens)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [rng.normal(size=x.shape).astype(config.dtype) for x in leaves])


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def saved(tmp_path, state, name="weights.npz"):
    path = tmp_path / name
    with open(path, "wb") as file:
        np.savez(file, **state)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("names", ["authors", "transformer_lens"])
@pytest.mark.parametrize(
    "config", [SMALL, MLP, Config(p=11, n_heads=3, d_model=6, dtype="float64")], ids=["two layers", "mlp", "float64"]
)
def test_export_then_import_is_bit_exact(tmp_path, config, names, suffix):
    pytest.importorskip({".safetensors": "safetensors", ".pth": "torch"}.get(suffix, "numpy"))
    params, path = params_of(config), tmp_path / f"weights{suffix}"
    interop.save(path, config, params, names)
    imported = interop.load(path)
    assert_same(imported.params, params)
    fields = ("p", "arch", "n_layers", "dtype", *(("n_heads", "d_model") if config.arch == "transformer" else ()))
    assert {name: getattr(imported.config, name) for name in fields} == {name: getattr(config, name) for name in fields}


def given_for(config):
    """The arguments that `load` needs for a config because no file holds them."""
    fields = {name: getattr(config, name) for name in REPEATS if getattr(config, name) is not None}
    return {"task": config.task, "residual_factor": config.residual_factor, **fields}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("names", ["authors", "transformer_lens"])
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_networks_of_other_tasks_come_back_with_their_config(tmp_path, config, names, suffix):
    pytest.importorskip({".safetensors": "safetensors", ".pth": "torch"}.get(suffix, "numpy"))
    params, path = params_of(config), tmp_path / f"weights{suffix}"
    interop.save(path, config, params, names)
    imported = interop.load(path, **given_for(config))
    assert_same(imported.params, params)
    assert imported.config == config


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_the_mask_has_the_networks_context(config):
    n_ctx = context(config, make_task(config))
    for names in ("authors", "transformer_lens"):
        mask = interop.to_state(config, params_of(config), names)[f"blocks.{config.n_layers - 1}.attn.mask"]
        np.testing.assert_array_equal(mask, np.tril(np.ones((n_ctx, n_ctx))))


@pytest.mark.parametrize("names", ["authors", "transformer_lens"])
def test_attention_only_has_no_names_of_an_mlp(names):
    config = OTHERS["induction"]
    exported = set(interop.to_state(config, params_of(config), names))
    whole = set(interop.to_state(SMALL, params_of(SMALL), names))
    assert exported == {name for name in whole if ".mlp." not in name}


@pytest.mark.parametrize("per_head", [False, True])
def test_the_authors_attention_only_names_are_read(per_head):
    config = OTHERS["induction"]
    params = params_of(config)
    state = {name.replace("blocks.", "attn_blocks."): x for name, x in interop.to_state(config, params).items()}
    if per_head:
        for layer in range(2):
            state[f"attn_blocks.{layer}.attn.W_O"] = params[f"blocks_{layer}"]["attn"]["W_O"].transpose(0, 2, 1)
    found, read = interop.from_state(state, **given_for(config))
    assert found == config
    assert_same(read, params)


def test_shapes_under_each_names():
    params = params_of(SMALL)
    authors, lens = (interop.to_state(SMALL, params, names) for names in ("authors", "transformer_lens"))
    weights = ("attn.W_Q", "attn.W_O", "mlp.W_in", "mlp.W_out")
    assert {name: authors[f"blocks.1.{name}"].shape for name in (*weights, "attn.mask")} == {
        "attn.W_Q": (2, 3, 6), "attn.W_O": (6, 6), "mlp.W_in": (5, 6), "mlp.W_out": (6, 5), "attn.mask": (3, 3),
    }  # fmt: skip
    assert authors["embed.W_E"].shape == (6, 12)
    assert {name: lens[f"blocks.1.{name}"].shape for name in (*weights, "attn.b_Q")} == {
        "attn.W_Q": (2, 6, 3), "attn.W_O": (2, 3, 6), "mlp.W_in": (6, 5), "mlp.W_out": (5, 6), "attn.b_Q": (2, 3),
    }  # fmt: skip
    assert lens["embed.W_E"].shape == (12, 6)
    assert lens["unembed.b_U"].shape == (12,)
    # The authors flatten heads as (head, width): column h * K + k of their W_O is ours at [h, k].
    np.testing.assert_array_equal(authors["blocks.0.attn.W_O"][:, 1 * 3 + 2], params["blocks_0"]["attn"]["W_O"][1, 2])


def test_the_authors_later_W_O_per_head_is_read():
    params = params_of(SMALL)
    state = interop.to_state(SMALL, params)
    for layer in range(2):
        state[f"blocks.{layer}.attn.W_O"] = params[f"blocks_{layer}"]["attn"]["W_O"].transpose(0, 2, 1)
    assert_same(interop.from_state(state)[1], params)


def test_a_network_without_the_class_of_equals():
    state = interop.to_state(SMALL, params_of(SMALL))
    state["unembed.W_U"] = state["unembed.W_U"][:, :11]
    config, params = interop.from_state(state)
    assert config.p == 11
    assert params["unembed"]["W_U"].shape == (6, 11)


def test_half_precision_becomes_float32():
    state = {name: x.astype(np.float16) for name, x in interop.to_state(SMALL, params_of(SMALL)).items()}
    config, params = interop.from_state(state)
    assert config.dtype == "float32"
    assert params["embed"]["W_E"].dtype == np.float32


def test_square_shapes_ask_for_the_names():
    # One head of the whole width, D neurons and V = D: the later authors' shapes are TransformerLens's too.
    config = Config(p=5, n_heads=1, d_model=6, d_mlp=6)
    params = params_of(config)
    state = interop.to_state(config, params, "transformer_lens")
    with pytest.raises(BadInput, match="names"):
        interop.from_state(state)
    assert_same(interop.from_state(state, names="transformer_lens")[1], params)


def test_the_released_network(shared):
    pytest.importorskip("torch")
    config, params, recorded = interop.load(shared / RELEASED)
    assert config == Config(d_mlp=512)
    assert recorded["config"]["frac_train"] == 0.3
    assert recorded["train_loss"] == pytest.approx(9.2e-9, rel=1e-2)
    state = interop.read(shared / RELEASED).state
    exported = interop.to_state(config, params)
    assert exported.keys() == state.keys()
    for name, x in state.items():
        np.testing.assert_array_equal(exported[name], x)
    # The same function: our network's logits against a plain forward pass of the file's weights.
    weights = {
        name.split(".")[-1]: x.astype(float) for name, x in interop.to_state(config, params, "transformer_lens").items()
    }
    pairs = np.random.default_rng(0).integers(113**2, size=50)
    tokens = make_task(config).pairs(pairs, 0).tokens
    with jax.default_matmul_precision("highest"):
        logits, _ = make_model(config, make_task(config)).apply({"params": params}, tokens)
    theirs = analysis.forward(weights, 113)["logits"][pairs]
    # float32 against float64: some roundings of the largest logit.
    np.testing.assert_allclose(logits[:, 0], theirs, atol=2e-6 * np.abs(theirs).max())


# --- what is refused --------------------------------------------------------------------------------------------------


def broken(change):
    state = interop.to_state(SMALL, params_of(SMALL))
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("embed.W_E"), "no embed.W_E"),
        (lambda s: s.pop("blocks.1.mlp.W_in"), "no blocks.1.mlp.W_in"),
        (lambda s: s.update({"blocks.0.ln1.w": np.ones(6, np.float32)}), "no blocks.1.ln1.w"),
        (lambda s: s.update({"blocks.3.mlp.b_in": np.ones(5, np.float32)}), "layers"),
        (lambda s: s.update({"embed.W_E": np.ones((12, 7), np.float32)}), "embed.W_E|pos_embed.W_pos"),
        (lambda s: s.update({"blocks.1.mlp.W_in": np.ones((4, 6), np.float32)}), r"blocks.1.mlp.W_in.*\(5, 6\)"),
        (lambda s: s.update({"blocks.1.mlp.b_out": np.ones((6, 1), np.float32)}), "blocks.1.mlp.b_out"),
        (lambda s: s.update({"blocks.0.attn.W_O": np.ones((6, 4), np.float32)}), "blocks.0.attn.W_O"),
        (lambda s: s.update({"pos_embed.W_pos": np.ones((18, 6), np.float32)}), r"pos_embed.W_pos.*\(3, 6\)"),
        (lambda s: s.update({"unembed.W_U": np.ones((6, 10), np.float32)}), "unembed.W_U"),
        (lambda s: s.update({"unembed.b_U": np.ones(12, np.float32)}), "unembed.b_U.*zeros"),
        (lambda s: s.update({"embed.W_E": np.ones((6, 12), np.int64)}), "embed.W_E.*int64"),
    ],
)
def test_wrong_weights_are_named(change, said):
    with pytest.raises(BadInput, match=said):
        interop.from_state(broken(change))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("addition", {"task": "add"}, r"pos_embed.W_pos: got \(9, 6\); accepted: a shape \(3, 6\)"),
        (
            "addition",
            {"task": "addition3"},
            r"pos_embed.W_pos: got \(9, 6\); accepted: a shape \(12, 6\) or longer, as in task addition3",
        ),
        (
            "addition",
            {"task": "skip_trigram"},
            r"embed.W_E: got \(6, 12\); accepted: a shape \(6, 22\), as in task skip_trigram",
        ),
        (
            "addition",
            {"task": "skip_trigram", "names": "transformer_lens"},
            r"embed.W_E: got \(12, 6\); accepted: a shape \(22, 6\)",
        ),
        (
            "addition",
            {"task": "addition2", "seq_len": 9},
            "seq_len: got 9; accepted: with task induction, skip_trigram or parity<K>",
        ),
        ("addition", {"task": "addition"}, "task: got 'addition'; accepted: add subtract"),
        ("induction", {"n_tokens": 10}, r"embed.W_E: got \(6, 11\); accepted: a shape \(6, 10\), as in task induction"),
        ("induction", {"seq_len": 16}, r"pos_embed.W_pos: got \(13, 6\); accepted: a shape \(16, 6\) or longer"),
        ("induction", {"repeat_len": 5}, "repeat_len: got 5; accepted: at most 4"),
        ("induction", {"residual_factor": 0.0}, "residual_factor: got 0.0"),
        (
            "skip trigrams, longer context",
            {"seq_len": 9},
            r"pos_embed.W_pos: got \(8, 6\); accepted: a shape \(9, 6\) or longer",
        ),
        (
            "attention only",
            {"task": "addition1"},
            r"unembed.W_U: got \(6, 12\); accepted: a shape \(6, 10\), as in task addition1",
        ),
    ],
)
def test_weights_that_do_not_fit_the_task_are_named(name, given, said):
    config = OTHERS[name]
    state = interop.to_state(config, params_of(config), given.get("names", "authors"))
    with pytest.raises(BadInput, match=said):
        interop.from_state(state, **{**given_for(config), **given})


def test_weights_of_the_mlp_are_for_modular_tasks():
    with pytest.raises(BadInput, match=r"arch: got 'mlp'.*addition2"):
        interop.from_state(interop.to_state(MLP, params_of(MLP)), task="addition2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.update({"attn_blocks.0.attn.W_Q": s["blocks.0.attn.W_Q"]}),
            "attn_blocks.0.attn.W_Q beside blocks.0",
        ),
        (lambda s: s.pop("blocks.1.attn.W_O"), "no blocks.1.attn.W_O"),
        (lambda s: s.update({"blocks.1.mlp.b_in": np.ones(5, np.float32)}), "no blocks.0.mlp.W_in"),
        (lambda s: s.update({"blocks.1.attn.W_O": np.ones((6, 4), np.float32)}), "blocks.1.attn.W_O"),
        (lambda s: s.update({"blocks.0.attn.b_Q": np.ones((2, 3), np.float32)}), "blocks.0.attn.b_Q.*zeros"),
    ],
)
def test_wrong_weights_without_mlp_are_named(change, said):
    config = OTHERS["induction"]
    state = interop.to_state(config, params_of(config))
    change(state)
    with pytest.raises(BadInput, match=said):
        interop.from_state(state, **given_for(config))


def test_parameters_of_another_architecture_are_not_exported():
    with pytest.raises(BadInput, match=r"blocks\.0\.mlp"):
        interop.to_state(OTHERS["attention only"], params_of(SMALL))
    with pytest.raises(BadInput, match=r"no blocks\.0\.mlp"):
        interop.to_state(SMALL, params_of(OTHERS["attention only"]))


def test_an_export_has_the_constants_of_every_layer_of_the_parameters():
    """Also if the config has another number of layers: a file never holds a layer without its mask."""
    state = interop.to_state(dataclasses.replace(SMALL, n_layers=1), params_of(SMALL), "transformer_lens")
    assert state.keys() == interop.to_state(SMALL, params_of(SMALL), "transformer_lens").keys()


# --- initial weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_torch_draws_what_the_authors_code_draws(seed):
    torch = pytest.importorskip("torch")
    from tests.reference.torch_loop import Net

    config = Config(p=11, d_model=6, n_heads=2, d_mlp=5)
    torch.manual_seed(seed)
    net = {name: weight.detach().numpy() for name, weight in Net(12, d_model=6, n_heads=2, d_mlp=5).named_parameters()}
    drawn = interop.to_state(config, interop.draw_with_torch(config, seed))
    assert {name.split(".")[-1] for name in drawn} == {*net, "mask"}
    for name, x in drawn.items():
        if not name.endswith("mask"):
            np.testing.assert_array_equal(x, net[name.split(".")[-1]], err_msg=name)


@pytest.mark.parametrize("name", ["addition", "induction", "skip trigrams, longer context"])
def test_torch_draws_what_the_authors_later_code_draws(name):
    """Their code for sequences has W_O per head."""
    torch = pytest.importorskip("torch")
    from tests.reference.torch_loop import SequenceNet

    config = dataclasses.replace(OTHERS[name], d_mlp=None)  # 4 d_model, as theirs
    task, attn_only = make_task(config), config.arch == "attn_only"
    torch.manual_seed(1)
    sizes = (task.d_vocab, task.d_vocab_out, context(config, task), config.n_layers, config.d_model, config.n_heads)
    net = SequenceNet(*sizes, attn_only)
    state = {name: weight.detach().numpy() for name, weight in net.named_parameters()}
    drawn = interop.draw_with_torch(config, 1)
    assert_same(drawn, interop.from_state(state, names="authors", **given_for(config))[1])
    assert_same(drawn, interop.initial_weights("torch")(config, 1))


def test_torch_draws_attention_only_in_the_same_order():
    """A network and the same network without MLPs draw the same weights up to the first MLP weight."""
    pytest.importorskip("torch")
    whole, without = (
        interop.draw_with_torch(Config(p=11, n_heads=2, d_model=6, arch=arch), 3)
        for arch in ("transformer", "attn_only")
    )
    assert set(without) == {"embed", "pos_embed", "blocks_0", "unembed"}
    assert set(without["blocks_0"]) == {"attn"}
    for block in ("embed", "pos_embed"):
        assert_same(without[block], whole[block])
    assert_same(without["blocks_0"]["attn"], whole["blocks_0"]["attn"])
    assert not np.array_equal(without["unembed"]["W_U"], whole["unembed"]["W_U"])


def test_the_released_run_starts_where_ours_does(shared):
    """Torch's weights and the split of seed 1 give the first losses of the authors' curves."""
    torch = pytest.importorskip("torch")
    released = torch.load(shared / RELEASED, map_location="cpu", weights_only=True)
    config = Config(loss="float64")
    params = interop.initial_weights("torch")(config, 1)
    evaluate = jax.jit(make_program(config).evaluate)
    for part, name in zip(make_task(config).split(0.3, 1), ("train_losses", "test_losses"), strict=True):
        # Their float32 logits and ours round differently; over thousands of examples the means come within 1.5e-9.
        assert float(evaluate(params, part).loss) == pytest.approx(float(released[name][0]), abs=1e-8)


def test_every_seed_starts_from_the_weights_of_a_file(tmp_path):
    params = params_of(SMALL)
    interop.save(tmp_path / "weights.npz", SMALL, params)
    weights = interop.initial_weights(str(tmp_path / "weights.npz"))
    assert_same(weights(SMALL, 0), params)
    assert_same(weights(SMALL, 1), params)
    assert_same(weights(Config(**SMALL.to_dict() | {"dtype": "float64"}), 1), jax.tree.map(np.float64, params))


@pytest.mark.parametrize("names", ["authors", "transformer_lens"])
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_a_file_is_read_whatever_the_task(tmp_path, config, names):
    params, path = params_of(config), tmp_path / "weights.npz"
    interop.save(path, config, params, names)
    assert_same(interop.initial_weights(str(path))(config, 0), params)


@pytest.mark.parametrize(
    ("config", "found", "wanted"),
    [
        (Config(n_layers=2, n_heads=2, d_model=6, d_mlp=5, p=11), "pos_embed.W_pos (9, 6)", "pos_embed.W_pos (3, 6)"),
        (
            Config(task="addition3", n_layers=2, n_heads=2, d_model=6, d_mlp=5),
            "pos_embed.W_pos (9, 6)",
            "pos_embed.W_pos (12, 6)",
        ),
        (dataclasses.replace(OTHERS["addition"], n_ctx=10), "pos_embed.W_pos (9, 6)", "pos_embed.W_pos (10, 6)"),
        (dataclasses.replace(OTHERS["addition"], arch="attn_only"), "blocks.0.mlp.W_in (6, 5)", "no blocks.0.mlp.W_in"),
    ],
)
def test_a_file_of_another_task_is_refused_as_init(tmp_path, config, found, wanted):
    path = tmp_path / "weights.npz"
    interop.save(path, OTHERS["addition"], params_of(OTHERS["addition"]))
    weights = interop.initial_weights(str(path))
    with pytest.raises(BadInput) as caught:
        weights(config, 0)
    assert caught.value.name == "init"
    assert found in str(caught.value)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("change", "found", "wanted"),
    [
        ({"p": 13}, "embed.W_E (12, 6)", "embed.W_E (14, 6)"),
        ({"d_model": 8}, "blocks.0.attn.W_K (2, 6, 3)", "blocks.0.attn.W_K (2, 8, 4)"),
        ({"n_layers": 1}, "blocks.1.attn.W_K (2, 6, 3)", "no blocks.1.attn.W_K"),
        ({"arch": "mlp"}, "no W_in", "W_in (11, 5)"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused_as_init(tmp_path, change, found, wanted):
    path = tmp_path / "weights.npz"
    interop.save(path, SMALL, params_of(SMALL))
    weights = interop.initial_weights(str(path))
    with pytest.raises(BadInput) as caught:
        weights(Config(**SMALL.to_dict() | change), 0)
    assert caught.value.name == "init"
    assert caught.value.value.startswith(f"{path} with ")
    assert found in str(caught.value)
    assert wanted in str(caught.value)


def test_files_without_a_network_are_refused_as_init(tmp_path):
    (tmp_path / "weights.txt").write_text("x")
    (tmp_path / "weights.npz").write_bytes(b"x")
    state = interop.to_state(SMALL, params_of(SMALL))
    del state["embed.W_E"]
    saved(tmp_path, state, "part.npz")
    refusals = {"weights.txt": ".npz", "weights.npz": "damaged", "part.npz": "no embed.W_E", "nothing.npz": "exists"}
    for name, said in refusals.items():
        with pytest.raises(BadInput) as caught:
            interop.initial_weights(str(tmp_path / name))
        assert (caught.value.name, caught.value.value) == ("init", str(tmp_path / name))
        assert said in caught.value.accepted
        assert "\n" not in str(caught.value)


def test_torch_draws_no_mlp():
    said = "init: got 'torch'; accepted: with arch transformer; the authors' code draws no mlp"
    with pytest.raises(BadInput, match=said):
        interop.initial_weights("torch")(MLP, 0)
