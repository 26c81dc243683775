"""Reads and writes networks as files of weights, under the authors' names or TransformerLens's.

    imported = interop.load("weights.pth")                  # imported.config, imported.params, imported.recorded
    interop.save("out.safetensors", config, params, names="transformer_lens")

Both use the same names (`blocks.0.attn.W_Q`). The shapes differ, and tell the two apart. TABLE states them with one
letter per dimension: V input vocabulary, S positions, D residual, H heads, K head width, M neurons, C classes, P
residue. A network without MLP weights is `attn_only`. A file does not say what a network is for: the caller gives its
task and its residual factor.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgrok.config import CHOICES, BadInput, Config, task_of
from jaxgrok.nets.entries import Picked, State, in_list, pick
from jaxgrok.nets.model import NORM_EPS, Params, context, make_model, unembedding
from jaxgrok.nets.name_map import Sizes, axes_of, kind_of, listed, read_map, rearrange, shape_of
from jaxgrok.nets.weight_files import contents, optional, read, write
from jaxgrok.task_names import is_operation, mixed_of
from jaxgrok.tasks import make_task


class Layout(Enum):
    """Whose shapes an array has. The values are words for messages.

    TRANSFORMER_LENS: TransformerLens's shapes, which are also ours.
    AUTHORS: the shapes of the authors' code for the modular tasks.
    AUTHORS_LATER: those of their later code, for the other tasks, which keeps W_O per head. They are read, and drawn
        for the tasks of that code, but never written.
    TRANSPOSED: of the MLP network alone, those of PyTorch's linear layers. They are read, never written.
    """

    AUTHORS = "authors"
    TRANSFORMER_LENS = "transformer_lens"
    AUTHORS_LATER = "authors, W_O per head"
    TRANSPOSED = "transposed"


OURS = Layout.TRANSFORMER_LENS
NAMES = ("authors", "transformer_lens")  # what a caller may give as `names` for a file that is written,
READ_NAMES = (*NAMES, "transposed")  # and for one that is read, beside a map of names

# kind of weight: (our dimensions, the authors'). "D(HK)" has one axis of size H times K. {} is the layer.
W_O = "blocks.{}.attn.W_O"
TABLE = {
    "embed.W_E": ("VD", "DV"),
    "pos_embed.W_pos": ("SD", "SD"),
    "blocks.{}.attn.W_Q": ("HDK", "HKD"),
    "blocks.{}.attn.W_K": ("HDK", "HKD"),
    "blocks.{}.attn.W_V": ("HDK", "HKD"),
    W_O: ("HKD", "D(HK)"),
    "blocks.{}.mlp.W_in": ("DM", "MD"),
    "blocks.{}.mlp.b_in": ("M", "M"),
    "blocks.{}.mlp.W_out": ("MD", "DM"),
    "blocks.{}.mlp.b_out": ("D", "D"),
    "unembed.W_U": ("DC", "DC"),
}
# The norms of a network that has them. RMSNorm has no b.
NORM_TABLE = {
    f"{norm}.{name}": ("D", "D") for norm in ("blocks.{}.ln1", "blocks.{}.ln2", "ln_final") for name in ("w", "b")
}
W_O_PER_HEAD = "HDK"  # in AUTHORS_LATER, which is otherwise AUTHORS
# The one-hot MLP has names of its own, and the same shapes everywhere.
MLP_TABLE = {"W_in": ("PM", "PM"), "b_in": ("M", "M"), "W_out": ("MP", "MP"), "b_out": ("P", "P")}
DIMS = TABLE | NORM_TABLE | MLP_TABLE
OUR_DIMS = {kind: ours for kind, (ours, _) in DIMS.items()}
# The kinds of weights of each architecture.
KINDS = {
    "transformer": tuple(TABLE),
    "attn_only": tuple(kind for kind in TABLE if ".mlp." not in kind),
    "mlp": tuple(MLP_TABLE),
}
# A file may lack these; then they are zero.
BIASES = ("blocks.{}.mlp.b_in", "blocks.{}.mlp.b_out", "b_in", "b_out")
# A program may put something before every name (`module.`, `_orig_mod.`, `model.`). These tell where a name begins.
ANCHORS = ("embed.W_E", "W_in")
# The authors' attention-only class gives its blocks this prefix. It is read, never written.
ATTN_BLOCKS = "attn_blocks."

# Biases that others have and our networks lack. They must be zero in a file that is read, and are written as zero for
# TransformerLens.
ZERO_BIASES = {
    "blocks.{}.attn.b_Q": "HK",
    "blocks.{}.attn.b_K": "HK",
    "blocks.{}.attn.b_V": "HK",
    "blocks.{}.attn.b_O": "D",
    "unembed.b_U": "C",
}
# What our networks do not have, by how programs name its weights.
FOREIGN = {
    "LayerNorm or another norm": r"(^|[._])(ln|norm|layer_?norm|rms_?norm|batch_?norm|bn)(_|\d|\.|$|f\b|final)",
    "rotary positions": r"rotary|rope",
    "quantised weights": r"zero_point|qweight|weight_scale|_packed",
    "low-rank updates": r"lora_",
    "a gated MLP": r"W_gate|gate_proj",
}
BUFFERS = ("blocks.{}.attn.mask", "blocks.{}.attn.IGNORE", "basis")  # others' constants: ignored where they are read


class Imported(NamedTuple):
    """A network from a file.

    config: its sizes are the file's; the task, activation function and residual factor are those that the caller gave.
    params: numpy arrays in our shapes.
    recorded: what the file held beside its weights and is plain: numbers and settings (train_loss, config, ...), and
        lists of numbers as arrays (train_losses, train_indices, ...). `other_entries` says where other networks are in
        the file, as `entry` takes it, and `entry_epoch` the epoch of one that lies in a dictionary by epoch.
    """

    config: Config
    params: Params
    recorded: dict[str, Any]


class Weights(NamedTuple):
    """A network as its names and shapes describe it, whatever its task.

    arrays: the weights in our shapes, by name. dims: the dimensions that each had in the file.
    """

    arch: str
    arrays: State
    dims: dict[str, str]
    sizes: Sizes


# --- names and shapes -------------------------------------------------------------------------------------------------


def _layer(name: str) -> int | None:
    """`blocks.3.attn.W_Q` -> 3."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def _dims(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """The dimensions of each of these weights in a layout."""
    found = {}
    for name in names:
        ours, authors = DIMS[kind_of(name)]
        if layout is Layout.TRANSPOSED:
            found[name] = ours[::-1]
        elif layout is Layout.AUTHORS_LATER and kind_of(name) == W_O:
            found[name] = W_O_PER_HEAD
        else:
            found[name] = ours if layout is OURS else authors
    return found


def _sizes(arrays: State, dims: dict[str, str]) -> Sizes:
    """The size of each letter. Raises BadInput for the first array whose shape fits none."""
    sizes: Sizes = {}
    # Plain axes first, so that a product of two is only ever checked.
    for name in sorted(dims, key=lambda name: "(" in dims[name]):
        axes, shape = axes_of(dims[name]), arrays[name].shape
        expected = ", ".join("*".join(str(sizes.get(letter, letter)) for letter in axis) for axis in axes)
        if len(axes) != len(shape):
            raise BadInput(name, shape, f"a shape ({expected})")
        for axis, size in zip(axes, shape, strict=True):
            known = sizes.setdefault(axis, size) if len(axis) == 1 else math.prod(sizes[letter] for letter in axis)
            if known != size:
                raise BadInput(name, shape, f"a shape ({expected})")
    return sizes


def _check_names(names: str) -> None:
    if names not in NAMES:
        raise BadInput("names", names, " or ".join(NAMES))


def _fit(arrays: State, names: str | None) -> tuple[dict[str, str], Sizes]:
    """The dimensions of each array, and the sizes, in the layout that fits all shapes.

    Raises BadInput if no layout fits, or if several do and disagree about the dimensions.
    """
    fitting, refusals, is_mlp = {}, {}, "W_in" in arrays
    for layout in Layout:
        if names is not None and not layout.value.startswith(names):
            continue
        if layout is Layout.TRANSPOSED and not is_mlp:
            if names == layout.value:
                raise BadInput("names", names, f"{' or '.join(NAMES)}; transposed is of the one-hot MLP alone")
            continue
        dims = _dims(arrays, layout)
        try:
            fitting[layout] = dims, _sizes(arrays, dims)
        except BadInput as error:
            refusals[layout] = error
    if not fitting:
        likely = _likely_layout(arrays)
        raise refusals[likely] if likely in refusals else next(iter(refusals.values()))
    found = list(fitting.values())
    if any(dims != found[0][0] for dims, _ in found):
        if is_mlp:
            both = " and ".join(dict.fromkeys(f"p = {sizes['P']}, d_mlp = {sizes['M']}" for _, sizes in found))
            accepted = "transposed, if the weights are (out, in) as in PyTorch's linear layers; else transformer_lens"
        else:
            both, accepted = " and ".join(layout.value for layout in fitting), " or ".join(NAMES)
        raise BadInput("names", f"shapes that fit both {both}", f"the names argument: {accepted}")
    return found[0]


def _likely_layout(arrays: State) -> Layout:
    """Whose file this is, judged by W_E alone, so that a message names what is odd in the other weights."""
    if "embed.W_E" not in arrays or "pos_embed.W_pos" not in arrays:
        return OURS
    return OURS if arrays["embed.W_E"].shape[-1:] == arrays["pos_embed.W_pos"].shape[-1:] else Layout.AUTHORS


# --- state dictionaries -----------------------------------------------------------------------------------------------


def _as_float(name: str, x: Any) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype in (np.float16, jnp.bfloat16):
        return x.astype(np.float32)
    if x.dtype not in (np.float32, np.float64):
        raise BadInput(name, str(x.dtype), "bfloat16, float16, float32 or float64; quantised weights are not read")
    return x


def _weights_of(state: Mapping[str, Any], arch: str, may_lack: tuple[str, ...] = (), full: bool = True) -> State:
    """The weights that this architecture has, all in one dtype.

    may_lack: kinds that may be missing. full: whether attention may see every position.

    Raises BadInput for a missing or an unknown name, for a dtype that is not a float's, and for a bias that our
    networks lack and that is not zero.
    """
    kinds = (*KINDS[arch], *_norm_kinds(arch, _norm_of(state)))
    layers = sorted({layer for name in state if (layer := _layer(name)) is not None})
    if layers != list(range(len(layers))):
        raise BadInput("layers", layers, "blocks.0, blocks.1, ... without a gap")
    # A state without blocks lacks blocks.0, and the message says so. A kind without {} has one weight.
    wanted = [kind.format(layer) for kind in kinds for layer in (range(max(len(layers), 1)) if "{}" in kind else [0])]
    for name in wanted:
        if name not in state and kind_of(name) not in may_lack:
            own = f"the names of the authors' code or TransformerLens's ({', '.join(kinds[:3])}, ...), or a map to them"
            accepted = f"{own}, names = FILE.toml; the file has {listed(state)}{_foreign(state)}"
            raise BadInput("weights", f"no {name}", accepted)
    _check_extra_names(state, arch, kinds, full)
    arrays = {name: _as_float(name, state[name]) for name in wanted if name in state}
    for name, x in arrays.items():
        if not x.size:
            raise BadInput(name, x.shape, "a shape without a zero")
    dtype = np.result_type(*arrays.values())
    return {name: x.astype(dtype) for name, x in arrays.items()}


def _foreign(names: Iterable[str]) -> str:
    """What the names say of a network that ours do not have, as the end of a message."""
    found = [what for what, pattern in FOREIGN.items() if any(re.search(pattern, name) for name in names)]
    return f"; {' and '.join(found)}: not in this network" if found else ""


def _norm_of(names: Collection[str]) -> str:
    """The norm of a network with these names of weights."""
    found = {kind_of(name) for name in names} & set(NORM_TABLE)
    return "none" if not found else "layernorm" if any(kind.endswith(".b") for kind in found) else "rmsnorm"


def _norm_kinds(arch: str, norm: str) -> tuple[str, ...]:
    """The kinds of weights of a norm in an architecture."""
    if norm == "none" or arch == "mlp":
        return ()
    absent = (".b",) if norm == "rmsnorm" else ()
    kinds = [kind for kind in NORM_TABLE if not kind.endswith(absent)]
    return tuple(kind for kind in kinds if arch == "transformer" or "ln2" not in kind)


def _check_extra_names(state: Mapping[str, Any], arch: str, kinds: Collection[str], full: bool) -> None:
    tolerated = BUFFERS if arch == "mlp" else (*ZERO_BIASES, *BUFFERS)
    for name, x in state.items():
        if kind_of(name) in kinds:
            continue
        if kind_of(name) not in tolerated:
            raise BadInput("weights", name, f"only {' '.join(kinds)}{_foreign([name])}")
        if name.endswith("attn.mask") and not full and np.any(np.triu(np.asarray(x, float), 1)):
            raise BadInput(
                name, "a mask that is not causal", 'a causal mask; attention = "full" reads the network without one'
            )
        if kind_of(name) in ZERO_BIASES and np.any(np.asarray(x)):
            raise BadInput(name, "a bias that is not zero", "zeros: this network has no such bias")


def _nest(flat: State) -> Params:
    """{"blocks.0.attn.W_Q": x} -> {"blocks_0": {"attn": {"W_Q": x}}}, as Flax has it."""
    return unflatten_dict({re.sub(r"blocks\.(\d+)", r"blocks_\1", name): x for name, x in flat.items()}, sep=".")


def by_name(params: Params) -> dict[str, Any]:
    """Parameters under TransformerLens's names: {"blocks_0": {"attn": {"W_Q": x}}} -> {"blocks.0.attn.W_Q": x}."""
    return {name.replace("blocks_", "blocks."): x for name, x in flatten_dict(params, sep=".").items()}


