"""Networks that other programs have saved: found in their files, read under their names, measured on their splits.

Each case is one that public repositories have. The files here are made by the test.
"""

import argparse
import datetime
import json
import math
import re
import sys
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxgrok import measures
from jaxgrok.cli.analyze import main
from jaxgrok.config import BadInput, Config
from jaxgrok.measures import splits, subjects
from jaxgrok.measures.all_pairs import run_network
from jaxgrok.nets import interop, weight_files
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_task
from tests.test_interop import MLP, SMALL, assert_same, params_of

LENS = "transformer_lens"


def state_of(config=SMALL, seed=0, names="authors"):
    return interop.to_state(config, params_of(config, seed), names)


def tensors(torch, state):
    return {name: torch.from_numpy(np.array(x)) for name, x in state.items()}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def file(tmp_path, torch):
    """Save content as a .pth; arrays become tensors."""

    def to_torch(x):
        if isinstance(x, dict):
            return {name: to_torch(y) for name, y in x.items()}
        if isinstance(x, list):
            return [to_torch(y) for y in x]
        return torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) and x.dtype.kind in "biuf" else x

    def save(content, name="net.pth", **options):
        torch.save(to_torch(content), tmp_path / name, **options)
        return tmp_path / name

    return save


# --- which of a file's dictionaries is the network --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model", "model_state_dict", "model_state", "state_dict", "params", "net weights"])
def test_the_only_network_is_taken_under_any_key(file, key):
    moments = {"state": {0: {"exp_avg": np.zeros((3, 4)), "step": np.ones(())}}, "param_groups": [{"lr": 1e-3}]}
    path = file({"epoch": 7, key: state_of(), "optimizer": moments, "losses": {"train_loss": [3.0, 0.25]}})
    config, params, recorded = interop.load(path)
    assert config == SMALL
    assert_same(params, params_of(SMALL))
    assert recorded["epoch"] == 7
    np.testing.assert_array_equal(recorded["losses"]["train_loss"], [3, 0.25])
    assert recorded["other_entries"] == ()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("config", [SMALL, MLP], ids=["transformer", "mlp"])
def test_a_prefix_of_all_names_is_left_out(prefix, config):
    state = {prefix + name: x for name, x in state_of(config).items()}
    assert_same(interop.from_state(state)[1], params_of(config))
    first = next(iter(state))
    state[first.removeprefix(prefix)] = state.pop(first)
    with pytest.raises(BadInput):
        interop.from_state(state)


def test_of_several_networks_one_is_named(file):
    path = file({"model": state_of(seed=0), "ema": state_of(seed=1), "steps": [state_of(seed=s) for s in (2, 3, 4)]})
    for entry, seed in (("model", 0), ("ema", 1), ("steps[0]", 2), ("steps[2]", 4), ("steps[-1]", 4), ("steps[-3]", 2)):
        assert_same(interop.load(path, entry=entry).params, params_of(SMALL, seed))
    listed = re.escape("model, ema, steps[0] to steps[2]")
    for entry in (None, "steps[3]", "steps[-4]", "steps", "optimizer"):
        with pytest.raises(BadInput, match=f"entry: got {re.escape(repr(entry))}.*{listed}"):
            interop.load(path, entry=entry)


def test_weights_among_other_arrays_are_found(file):
    for beside in (
        {"ema_losses": np.ones(3, np.float32), "train_indices": np.arange(5)},
        {"train_pairs": np.ones((4, 2), np.int64), "step": np.float32(3) * np.ones((), np.float32)},
    ):
        assert_same(interop.load(file({"model": state_of(), **beside})).params, params_of(SMALL))
    both = file({"model": state_of(), "ema": state_of(seed=1)})
    assert_same(interop.load(both, entry="ema").params, params_of(SMALL, 1))
    with pytest.raises(BadInput, match=r"one of the 2 networks .* model, ema"):
        interop.load(both)
    listed = file({"saved": [{"model": state_of(seed=s), "ema": state_of(seed=s + 1)} for s in range(2)]})
    assert_same(interop.load(listed, entry="saved[1].ema").params, params_of(SMALL, 2))


def test_what_is_recorded_beside_a_network_is_its_own(file):
    runs = {
        f"run{r}": {"model": state_of(seed=r), "train_loss": r + 1.0, "config": {"act_fn": act}}
        for r, act in enumerate(("relu", "gelu"))
    }
    path = file({"task": "mod", **runs})
    for r, act in enumerate(("relu", "gelu")):
        config, params, recorded = interop.load(path, entry=f"run{r}.model")
        assert (config.act, recorded["train_loss"], recorded["task"]) == (act, r + 1, "mod")
        assert_same(params, params_of(SMALL, r))
        subject = subjects.subject_of_file(path, entry=f"run{r}.model")
        assert subject.about["recorded_train_loss"] == r + 1
    nested = {"epochs": {"model": state_of(), "train_indices": np.arange(40), "train_losses": np.array([[2.0, 0.9]])}}
    about = subjects.subject_of_file(file({"train_loss": 4.0, **nested})).about
    assert (about["from"], about["recorded_train_loss"]) == ("train_indices", 4.0)


def test_networks_by_epoch_are_in_their_order(file):
    path = file({"at": {300: state_of(seed=3), 0: state_of(seed=0), 20: state_of(seed=2)}})
    found = subjects.subjects_of_list(path, "at")
    assert [subject.about["epoch"] for subject in found] == [0, 20, 300]
    for subject, seed in zip(found, (0, 2, 3), strict=True):
        assert_same(subject.params, params_of(SMALL, seed))
    assert_same(found[0].params_of_keys, params_of(SMALL, 3))
    assert_same(interop.load(path, entry="at[-1]").params, params_of(SMALL, 3))
    mixed = file({"c": [state_of(), state_of(MLP)]})
    with pytest.raises(BadInput, match=r"entry: got 'c'; accepted: a list of networks of one shape; c\[1\] differs"):
        subjects.subjects_of_list(mixed, "c")


def test_two_networks_of_one_name_are_refused(file):
    with pytest.raises(BadInput, match=r"entry: got 'a.b'.*two"):
        interop.load(file({"a.b": state_of(), "a": {"b": state_of(seed=1), "e": 1}}))


def test_deep_nests_are_no_crash(tmp_path, file):
    x = state_of()
    for _ in range(300):
        x = {"a": x}
    with pytest.raises(BadInput):
        interop.load(file(x))
    with pytest.raises(BadInput):
        interop.load(write_msgpack(tmp_path, x))


def test_beside_a_list_the_only_dictionary_is_taken_and_the_list_is_mentioned(file):
    path = file({"checkpoints": [state_of(seed=s) for s in (2, 3)], "model": state_of(), "by_epoch": {}})
    _, params, recorded = interop.load(path)
    assert_same(params, params_of(SMALL))
    assert recorded["other_entries"] == ("checkpoints[0]", "checkpoints[1]")


def test_a_list_alone_has_to_be_named(file):
    for content in ([state_of()], {"saved": [{"epoch": 3, "model": state_of()}]}, {"at": {100: state_of()}}):
        with pytest.raises(BadInput, match="entry: got None") as caught:
            interop.load(file(content))
        entry = re.search(r"\.pth: (.+)$", str(caught.value))[1]
        assert_same(interop.load(file(content), entry=entry).params, params_of(SMALL))


def test_what_holds_no_network_is_described(file):
    for content, said in (
        ({"losses": [1.0, 2.0], "d_models": [3]}, "a dictionary of losses, d_models"),
        ([[0.1], [2.0]], "this is list"),
        ({f"x{i}": i for i in range(20)}, "x7 and 12 more"),
    ):
        with pytest.raises(BadInput, match=said):
            interop.load(file(content))


# --- pickles ----------------------------------------------------------------------------------------------------------


def lens_config(**fields):
    """A TransformerLens configuration for SMALL with one layer, of a class that must never be called."""
    return {
        **{"n_layers": 1, "d_model": 6, "n_heads": 2, "d_head": 3, "act_fn": "gelu", "normalization_type": None},
        **{"attention_dir": "causal", "use_attn_scale": True, "attn_scale": math.sqrt(3), "gated_mlp": False},
        **fields,
    }


@pytest.fixture
def lens_file(file, monkeypatch):
    """A file as TransformerLens's Grokking demo saves it. Its class is gone when the file is read."""
    name = "transformer_lens.HookedTransformerConfig"

    class HookedTransformerConfig:
        def __setstate__(self, state):
            raise AssertionError("the file's class was used")

    HookedTransformerConfig.__module__, HookedTransformerConfig.__qualname__ = name, "HookedTransformerConfig"
    one_layer = Config(p=11, n_heads=2, d_model=6, d_mlp=5)

    def save(**fields):
        module = types.ModuleType(name)
        module.HookedTransformerConfig = HookedTransformerConfig
        config = HookedTransformerConfig.__new__(HookedTransformerConfig)
        config.__dict__.update(lens_config(initializer_range=np.float64(0.25), **fields))
        order = np.random.default_rng(0).permutation(121)
        content = {
            "model": state_of(one_layer, names=LENS),
            "config": config,
            "checkpoints": [state_of(one_layer, seed, LENS) for seed in (1, 2)],
            "checkpoint_epochs": [99, 199],
            "train_losses": [4.0, 0.5],
            "test_losses": [5.0, 1.5],
            "train_indices": order[:40],
            "test_indices": order[40:],
        }
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "transformer_lens", types.ModuleType("transformer_lens"))
            patch.setitem(sys.modules, name, module)
            return file(content), order[:40]

    return save