def _renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays without a prefix that all names share, and with `attn_blocks.N` as `blocks.N`.

    Raises BadInput for a state that has blocks under both names.
    """
    first = next((name for anchor in ANCHORS for name in state if f".{name}".endswith(f".{anchor}")), "")
    prefix = first.removesuffix(next((anchor for anchor in ANCHORS if first.endswith(anchor)), first))
    if "blocks." not in f".{prefix}" and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): x for name, x in state.items()}
    older = [name for name in state if name.startswith(ATTN_BLOCKS)]
    current = [name for name in state if name.startswith("blocks.")]
    if older and current:
        raise BadInput("weights", f"{older[0]} beside {current[0]}", "blocks of one name")
    return {name.removeprefix("attn_") if name in older else name: x for name, x in state.items()}


def _arch_of(names: Collection[str]) -> str:
    if "W_in" in names and not any(name.endswith(("embed", "W_E", "W_Q")) for name in names):
        return "mlp"
    return "transformer" if any(".mlp." in name for name in names) else "attn_only"


def _weights_from(
    state: Mapping[str, Any], names: str | None = None, tied: bool = False, full: bool = False
) -> Weights:
    """The network of a state dictionary. tied: it has no W_U. full: its attention sees every position.

    Raises BadInput if its names or shapes are not a network's.
    """
    if names is not None and str(names).endswith(".toml"):
        state, names = read_map(names).apply(state, OUR_DIMS), OURS.value
    if names is not None and names not in READ_NAMES:
        raise BadInput("names", names, f"{' or '.join(READ_NAMES)}, or a map: FILE.toml")
    state = _renamed(state)
    arch = _arch_of(state)
    if tied and "unembed.W_U" in state:
        raise BadInput("tied", "yes", "for weights without unembed.W_U; these have one")
    arrays = _weights_of(state, arch, (*BIASES, "unembed.W_U") if tied else BIASES, full)
    dims, sizes = _fit(arrays, names)
    sizes = {"C": sizes.get("V", 0), **sizes}
    if arch != "mlp" and sizes["H"] * sizes["K"] != sizes["D"]:
        H, D, K = (sizes[letter] for letter in "HDK")
        raise BadInput("blocks.0.attn.W_Q", (H, D, K), f"heads times head width equal to d_model = {D}")
    ours = _dims(arrays, OURS)
    arrays = {name: rearrange(x, dims[name], ours[name], sizes) for name, x in arrays.items()}
    return Weights(arch, arrays | _missing_biases(arrays, arch, sizes), dims, sizes)


def _missing_biases(arrays: State, arch: str, sizes: Sizes) -> State:
    """The biases that a network of this architecture has and a file lacks: zeros."""
    dtype = next(iter(arrays.values())).dtype
    names = {kind.format(layer) for kind in BIASES if kind in KINDS[arch] for layer in range(max(_n_layers(arrays), 1))}
    return {name: np.zeros(shape_of(OUR_DIMS[kind_of(name)], sizes), dtype) for name in sorted(names - set(arrays))}


def _n_layers(state: State) -> int:
    return sum(name.endswith("attn.W_Q") for name in state)


def _config_of(weights: Weights, task: str, fields: dict[str, Any]) -> Config:
    """The config, with these fields, of a network for a task. Raises BadInput if the sizes are not the task's."""
    sizes, task = weights.sizes, task_of(task)
    fields = {**fields, "task": task, "arch": weights.arch, "dtype": str(next(iter(weights.arrays.values())).dtype)}
    if weights.arch == "mlp":
        return Config(**fields, p=sizes["P"], d_mlp=sizes["M"])
    fields |= {
        "n_layers": _n_layers(weights.arrays),
        "n_heads": sizes["H"],
        "d_model": sizes["D"],
        "d_mlp": sizes.get("M"),
        "norm": _norm_of(weights.arrays),
    }
    if is_operation(task):
        return _modular_config(sizes, fields)
    return _other_config(weights, fields)