def test_the_file_of_the_transformer_lens_demo_is_read_as_data(lens_file):
    path, train = lens_file()
    config, params, recorded = interop.load(path)
    assert (config.p, config.act, config.n_layers) == (11, "gelu", 1)
    assert_same(params, params_of(Config(p=11, n_heads=2, d_model=6, d_mlp=5)))
    assert recorded["config"]["initializer_range"] == 0.25
    subject = subjects.subject_of_file(path)
    np.testing.assert_array_equal(subject.split.train, train)
    assert subject.about == {
        **{"from": "train_indices", "frac_train": 40 / 121, "other_entries": 2},
        **{"recorded_train_loss": 0.5, "recorded_test_loss": 1.5, "act": "gelu"},
    }
    lines = "\n".join(subjects.remarks(subject, subjects.measure_subject(subject)))
    assert re.search(r"train loss \S+, recorded in the file 5.0+e-01; are these", lines)
    assert "the file holds 2 other networks: --entry names one" in lines
    # What is given decides: other pairs, another function.
    assert interop.load(path, act="relu").config.act == "relu"
    assert subjects.subject_of_file(path, frac=0.3, split_seed=4).about["seed"] == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"normalization_type": "LN"}, "normalization_type in the file: got 'LN'; accepted: the norm of its weights"),
        ({"normalization_type": "LNPre"}, "normalization_type in the file: got 'LNPre'; accepted: None or LN or RMS"),
        ({"attention_dir": "bidirectional"}, "attention_dir in the file: got 'bidirectional'; accepted: causal"),
        ({"act_fn": "gelu_new"}, "act_fn in the file: got 'gelu_new'; accepted: relu gelu square; if it is one"),
        ({"attn_scale": 1.0}, r"attn_scale in the file: got 1.0; accepted: sqrt\(d_head\) = 1.732"),
    ],
)
def test_settings_that_no_network_of_ours_has_are_refused_by_name(lens_file, fields, said):
    with pytest.raises(BadInput, match=said):
        interop.load(lens_file(**fields)[0])


def test_a_network_that_was_saved_whole_is_its_state_dictionary(file, torch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = torch.nn.Module()
            for name, x in state_of(MLP).items():
                setattr(self.mlp, name, torch.nn.Parameter(torch.from_numpy(x.copy())))
            self.mlp.register_buffer("basis", torch.eye(3))

    Net.__module__, Net.__qualname__ = "elsewhere", "Net"
    module = types.ModuleType("elsewhere")
    module.Net = Net
    sys.modules["elsewhere"] = module
    try:
        path = file(Net())
    finally:
        del sys.modules["elsewhere"]
    assert_same(interop.load(path).params, params_of(MLP))


def test_what_a_function_makes_of_a_tensor_is_not_that_tensor(file, torch):
    def twice(x):
        return 2 * x

    twice.__module__, twice.__qualname__ = "elsewhere", "twice"
    module = types.ModuleType("elsewhere")
    module.twice = twice

    class Twice:
        def __reduce__(self):
            return twice, (torch.ones(6, 12),)

    sys.modules["elsewhere"] = module
    try:
        path = file({**tensors(torch, state_of()), "unembed.W_U": Twice()})
    finally:
        del sys.modules["elsewhere"]
    with pytest.raises(BadInput, match=r"unembed.W_U: got 'what elsewhere.twice makes'; accepted: a plain tensor"):
        interop.load(path)


def test_plain_values_of_the_standard_library_and_unreadable_things_beside_are_no_obstacle(file, torch):
    beside = {
        **{"when": datetime.datetime(2023, 1, 2), "path": Path("/x"), "empty": np.zeros(0)},
        **{
            "names": np.array(["a", "b"]),
            "fine": torch.ones(3).to(torch.float8_e5m2),
            "sparse": torch.eye(3).to_sparse(),
        },
        "args": argparse.Namespace(act="gelu", p=11),
    }
    assert_same(interop.load(file({"model": state_of(), **beside})).params, params_of(SMALL))
    with pytest.raises(BadInput, match=r"layout torch.sparse_coo"):
        interop.load(file({**tensors(torch, state_of()), "embed.W_E": torch.eye(6).to_sparse()}))


def test_a_small_pickle_that_refers_to_one_list_a_million_times_is_read(tmp_path, torch):
    shared = [1.0]
    for _ in range(40):
        shared = [shared, shared]
    content = {"model": tensors(torch, state_of()), "x": shared, "config": {"x": shared}}
    torch.save(content, tmp_path / "net.pth")
    assert_same(interop.load(tmp_path / "net.pth").params, params_of(SMALL))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("subprocess.Popen", "commands.Popen"),
        ("builtins.eval", "builtins.eval"),
        ("torch.load", "torch.serialization.load"),
        ("runpy.run_path", "runpy.run_path"),
    ],
)
def test_a_name_of_the_standard_library_is_refused_and_named(file, name, named):
    module, function = name.split(".")

    class Wants:
        def __reduce__(self):
            return getattr(sys.modules[module], function), ("x",)

    __import__(module)
    with pytest.raises(BadInput, match=f"this pickle names {named}, which no weights need: it may run code"):
        interop.load(file({"model": state_of(), "x": Wants()}))


def test_quantised_weights_are_refused(file, torch):
    state = tensors(torch, state_of())
    with warnings.catch_warnings(action="ignore"):  # torch is about to drop them; files have them still
        state["embed.W_E"] = torch.quantize_per_tensor(state["embed.W_E"], 0.1, 0, torch.qint8)
    with pytest.raises(BadInput, match=r"embed.W_E: got 'a quantised tensor'; accepted: a plain tensor"):
        interop.load(file(state))
    with pytest.raises(BadInput, match=r"int8.*quantised"):
        interop.from_state(state_of() | {"embed.W_E": np.ones((6, 12), np.int8)})


# --- formats ----------------------------------------------------------------------------------------------------------


def test_bfloat16_is_read_from_every_format(tmp_path, torch, file):
    safetensors = pytest.importorskip("safetensors.torch")
    rounded = {name: torch.from_numpy(x.copy()).bfloat16() for name, x in state_of(MLP).items()}
    safetensors.save_file(rounded, tmp_path / "net.safetensors")
    expected = {name: x.float().numpy() for name, x in rounded.items()}
    for path in (tmp_path / "net.safetensors", file(rounded)):
        assert_same(interop.load(path).params, expected)


def test_a_git_lfs_pointer_is_called_one(tmp_path):
    for suffix in (".pth", ".npz", ".safetensors"):
        path = tmp_path / f"net{suffix}"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:58\nsize 599071\n")
        with pytest.raises(BadInput, match=r"Git LFS pointer.*git lfs pull"):
            interop.load(path)


FLAX = """
heads = 2
ignore = ["step", "opt_state.*"]
[names]
"embed.W_E" = "params.Embed_0.embedding"
"pos_embed.W_pos" = "params.pos"
"blocks.{}.attn.W_Q" = { name = "params.layer_{}.q.kernel", axes = "D(HK)" }
"blocks.{}.attn.W_K" = { name = "params.layer_{}.k.kernel", axes = "D(HK)" }
"blocks.{}.attn.W_V" = { name = "params.layer_{}.v.kernel", axes = "D(HK)" }
"blocks.{}.attn.W_O" = { name = "params.layer_{}.o.kernel", axes = "(HK)D" }
"blocks.{}.mlp.W_in" = "params.layer_{}.up.kernel"
"blocks.{}.mlp.b_in" = "params.layer_{}.up.bias"
"blocks.{}.mlp.W_out" = { name = "params.layer_{}.down.kernel" }
"unembed.W_U" = { name = "params.out.weight", axes = "CD" }
"""


def flax_tree():
    """SMALL without an output bias, as another JAX program may keep it."""
    flat = state_of(names=LENS)
    tree = {"Embed_0": {"embedding": flat["embed.W_E"]}, "pos": flat["pos_embed.W_pos"]}
    for layer in range(2):
        of = {name.split(".")[-1]: x for name, x in flat.items() if name.startswith(f"blocks.{layer}.")}
        sides = {name: of[f"W_{name.upper()}"].transpose(1, 0, 2).reshape(6, 6) for name in "qkv"}
        tree[f"layer_{layer}"] = {
            **{name: {"kernel": x} for name, x in sides.items()},
            **{"o": {"kernel": of["W_O"].reshape(6, 6)}, "down": {"kernel": of["W_out"]}},
            "up": {"kernel": of["W_in"], "bias": of["b_in"]},
        }
    tree["out"] = {"weight": flat["unembed.W_U"].T}
    return {"step": np.int32(3), "params": tree, "opt_state": {"0": {"mu": {"pos": np.zeros((3, 6), np.float32)}}}}


def write_msgpack(tmp_path, tree):
    from flax.serialization import msgpack_serialize

    (tmp_path / "net.msgpack").write_bytes(msgpack_serialize(tree))
    return tmp_path / "net.msgpack"


def write_orbax(tmp_path, tree):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(tmp_path / "orbax", tree)
    return tmp_path / "orbax"


@pytest.mark.parametrize("write", [write_msgpack, write_orbax])
@pytest.mark.parametrize("whole", [True, False])
def test_checkpoints_of_other_jax_programs_are_read_by_a_map(tmp_path, write, whole):
    tree = flax_tree() if whole else flax_tree()["params"]
    path, names = write(tmp_path, tree), tmp_path / "names.toml"
    names.write_text(FLAX.replace("params.", ""))  # what stands beside an optimiser's state is found by itself
    config, params, _ = interop.load(path, names=str(names))
    expected = params_of(SMALL)
    for layer in range(2):
        expected[f"blocks_{layer}"]["mlp"]["b_out"] = np.zeros(6, np.float32)
    assert config == SMALL
    assert_same(params, expected)