def _modular_config(sizes: Sizes, fields: dict[str, Any]) -> Config:
    V, S, D, C = (sizes[letter] for letter in "VSDC")
    if fields.get("sequence", "xy" if S == 2 else "xy=") == "xy":
        # A network of three positions may be given two of them, and no "=".
        p = {2: V, 3: V - 1}.get(S, 0)
        if p < 2 or C not in (p, V):
            raise BadInput(
                "sequence", "xy", f"with 2 or 3 positions and p or p + 1 classes; this network has {S} and {C}"
            )
        return Config(**{**fields, "sequence": "xy"}, p=p)
    if S != 3:
        raise BadInput("pos_embed.W_pos", (S, D), f'a shape (3, {D}): x, y and "=", or (2, {D}) without "="')
    if C not in (V, V - 1):
        accepted = f'a shape ({D}, {V}) or ({D}, {V - 1}): the {V - 1} numbers, with or without "="'
        raise BadInput("unembed.W_U", (D, C), accepted)
    return Config(**fields, p=V - 1)


def _other_config(weights: Weights, fields: dict[str, Any]) -> Config:
    sizes = weights.sizes
    if operations := mixed_of(fields["task"]):
        fields = {**fields, "p": sizes["V"] - 1 - len(operations)}
    config = Config(**fields)
    task = make_task(config)
    for name, letter, wanted in (
        ("embed.W_E", "V", task.d_vocab),
        ("unembed.W_U", "C", task.d_vocab_out),
        ("pos_embed.W_pos", "S", task.n_ctx),
    ):
        may_be_longer = letter == "S" and not config.listed
        if sizes[letter] < wanted or (sizes[letter] > wanted and not may_be_longer):
            dims, more = weights.dims[name], " or longer" if may_be_longer else ""
            accepted = f"a shape {shape_of(dims, sizes | {letter: wanted})}{more}, as in task {config.task}"
            raise BadInput(name, shape_of(dims, sizes), accepted)
    return config if task.n_ctx == sizes["S"] else dataclasses.replace(config, n_ctx=sizes["S"])