def test_a_folder_of_checkpoints_is_not_one(tmp_path):
    write_orbax(tmp_path, flax_tree())
    with pytest.raises(BadInput, match=r"the folder of one orbax checkpoint, such as .*/orbax"):
        interop.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("heads = 2", ""), "no heads.*heads = N, which blocks.0.attn.W_Q"),
        (lambda t: t.replace("heads = 2", "heads = 4"), "blocks.0.attn.W_Q"),
        (lambda t: t.replace("heads = 2", "heads = 2.5"), "heads in .*got 2.5.*whole number"),
        (lambda t: t.replace('"pos"', '"positions"'), "pos_embed.W_pos = positions.*19 names: step, Embed_0"),
        (lambda t: t.replace('"CD"', '"DC"'), "unembed.W_U"),
        (lambda t: t.replace('"CD"', '"C"'), r"unembed.W_U in .*: got 'C'; accepted: axes of the letters C D"),
        (lambda t: t.replace('"CD"', '"CX"'), r"unembed.W_U in .*: got 'CX'"),
        (lambda t: t.replace('"CD"', '"C(D"'), r"got 'C\(D'"),
        (lambda t: t.replace('"CD"', '"cd"'), "got 'cd'"),
        (lambda t: t.replace('"layer_{}.up.bias"', '"layer_{}.{.bias"'), r"layer_0.\{.bias"),
        (lambda t: "x=" + "[" * 3000, "a TOML file"),
        (lambda t: t.replace('"step", ', ""), "got 'step'; accepted: a map that names every weight"),
        (lambda t: t.replace('"embed.W_E"', '"embed.weight"'), "embed.weight.*our names: embed.W_E"),
        (lambda t: t.replace("ignore", "left_out"), "left_out.*names, heads and ignore"),
        (lambda t: t.replace('"layer_{}.up.bias"', '"layer_0.up.bias"'), "{} for the layer in both names"),
        (lambda t: t.replace('"layer_{}.up.bias"', "3"), "blocks.{}.mlp.b_in in .*got 3"),
        (lambda t: t.replace("[names]", "[nam"), "a TOML file"),
        (lambda t: "heads = 2", r"no \[names\]"),
        (lambda t: t.replace('"unembed.W_U"', '# "'), "got 'out.weight'"),
    ],
)
def test_a_wrong_map_is_named(tmp_path, change, said):
    flat = flatten_dict(flax_tree(), sep=".")
    state = {name.removeprefix("params."): np.asarray(x) for name, x in flat.items()}
    names = tmp_path / "names.toml"
    names.write_text(change(FLAX.replace("params.", "")))
    with pytest.raises(BadInput, match=said):
        interop.from_state(state, names=str(names))


def test_a_map_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"names: got '.*none.toml'; accepted: a TOML file that can be read"):
        interop.from_state(state_of(), names=str(tmp_path / "none.toml"))


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_the_mlp_is_read_transposed_and_without_biases():
    state = {name: x for name, x in state_of(MLP).items() if name.startswith("W_")}
    config, params = interop.from_state({f"mlp.{name}": x.T for name, x in state.items()}, names="transposed")
    assert config == MLP
    for name, x in state.items():
        np.testing.assert_array_equal(params[name], x)
        assert not params[f"b_{name[2:]}"].any()
    # Without biases the shapes alone do not tell p from the width.
    with pytest.raises(BadInput, match="names: got 'shapes that fit both p = 5, d_mlp = 11 and p = 11, d_mlp = 5'"):
        interop.from_state({name: x.T for name, x in state.items()})
    with pytest.raises(BadInput, match=r"names: got 'transposed'.*one-hot MLP"):
        interop.from_state(state_of(), names="transposed")
    of_block = {f"blocks.0.mlp.{name}": x for name, x in state_of(MLP).items()}
    with pytest.raises(BadInput, match=r"no embed.W_E"):
        interop.from_state(of_block)
    with_biases = state_of(MLP)
    turned = {name: x.T for name, x in with_biases.items()}
    assert_same(interop.from_state(turned)[1], params_of(MLP))


def test_a_mask_that_is_not_causal_is_seen():
    seen = state_of() | {"blocks.0.attn.mask": np.ones((3, 3), np.float32)}
    with pytest.raises(BadInput, match=r"blocks.0.attn.mask: got 'a mask that is not causal'"):
        interop.from_state(seen)
    assert interop.from_state(seen, attention="full")[0].attention == "full"


def test_sequences_without_equals_are_told_by_their_positions():
    pizza = Config(p=11, n_heads=2, d_model=6, d_mlp=5, sequence="xy", attention="full", attn_coeff=0.5)
    state = interop.to_state(pizza, params_of(pizza))
    config, params = interop.from_state(state, attention="full", attn_coeff=0.5)
    assert config == pizza
    assert_same(params, params_of(pizza))
    # A network that has a token "=" and three positions, and was never given them.
    config, params = interop.from_state(state_of(), sequence="xy")
    assert (config.p, config.sequence) == (11, "xy")
    assert params["embed"]["W_E"].shape == (11, 6)
    assert params["pos_embed"]["W_pos"].shape == (2, 6)
    with pytest.raises(BadInput, match="sequence: got 'xy'"):
        interop.from_state(state | {"pos_embed.W_pos": np.ones((5, 6), np.float32)}, sequence="xy")


def test_tied_embeddings_are_read_where_they_are_asked_for():
    tied = Config(p=11, n_heads=2, d_model=6, d_mlp=5, tied="yes")
    params = params_of(tied)
    exported = interop.to_state(tied, params)
    np.testing.assert_array_equal(exported["unembed.W_U"], params["embed"]["W_E"].T)
    with pytest.raises(BadInput, match="tied: got 'yes'"):
        interop.from_state(exported, tied="yes")
    del exported["unembed.W_U"]
    config, back = interop.from_state(exported, tied="yes")
    assert config == tied
    assert_same(back, params)
    with pytest.raises(BadInput, match=r"no unembed.W_U"):
        interop.from_state(exported)