def from_state(
    state: Mapping[str, Any],
    *,
    task: str = "add",
    act: str = "relu",
    names: str | None = None,
    residual_factor: float = 1.0,
    **fields: Any,
) -> tuple[Config, Params]:
    """The config and the parameters of a state dictionary {name: array}.

    Sizes come from the shapes, and float16 becomes float32. For a modular task W_U may have p classes or p + 1: the
    parameters keep what the file has. For another task W_pos may be longer than the task's sequences.

    names: `authors`, `transformer_lens`, `transposed` (of the MLP network, where p is also its width), or the path of a
        map of other names (`name_map`). None means whichever the shapes fit.
    fields: others of the config that no shape shows: seq_len, repeat_len, n_repeats or n_tokens, if the task's
        sequences are not as published; sequence, attention, attn_coeff, tied. Two positions mean sequence `xy`.

    Raises BadInput for names or shapes that are not those of a network for the task.
    """
    weights = _weights_from(state, names, fields.get("tied") == "yes", fields.get("attention") == "full")
    config = _config_of(weights, task, {"act": act, "residual_factor": residual_factor, **fields})
    arrays = weights.arrays
    if config.sequence == "xy" and config.arch != "mlp":
        arrays |= {"embed.W_E": arrays["embed.W_E"][: config.p], "pos_embed.W_pos": arrays["pos_embed.W_pos"][:2]}
    return config, _nest(arrays)