def test_refusals_name_what_was_found():
    state = {"tok_emb.weight": np.ones((12, 6)), "blocks.0.ln1.weight": np.ones(6)}
    state |= {f"x{i}": np.ones(2) for i in range(22)}
    said = "no embed.W_E.*the file has 24 names: tok_emb.weight, blocks.0.ln1.weight, x0, x1, x2, ...; LayerNorm or "
    with pytest.raises(BadInput, match=f"{said}another norm: not in this network"):
        interop.from_state(state)
    for name, what in (
        ("blocks.0.ln1_post.w", "LayerNorm or another norm"),
        ("blocks.0.attn.rotary_sin", "rotary positions"),
        ("blocks.0.mlp.W_gate", "a gated MLP"),
        ("blocks.0.mlp.W_in.weight_scale", "quantised weights"),
    ):
        with pytest.raises(BadInput, match=f"weights: got '{name}'.*{what}: not in this network"):
            interop.from_state(state_of() | {name: np.ones(6)})


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_split_drawn_by_torch_is_torchs(torch):
    config = Config(p=11)
    for seed, frac, n in ((598, None, 36), (0, 0.4, 48)):
        split, about = splits.split_of_file(config, {}, frac, None, f"torch:{seed}", 0)
        torch.manual_seed(seed)
        np.testing.assert_array_equal(split.train, torch.randperm(121)[:n])
        assert about == {"seed": seed, "generator": "torch", "frac_train": n / 121}
        np.testing.assert_array_equal(split.labels, make_task(config).labels(0))


def test_a_split_of_a_task_that_leaves_pairs_out_has_none_of_them(tmp_path, torch):
    config, path = Config(task="x/y", p=7), tmp_path / "pairs.npy"
    task = make_task(config)
    np.save(path, task.split_indices(0.5, 0)[0])
    split, about = splits.split_of_file(config, {}, 0.5, None, str(path), 0)
    assert about["frac_train"] == 0.5
    np.testing.assert_array_equal(split.train, measures.split_of(config, 0.5, 0).train)
    of_torch, _ = splits.chosen_pairs("torch:3", task, 0.5)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(3)).numpy()
    np.testing.assert_array_equal(of_torch, task.pairs_defined[order[:21]])
    np.save(path, np.array([1, 2, 7]))
    with pytest.raises(
        BadInput, match=r"split: got 'the pair \(1, 0\)'; accepted: pairs that have an answer in task x/y"
    ):
        splits.split_of_file(config, {}, None, None, str(path), 0)


def test_a_split_is_read_from_a_file_in_every_form(tmp_path, file):
    p, numbers = 11, np.array([5, 120, 0, 33])
    pairs = np.stack(np.divmod(numbers, p), axis=1)
    mask = np.zeros(p * p, bool)
    mask[numbers] = True
    np.save(tmp_path / "numbers.npy", numbers)
    np.savez(tmp_path / "two.npz", train_idx=numbers, pairs=pairs)
    torch_pairs = file([tuple(map(int, pair)) for pair in pairs], "pairs.pth")
    tokens = file({"train_data": np.concatenate([pairs, np.full((4, 1), p)], axis=1)}, "tokens.pth")
    for split in ("numbers.npy", "two.npz", "two.npz:pairs", torch_pairs.name, f"{tokens.name}:train_data"):
        found, about = splits.split_of_file(Config(p=p), {}, None, None, str(tmp_path / split), 0)
        np.testing.assert_array_equal(found.train, numbers)
        assert about == {"from": str(tmp_path / split), "frac_train": 4 / 121}
    np.testing.assert_array_equal(splits.as_numbers(mask, p, "mask"), np.sort(numbers))
    np.testing.assert_array_equal(splits.as_numbers(mask.reshape(p, p), p, "mask"), np.sort(numbers))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("torch:x", "torch:SEED, with a whole number"),
        ("torch:99999999999999999999", "torch:SEED, with a whole number below"),
        ("one.npy:key", "one.npy alone: it holds one array"),
        ("bad.npy", "damaged"),
        ("huge.npy", "damaged"),
        ("x.txt", r"a name that ends in .npy .pth"),
        ("none.npy", "FILE.*that exists"),
        ("two.npz:test", "a key of the file: x y"),
        ("two.npz", "a key of the file"),
        ("two.npz:x", r"int64\[3\].*different numbers below 121"),
        ("two.npz:y", r"float64\[3\]"),
    ],
)
def test_a_split_that_is_none_is_named(tmp_path, split, said):
    np.savez(tmp_path / "two.npz", x=np.array([3, 4, 3]), y=np.ones(3))
    np.save(tmp_path / "one.npy", np.arange(4))
    (tmp_path / "bad.npy").write_bytes((tmp_path / "one.npy").read_bytes()[:90])
    (tmp_path / "huge.npy").write_bytes((tmp_path / "one.npy").read_bytes().replace(b"(4,), }  ", b"(10**17,),}"))
    (tmp_path / "x.txt").write_text("1 2")
    split = split if split.startswith("torch") else str(tmp_path / split)
    pytest.importorskip("torch")
    with pytest.raises(BadInput, match=f"split: got .*{said}"):
        splits.split_of_file(Config(p=11), {}, None, None, split, 0)


def test_a_fraction_that_disagrees_with_the_split_is_refused():
    recorded = {"train_indices": np.arange(60)}
    with pytest.raises(BadInput, match=r"frac: got 0.3; accepted: 0.495868: the split has 60 of the 121 pairs"):
        splits.split_of_file(Config(p=11), recorded, 0.3, None, None, 0)
    split, _ = splits.split_of_file(Config(p=11), recorded, 1, None, None, 0)
    assert len(split.train) == 121
    for frac in (60 / 121, 60.9 / 121, 59.1 / 121):  # programs round up or down
        assert len(splits.split_of_file(Config(p=11), recorded, frac, None, None, 0)[0].train) == 60
    with pytest.raises(BadInput, match=r"frac: got 0.0001"):
        splits.split_of_file(Config(p=11), {}, 0.0001, None, "torch:0", 0)


def test_recorded_pairs_that_are_none_are_passed_over_or_named():
    for recorded in ({"train_data": "data.csv"}, {"is_train": True}, {"train_pairs": np.ones((3, 11))}):
        assert splits.split_of_file(Config(p=11), recorded, None, None, None, 0)[1]["seed"] == 0
    with pytest.raises(BadInput, match=r"split: got 'train_idx: int64\[2\]'.*--split or --split-seed"):
        splits.split_of_file(Config(p=11), {"train_idx": np.array([3, 500])}, None, None, None, 0)
    large = np.array([[250, 3], [7, 255]], np.uint8)
    np.testing.assert_array_equal(splits.as_numbers(large, 300, "x"), [250 * 300 + 3, 7 * 300 + 255])
    with pytest.raises(BadInput, match="a ragged list"):
        splits.as_numbers([[1, 2], [3]], 11, "x")


def test_a_network_of_every_pair_has_no_test_loss(tmp_path):
    config = Config(p=11, n_heads=2, d_model=6, d_mlp=5)
    interop.save(tmp_path / "net.npz", config, params_of(config))
    subject = subjects.subject_of_file(tmp_path / "net.npz", frac=1)
    measured = subjects.measure_subject(subject)
    plain = subjects.subject_to_json(subject, measured)
    assert plain["loss"]["test"] is None
    assert plain["loss"]["train"] == pytest.approx(plain["loss"]["all"], rel=1e-6)


# --- doubts -----------------------------------------------------------------------------------------------------------


KEYS = [1, 3]


def grokked(scale=30.0):
    """An MLP with act square that answers every pair, by a cosine of each key."""
    p, k = 11, np.array(KEYS)
    angles = 2 * np.pi * np.outer(np.arange(p), k) / p
    # (cos(u + t) + cos(v + t))^2 holds cos(u + v + 2 t). Four phases t leave nothing else that depends on the class.
    phases = np.arange(4) * np.pi / 4
    W_in = np.concatenate([np.cos(angles + t) for t in phases], axis=1)
    W_out = np.concatenate([np.cos(angles.T + 2 * t) for t in phases])
    params = {"W_in": W_in, "b_in": np.zeros(8), "W_out": scale * W_out, "b_out": np.zeros(p)}
    return {name: x.astype(np.float32) for name, x in params.items()}


def test_doubts_are_told_where_the_split_may_be_wrong(tmp_path):
    def lines(params, **options):
        np.savez(tmp_path / "net.npz", **params)
        subject = subjects.subject_of_file(tmp_path / "net.npz", act="square", **options)
        return subjects.remarks(subject, subjects.measure_subject(subject))

    assert any("the loss is the same on both halves" in line for line in lines(grokked(0.5)))
    assert not any("same on both halves" in line for line in lines(grokked(0.5), frac=1))
    untrained = params_of(MLP)
    assert any("chance 2.4), train accuracy" in line and "has not learned" in line for line in lines(untrained))


# --- lists, logits, and the command -----------------------------------------------------------------------------------


def test_a_list_is_measured_with_the_keys_of_its_last(file, tmp_path, capsys):
    small = Config(p=11, n_heads=2, d_model=6, d_mlp=5)
    content = {"checkpoints": [state_of(small, seed) for seed in range(3)], "checkpoint_epochs": [9, 19, 29]}
    path, out = file(content), tmp_path / "out.json"
    assert main([str(path), "--entry", "checkpoints", "--frac", "0.4", "--json", str(out)]) == 0
    found, said = json.loads(out.read_text()), capsys.readouterr().out
    assert [x["split"]["epoch"] for x in found] == [9, 19, 29]
    assert {tuple(x["key_frequencies"]["keys"]) for x in found} == {tuple(found[-1]["key_frequencies"]["found"])}
    assert "checkpoints[1]   19" in said
    alone = tmp_path / "alone.json"
    assert main([str(path), "--entry", "checkpoints[2]", "--frac", "0.4", "--json", str(alone)]) == 0
    last = json.loads(alone.read_text())
    assert last["ablation_loss"] == found[2]["ablation_loss"]
    assert main([str(path), "--entry", "checkpoints", "--export", str(tmp_path / "x.npz")]) == 2
    drawn = tmp_path / "drawn"
    assert main([str(path), "--entry", "checkpoints", "--frac", "0.4", "--figures", str(drawn)]) == 0
    assert {"losses.png", "keys.png", "alpha-over-training.png", "spectra.png"} <= {x.name for x in drawn.iterdir()}
    assert "no epochs" not in capsys.readouterr().out