def to_state(config: Config, params: Params, names: str = "authors") -> State:
    """A state dictionary {name: array} in the authors' shapes or TransformerLens's.

    Their classes load it with strict checks, because it also has their buffers and their biases, as zeros. Tied
    embeddings are written as two arrays. It does not hold the residual factor, nor attn_coeff and attention;
    TransformerLens has none but 1, and causal attention.

    Raises BadInput for an unknown `names`, and for parameters that are not a network of the config's architecture.
    """
    _check_names(names)
    layout = Layout(names)
    if config.norm != "none" and layout is Layout.AUTHORS:
        raise BadInput("names", names, f"transformer_lens for a network with {config.norm}, which the authors' has not")
    if config.tied == "yes":
        params = {**params, "unembed": {"W_U": np.asarray(unembedding(params))}}
    flat = _weights_of(by_name(params), config.arch)
    ours, theirs = _dims(flat, OURS), _dims(flat, layout)
    sizes = _sizes(flat, ours)
    state = {name: rearrange(x, ours[name], theirs[name], sizes) for name, x in flat.items()}
    if config.arch != "mlp":
        state |= _constants(_n_layers(state), sizes, layout, flat["embed.W_E"].dtype)
    return state


def _constants(n_layers: int, sizes: Sizes, layout: Layout, dtype: np.dtype) -> State:
    """What a transformer of theirs has beside our weights: the causal masks and, in TransformerLens, zero biases."""
    causal = np.tril(np.ones((sizes["S"], sizes["S"])))
    mask_dtype = np.float32 if layout is Layout.AUTHORS else bool
    state: State = {f"blocks.{layer}.attn.mask": causal.astype(mask_dtype) for layer in range(n_layers)}
    if layout is Layout.TRANSFORMER_LENS:
        state |= {f"blocks.{layer}.attn.IGNORE": np.array(-np.inf, np.float32) for layer in range(n_layers)}
        for kind, dims in ZERO_BIASES.items():
            for layer in range(n_layers if "{}" in kind else 1):
                state[kind.format(layer)] = np.zeros(shape_of(dims, sizes), dtype)
    return state


# --- files ------------------------------------------------------------------------------------------------------------


PLAIN = (bool, int, float, str, type(None))
UNREAD = ("optimizer", "optimizer_state_dict", "scheduler")  # numbers that say nothing of the network


def _settings(beside: dict[str, Any], deeper: bool = True) -> dict[str, Any]:
    """What a file held beside its weights and is plain: numbers, strings, dictionaries of them, and lists of numbers,
    which become arrays."""
    found: dict[str, Any] = {}
    for name, x in beside.items():
        if not isinstance(name, str):
            continue
        if isinstance(x, np.ndarray | np.generic) and np.ndim(x) == 0:
            found[name] = np.asarray(x).item()
        elif isinstance(x, dict) and deeper and name not in UNREAD and (plain := _settings(x, deeper=False)):
            found[name] = plain
        elif isinstance(x, PLAIN):
            found[name] = x
        elif isinstance(x, list | np.ndarray) and (array := _numbers(x)) is not None:
            found[name] = array
    return found


def _numbers(x: Any) -> np.ndarray | None:
    """A list of numbers, or of short lists of them as long as each other, as an array; None for another."""
    if isinstance(x, list) and any(isinstance(y, list) and any(isinstance(z, list) for z in y) for y in x):
        return None
    try:
        array = np.asarray(x)
    except ValueError:
        return None
    return array if array.dtype.kind in "biuf" and array.ndim < 3 else None