def test_a_list_of_one_network_repeated_is_said_to_be(file, tmp_path, capsys):
    small = Config(p=11, n_heads=2, d_model=6, d_mlp=5)
    path = file({"state_dicts": [state_of(small)] * 3})
    assert main([str(path), "--entry", "state_dicts"]) == 0
    assert "all 3 networks are the same" in capsys.readouterr().out
    assert main([str(path), "--entry", "state_dicts", "--figures", str(tmp_path / "drawn")]) == 0
    assert "the file names no epochs" in capsys.readouterr().out


def test_logits_give_what_needs_no_weights(tmp_path):
    config = Config(p=11, arch="mlp", d_mlp=8, act="square")
    params = grokked(2.0)
    split, keys = measures.split_of(config, 0.4, 3), np.isin(np.arange(1, 6), KEYS)
    ours = jax.tree.map(np.asarray, measures.all(config, params, split, keys, 3))
    logits = np.asarray(run_network(config, params).all_logits)
    for shape in ((11, 11, 11), (121, 11)):
        np.save(tmp_path / "logits.npy", logits.reshape(shape))
        found = subjects.measure_logits(tmp_path / "logits.npy", frac=0.4, split_seed=3)
        assert found.json["key_frequencies"]["keys"] == KEYS
        for name in ("loss", "accuracies", "restricted_loss", "logit_fve", "logit_approximation_loss", "alpha"):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found.measured[name], ours[name])
        for name in ("excluded_loss", "excluded_loss_per_key"):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), found.measured[name], ours[name])
        kept = [x["ablation_loss"]["keep_key_blocks"] for x in (found.measured, ours)]
        np.testing.assert_allclose(*kept, rtol=1e-4)


def test_logits_that_are_none_are_refused(tmp_path, capsys):
    path = tmp_path / "logits.npy"
    for array, said in (
        (np.ones((5, 5, 4)), r"float64\[5, 5, 4\]"),
        (np.ones((5, 5, 5), int), "int64"),
        (np.full((5, 5, 5), np.nan), "finite"),
        (np.ones(()), "floats of shape"),
        (np.full((5, 5, 5), 1e300), "finite numbers of float32"),
    ):
        np.save(path, array)
        assert main(["--logits", str(path)]) == 2
        assert re.search(said, capsys.readouterr().err)
    np.save(path, np.ones((5, 5, 5)))
    for flags, said in (
        (["--p", "7"], r"\(7, 7, 7\)"),
        (["--run", "3"], "--run: got 3; accepted: without --logits"),
        (["net.npz"], "net.npz and --logits"),
        (["--p", "0"], "--p: got '?0'?"),
        (["--split", "torch:1", "--split-seed", "3"], "--split-seed: got 3; accepted: without --split"),
    ):
        assert main(["--logits", str(path), *flags]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert main([]) == 2
    path.write_bytes(b"no array")
    assert main(["--logits", str(path)]) == 2


def test_the_command_reads_a_named_entry_under_other_names_on_another_split(tmp_path, capsys):
    pytest.importorskip("torch")
    names = tmp_path / "names.toml"
    names.write_text(FLAX.replace("params.", ""))
    path = write_msgpack(tmp_path, flax_tree())
    flags = ["--names", str(names), "--split", "torch:598", "--frac", "0.4", "--json", str(tmp_path / "x.json")]
    assert main([str(path), *flags, "--entry", "params"]) == 0
    about = json.loads((tmp_path / "x.json").read_text())["split"]
    assert about == {"seed": 598, "generator": "torch", "frac_train": 48 / 121, "act": "relu"}
    for more, said in (
        (["--split-seed", "3"], "--split-seed: got 3; accepted: without --split"),
        (["--entry", "ema"], "--entry: got 'ema'; accepted: a network in .*: params"),
    ):
        assert main([str(path), *flags, *more]) == 2
        assert re.search(said, capsys.readouterr().err)


def test_the_command_reads_an_orbax_folder_and_converts_it(tmp_path, capsys):
    names = tmp_path / "names.toml"
    names.write_text(FLAX.replace("params.", ""))
    folder, out = write_orbax(tmp_path, flax_tree()), tmp_path / "out.npz"
    assert main([str(folder), "--names", str(names), "--export", str(out)]) == 0
    assert interop.load(out).config == SMALL
    assert main([str(tmp_path), "--names", str(names)]) == 2
    assert re.search("such as .*/orbax", capsys.readouterr().err)


def test_square_is_a_square():
    config = Config(p=11, arch="mlp", d_mlp=8, act="square")
    params, tokens = grokked(2.0), make_task(config).pairs(np.arange(121), 0).tokens
    logits, _ = make_model(config, make_task(config)).apply({"params": params}, tokens)
    one_hot = np.eye(11)[tokens[:, 0]] + np.eye(11)[tokens[:, 1]]
    expected = (one_hot @ params["W_in"]) ** 2 @ params["W_out"]
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert jnp.array_equal(logits[:, 0].argmax(axis=1), tokens[:, :2].sum(axis=1) % 11)


def test_every_format_is_known_by_its_ending():
    with pytest.raises(BadInput, match=r"\.msgpack"):
        weight_files.contents("net.h5")