# What TransformerLens's configuration must say for the network to be one of ours.
OF_OURS: dict[str, tuple[Any, ...]] = {
    "normalization_type": (None, "LN", "RMS"),
    "attention_dir": ("causal",),
    "positional_embedding_type": ("standard",),
    "parallel_attn_mlp": (False,),
    "use_local_attn": (False,),
    "gated_mlp": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "use_attn_scale": (True,),
}
UNNAMED = ""  # settings that do not name the norm
OF_ACT = ("act_fn", "act_type", "activation", "act", "act_name")  # how programs name the activation function


def _act_recorded(recorded: dict[str, Any], options: dict[str, Any]) -> str | None:
    """The activation function that the file's settings name, if they do and the caller names none.

    Raises BadInput if it is none of ours, or if the settings are TransformerLens's and describe another network.
    """
    settings = recorded.get("config", recorded.get("cfg"))
    if not isinstance(settings, dict):
        return None
    settings = {name: x for name, x in settings.items() if isinstance(x, PLAIN)}
    if "normalization_type" in settings:
        for name, accepted in OF_OURS.items():
            is_asked = name == "attention_dir" and options.get("attention") == "full"
            if name in settings and settings[name] not in accepted and not is_asked:
                raise BadInput(f"{name} in the file", settings[name], " or ".join(map(str, accepted)))
        eps = settings.get("eps")
        if settings["normalization_type"] and isinstance(eps, float) and not math.isclose(eps, NORM_EPS):
            raise BadInput("eps in the file", eps, f"{NORM_EPS:g}, under the root of a norm")
        scale, width = settings.get("attn_scale"), settings.get("d_head")
        if isinstance(scale, float) and isinstance(width, int) and scale > 0 and not math.isclose(scale**2, width):
            raise BadInput("attn_scale in the file", scale, f"sqrt(d_head) = {math.sqrt(width):.4g}")
    if options["act"] is not None:
        return None
    named = {name: x.lower() for name in OF_ACT if isinstance(x := settings.get(name), str)}
    for name, act in named.items():
        if act not in CHOICES["act"]:
            accepted = f"{' '.join(CHOICES['act'])}; if it is one of these by another name, give act"
            raise BadInput(f"{name} in the file", settings[name], accepted)
    return next(iter(named.values()), None)


def load(
    path: str | PathLike[str],
    *,
    entry: str | None = None,
    task: str = "add",
    act: str | None = None,
    names: str | None = None,
    residual_factor: float = 1.0,
    **fields: Any,
) -> Imported:
    """The network in a file. `weight_files.read` and `from_state` say what is accepted.

    entry: which network, if the file holds several: `ema`, `checkpoints[400]`. act: None means what the file's settings
    name, and relu if they name none.

    Raises BadInput, which names what is wrong.
    """
    options = {"task": task, "act": act, "names": names, "residual_factor": residual_factor, **fields}
    return _imported(pick(contents(path), entry, str(path)), options)


def _imported(found: Picked, options: dict[str, Any]) -> Imported:
    recorded = _settings(found.beside)
    act = _act_recorded(recorded, options) or options["act"] or "relu"
    config, params = from_state(found.state, **{**options, "act": act})
    settings = recorded.get("config", recorded.get("cfg"))
    named = settings.get("normalization_type", UNNAMED) if isinstance(settings, dict) else UNNAMED
    if named != UNNAMED and {"none": None, "layernorm": "LN", "rmsnorm": "RMS"}[config.norm] != named:
        accepted = f"the norm of its weights, which are those of a network with norm {config.norm}"
        raise BadInput("normalization_type in the file", named, accepted)
    of_file = {"other_entries": found.others, "entry_epoch": found.epoch}
    return Imported(config, params, {**recorded, **of_file})


def load_list(path: str | PathLike[str], entry: str, **options: Any) -> dict[str, Imported]:
    """The networks in a list of a file, by where they are: `checkpoints` gives `checkpoints[0]`, `checkpoints[1]`, ...

    options: as `load` takes them. The dictionary is empty if the file has no such list; `entry` may name one network.

    Raises BadInput as `load` does.
    """
    content = contents(path)
    options = {"act": None, **options}
    return {where: _imported(pick(content, where, str(path)), options) for where in in_list(content, entry)}


def save(path: str | PathLike[str], config: Config, params: Params, names: str = "authors") -> None:
    """Write a network's weights to a .pth, .safetensors or .npz file. The file is replaced atomically.

    Raises BadInput as `to_state` does, and for a place that cannot be written.
    """
    write(path, to_state(config, params, names))


# --- initial weights --------------------------------------------------------------------------------------------------


def draw_with_torch(config: Config, seed: int) -> Params:
    """The initial weights that the authors' code draws from torch's CPU generator with this seed, in our shapes.

    The order is W_E, W_pos, then per layer W_K, W_Q, W_V, W_O, W_in, W_out, then W_U. Each is drawn in the authors'
    shape as standard normal numbers divided by sqrt(d_model), W_U by sqrt(classes). Biases are zero (spec:
    EXPERIMENTS.md A0). The authors' W_O is flat for the modular tasks. For the others it is per head, as in their later
    code.

    Raises BadInput for the MLP, which the authors' code does not have, and if torch is not installed.
    """
    if config.norm != "none":
        raise BadInput("init", "torch", f"with norm none; the authors' code has no {config.norm}")
    if config.arch == "mlp":
        raise BadInput("init", "torch", f"with arch transformer; the authors' code draws no {config.arch}")
    torch, task, kinds = optional("torch", "init", "torch"), make_task(config), KINDS[config.arch]
    sizes = {"V": task.d_vocab, "S": context(config, task), "C": task.d_vocab_out}
    sizes |= {"D": config.d_model, "H": config.n_heads, "K": config.d_head, "M": config.mlp_width}
    theirs = _dims(kinds, Layout.AUTHORS if config.modular else Layout.AUTHORS_LATER)
    ours = _dims(kinds, OURS)
    generator = torch.Generator().manual_seed(seed)

    def draw(kind: str, n: int) -> np.ndarray:
        drawn = torch.randn(shape_of(theirs[kind], sizes), generator=generator) / np.sqrt(n)
        return rearrange(drawn.numpy(), theirs[kind], ours[kind], sizes).astype(config.dtype)

    weights = ("attn.W_K", "attn.W_Q", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")
    in_order = [kind for kind in (f"blocks.{{}}.{weight}" for weight in weights) if kind in kinds]
    biases = [kind for kind in ("blocks.{}.mlp.b_in", "blocks.{}.mlp.b_out") if kind in kinds]
    flat = {kind: draw(kind, config.d_model) for kind in ("embed.W_E", "pos_embed.W_pos")}
    for layer in range(config.n_layers):
        flat |= {kind.format(layer): draw(kind, config.d_model) for kind in in_order}
        flat |= {kind.format(layer): np.zeros(shape_of(ours[kind], sizes), config.dtype) for kind in biases}
    return _nest(flat if config.tied == "yes" else flat | {"unembed.W_U": draw("unembed.W_U", task.d_vocab_out)})


def initial_weights(init: str) -> Callable[[Config, int], Params]:
    """A function of a config and a seed that returns the weights a run starts from.

    init: `torch`, for `draw_with_torch`, or a file of weights. The file is read once, here, and every seed starts from
        it.

    Raises BadInput, named init, if the file holds no network. The function that is returned raises it for a config that
    the file's weights do not fit.
    """
    if init == "torch":
        return draw_with_torch
    try:
        state = read(init).state
        given = _weights_from(state, tied=not any(name.endswith("unembed.W_U") for name in state)).arrays
    except BadInput as error:
        accepted = error.accepted if error.name == "file" else f"the weights of a network ({error})"
        raise BadInput("init", init, accepted) from None

    def weights(config: Config, seed: int) -> Params:
        wanted = _shapes_of(config)
        for name in sorted({*given, *wanted}):
            theirs, ours = (f"{name} {x[name].shape}" if name in x else f"no {name}" for x in (given, wanted))
            if theirs != ours:
                raise BadInput("init", f"{init} with {theirs}", f"{ours}, as the sweep's task and model have it")
        return _nest({name: x.astype(config.dtype) for name, x in given.items()})

    return weights


def _shapes_of(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    task = make_task(config)
    tokens = np.zeros((1, task.n_ctx), np.int32)
    return by_name(jax.eval_shape(make_model(config, task).init, jax.random.key(0), tokens)["params"])
