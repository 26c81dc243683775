"""Weights from elsewhere and for elsewhere: .pth, .safetensors and .npz, under the authors' names or TransformerLens's.

    imported = interop.load("weights.pth")                  # imported.config, imported.params, imported.recorded
    interop.save("out.safetensors", config, params, names="transformer_lens")

The names are the same in both worlds (`blocks.0.attn.W_Q`); the shapes differ, and tell them apart. TABLE below states
them, one letter a dimension: V input vocabulary, S positions, D residual, H heads, K head width, M neurons, C classes,
P residue. A network without MLP weights is `attn_only`. Of what a network is for, its task and its residual factor, a file
says nothing.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgrok.config import MODULAR, BadInput, Config
from jaxgrok.nets.model import make_model
from jaxgrok.nets.weight_files import optional, read, write
from jaxgrok.tasks import make_task

# name: (our dimensions, the authors', TransformerLens's); "D(HK)" is one axis of H times K.
TABLE = {
    "embed.W_E": ("VD", "DV", "VD"),
    "pos_embed.W_pos": ("SD", "SD", "SD"),
    "blocks.{}.attn.W_Q": ("HDK", "HKD", "HDK"),
    "blocks.{}.attn.W_K": ("HDK", "HKD", "HDK"),
    "blocks.{}.attn.W_V": ("HDK", "HKD", "HDK"),
    "blocks.{}.attn.W_O": ("HKD", "D(HK)", "HKD"),
    "blocks.{}.mlp.W_in": ("DM", "MD", "DM"),
    "blocks.{}.mlp.b_in": ("M", "M", "M"),
    "blocks.{}.mlp.W_out": ("MD", "DM", "MD"),
    "blocks.{}.mlp.b_out": ("D", "D", "D"),
    "unembed.W_U": ("DC", "DC", "DC"),
}
# The MLP has no names but its own, and one shape in every world.
MLP_TABLE = {"W_in": ("PM",) * 3, "b_in": ("M",) * 3, "W_out": ("MP",) * 3, "b_out": ("P",) * 3}
TABLES = {
    "transformer": TABLE,
    "attn_only": {name: dims for name, dims in TABLE.items() if ".mlp." not in name},
    "mlp": MLP_TABLE,
}
LAYOUTS = {"authors": 1, "transformer_lens": 2}
# The authors' later class keeps W_O per head. Read, and drawn for the tasks of that class; never written.
PER_HEAD_W_O = {"blocks.{}.attn.W_O": "HDK"}
# Their attention-only class has another name for its blocks. Read, never written.
ATTN_BLOCKS = "attn_blocks."

# What others have and our network lacks: read where it is zero, and written as zero for TransformerLens.
ZERO_BIASES = {
    "blocks.{}.attn.b_Q": "HK",
    "blocks.{}.attn.b_K": "HK",
    "blocks.{}.attn.b_V": "HK",
    "blocks.{}.attn.b_O": "D",
    "unembed.b_U": "C",
}
BUFFERS = ("blocks.{}.attn.mask", "blocks.{}.attn.IGNORE")


class Imported(NamedTuple):
    """A network from a file: config (task, activation function and residual factor as the caller says), params (numpy, in our
    shapes), and recorded, the plain numbers and settings that a .pth held beside its weights (train_loss, config, ...)."""

    config: Config
    params: dict
    recorded: dict


class Weights(NamedTuple):
    """A network as names and shapes tell it, whatever its task: arch, arrays {name: our shape}, dims {name: the dimensions in the
    file} and sizes {letter: size}."""

    arch: str
    arrays: dict[str, np.ndarray]
    dims: dict[str, str]
    sizes: dict[str, int]


# --- names and shapes -------------------------------------------------------------------------------------------------------


def _layer_of(name: str) -> tuple[str, int | None]:
    """`blocks.3.attn.W_Q` -> (`blocks.{}.attn.W_Q`, 3)."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (f"blocks.{{}}.{match[2]}", int(match[1])) if match else (name, None)


def _axes(dims: str) -> list[str]:
    """`D(HK)` -> ["D", "HK"]."""
    return [group.strip("()") for group in re.findall(r"\(\w+\)|\w", dims)]


def _rearrange(x, source: str, target: str, sizes: dict):
    """x with dimensions `source` as an array with dimensions `target`, both as TABLE states them."""
    letters = "".join(_axes(source))
    split = x.reshape([sizes[letter] for letter in letters])
    moved = split.transpose([letters.index(letter) for letter in "".join(_axes(target))])
    return np.ascontiguousarray(moved.reshape([int(np.prod([sizes[letter] for letter in axis])) for axis in _axes(target)]))


def _sizes(shapes: dict, table: dict) -> dict:
    """{letter: size} that gives every name its shape; table {name: dimensions}. Raises BadInput for the first that does not fit."""
    sizes = {}
    # Plain axes first, so that a product of two is only ever checked.
    for name in sorted(table, key=lambda name: "(" in table[name]):
        axes, shape = _axes(table[name]), shapes[name]
        expected = ", ".join("*".join(str(sizes.get(letter, letter)) for letter in axis) for axis in axes)
        if len(axes) != len(shape):
            raise BadInput(name, shape, f"a shape ({expected})")
        for axis, size in zip(axes, shape, strict=True):
            known = sizes.setdefault(axis, size) if len(axis) == 1 else int(np.prod([sizes[letter] for letter in axis]))
            if known != size:
                raise BadInput(name, shape, f"a shape ({expected})")
    return sizes


def _candidates(table: dict, names) -> dict[str, dict]:
    """{layout: {name: dimensions}} for these names; a third for the authors' later W_O."""
    layouts = {layout: {name: table[_layer_of(name)[0]][column] for name in names} for layout, column in LAYOUTS.items()}
    later = {name: PER_HEAD_W_O.get(_layer_of(name)[0], dims) for name, dims in layouts["authors"].items()}
    return layouts | ({} if table is MLP_TABLE else {"authors, W_O per head": later})


def _fit(shapes: dict, table: dict, names: str | None) -> tuple[dict, dict]:
    """(dimensions of each name, sizes) of the layout that fits all shapes. Raises BadInput where none does, or two say different things."""
    fitting, refusals = {}, {}
    for layout, dims in _candidates(table, shapes).items():
        if names is not None and not layout.startswith(names):
            continue
        try:
            fitting[layout] = dims, _sizes(shapes, dims)
        except BadInput as error:
            refusals[layout] = error
    if not fitting:
        # W_E says which world the file is of, so that the message is about what is odd in it.
        of_D = shapes["pos_embed.W_pos"][-1:] if "pos_embed.W_pos" in shapes else ()
        likely = "transformer_lens" if shapes.get("embed.W_E", ())[-1:] == of_D else "authors"
        raise refusals.get(likely) or next(iter(refusals.values()))
    if len(fitting) > 1 and table is not MLP_TABLE:
        raise BadInput("names", "shapes that fit both " + " and ".join(fitting), "the names argument: " + " or ".join(LAYOUTS))
    return next(iter(fitting.values()))


# --- state dictionaries -------------------------------------------------------------------------------------------------------


def _as_float(name: str, x) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype == np.float16:
        return x.astype(np.float32)
    if x.dtype not in (np.float32, np.float64):
        raise BadInput(name, str(x.dtype), "float16, float32 or float64")
    return x


def _weights_of(state: dict, table: dict) -> dict[str, np.ndarray]:
    """The arrays that TABLE names. Raises BadInput for a missing or unknown name, or a bias of ours that is not zero there."""
    layers = {layer for name in state if (layer := _layer_of(name)[1]) is not None}
    if layers and sorted(layers) != list(range(len(layers))):
        raise BadInput("layers", sorted(layers), "blocks.0, blocks.1, ... without a gap")
    wanted = [name.format(layer) for name in table for layer in (sorted(layers or {0}) if "{}" in name else [0])]
    for name in wanted:
        if name not in state:
            raise BadInput("weights", f"no {name}", "all of " + " ".join(table))
    for name, x in state.items():
        general = _layer_of(name)[0]
        if general in ZERO_BIASES and table is not MLP_TABLE:
            if np.any(np.asarray(x)):
                raise BadInput(name, "a bias that is not zero", "zeros: this network has no such bias")
        elif general not in table and (table is MLP_TABLE or general not in BUFFERS):
            raise BadInput("weights", name, "only " + " ".join(table))
    arrays = {name: _as_float(name, state[name]) for name in wanted}
    dtype = np.result_type(*arrays.values())
    return {name: x.astype(dtype) for name, x in arrays.items()}


def _nest(flat: dict) -> dict:
    """{"blocks.0.attn.W_Q": x} -> {"blocks_0": {"attn": {"W_Q": x}}}, as Flax has it."""
    return unflatten_dict({re.sub(r"blocks\.(\d+)", r"blocks_\1", name): x for name, x in flat.items()}, sep=".")


def by_name(params: dict) -> dict:
    """{"blocks_0": {"attn": {"W_Q": x}}} -> {"blocks.0.attn.W_Q": x}: parameters under TransformerLens's names."""
    return {name.replace("blocks_", "blocks."): x for name, x in flatten_dict(params, sep=".").items()}


def _renamed(state: dict) -> dict:
    """The same arrays with `attn_blocks.N` as `blocks.N`. Raises BadInput for a state with both."""
    older = [name for name in state if name.startswith(ATTN_BLOCKS)]
    both = [name for name in state if name.startswith("blocks.")] if older else []
    if both:
        raise BadInput("weights", f"{older[0]} beside {both[0]}", "blocks of one name")
    return {name.removeprefix("attn_") if name in older else name: x for name, x in state.items()}


def _weights_from(state: dict, names: str | None = None) -> Weights:
    """The network of a state dictionary. Raises BadInput for names or shapes that are none of TABLES."""
    if names is not None and names not in LAYOUTS:
        raise BadInput("names", names, " or ".join(LAYOUTS))
    state = _renamed(state)
    arch = "mlp" if "W_in" in state else "transformer" if any(".mlp." in name for name in state) else "attn_only"
    table = TABLES[arch]
    arrays = _weights_of(state, table)
    dims, sizes = _fit({name: x.shape for name, x in arrays.items()}, table, names)
    ours = {name: _rearrange(x, dims[name], table[_layer_of(name)[0]][0], sizes) for name, x in arrays.items()}
    if arch != "mlp" and sizes["H"] * sizes["K"] != sizes["D"]:
        H, D, K = (sizes[letter] for letter in "HDK")
        raise BadInput("blocks.0.attn.W_Q", (H, D, K), f"heads times head width equal to d_model = {D}")
    return Weights(arch, ours, dims, sizes)


def _config_of(weights: Weights, task: str, fields: dict) -> Config:
    """The config with these fields of a network for a task. Raises BadInput where its sizes are not the task's."""
    sizes = weights.sizes
    fields = {**fields, "task": task, "arch": weights.arch, "dtype": str(next(iter(weights.arrays.values())).dtype)}
    if weights.arch == "mlp":
        return Config(**fields, p=sizes["P"], d_mlp=sizes["M"])
    V, S, D, C = (sizes[letter] for letter in "VSDC")
    layers = sum(name.endswith("attn.W_Q") for name in weights.arrays)
    fields |= {"n_layers": layers, "n_heads": sizes["H"], "d_model": D, "d_mlp": sizes.get("M")}
    if task in MODULAR:
        if S != 3:
            raise BadInput("pos_embed.W_pos", (S, D), f'a shape (3, {D}): x, y and "=", as in the modular tasks')
        if C not in (V, V - 1):
            raise BadInput("unembed.W_U", (D, C), f'a shape ({D}, {V}) or ({D}, {V - 1}): the {V - 1} numbers, with or without "="')
        return Config(**fields, p=V - 1)
    config = Config(**fields)
    made = make_task(config)
    names, least = ("embed.W_E", "unembed.W_U", "pos_embed.W_pos"), (made.d_vocab, made.d_vocab_out, made.n_ctx)
    for name, letter, wanted, more in zip(names, "VCS", least, ("", "", " or longer")):
        if sizes[letter] < wanted or (sizes[letter] > wanted and not more):
            shape, fitting = (tuple(known[axis] for axis in weights.dims[name]) for known in (sizes, sizes | {letter: wanted}))
            raise BadInput(name, shape, f"a shape {fitting}{more}, as in task {task}")
    return config if made.n_ctx == S else dataclasses.replace(config, n_ctx=S)


def from_state(
    state: dict, *, task: str = "add", act: str = "relu", names: str | None = None, residual_factor: float = 1.0, **task_fields
) -> tuple[Config, dict]:
    """(config, params) of a state dictionary {name: array}; sizes come from the shapes, float16 becomes float32.

    names: `authors` or `transformer_lens`; None: whichever the shapes fit. task_fields: seq_len, repeat_len, n_repeats, n_tokens,
    where a task's sequences are not as published. For a modular task W_U may have p classes or p + 1: params keep what the file
    has. For another, W_pos may be longer than its sequences. Raises BadInput for names or shapes that are not a network for the task.
    """
    weights = _weights_from(state, names)
    config = _config_of(weights, task, {"act": act, "residual_factor": residual_factor, **task_fields})
    return config, _nest(weights.arrays)


def to_state(config: Config, params: dict, names: str = "authors") -> dict[str, np.ndarray]:
    """{name: array} under the authors' shapes or TransformerLens's; loads in their classes as a whole, buffers and zero biases too.

    The residual factor is not in it; TransformerLens has none but 1. Raises BadInput for an unknown `names`, or parameters that
    are not of the config's shapes.
    """
    if names not in LAYOUTS:
        raise BadInput("names", names, " or ".join(LAYOUTS))
    table = TABLES[config.arch]
    flat = _weights_of({name: np.asarray(x) for name, x in by_name(params).items()}, table)
    ours = {name: table[_layer_of(name)[0]][0] for name in flat}
    sizes = _sizes({name: x.shape for name, x in flat.items()}, ours)
    if config.arch == "mlp":
        return flat
    state = {name: _rearrange(x, ours[name], table[_layer_of(name)[0]][LAYOUTS[names]], sizes) for name, x in flat.items()}
    causal, dtype = np.tril(np.ones((sizes["S"], sizes["S"]))), flat["embed.W_E"].dtype
    for layer in range(config.n_layers):
        state[f"blocks.{layer}.attn.mask"] = causal.astype(np.float32 if names == "authors" else bool)
    if names == "transformer_lens":
        for layer in range(config.n_layers):
            state[f"blocks.{layer}.attn.IGNORE"] = np.array(-np.inf, np.float32)
        for name, dims in ZERO_BIASES.items():
            for layer in range(config.n_layers if "{}" in name else 1):
                state[name.format(layer)] = np.zeros([sizes[letter] for letter in dims], dtype)
    return state


# --- files ------------------------------------------------------------------------------------------------------------------


def _settings(beside: dict) -> dict:
    """The plain numbers, strings and dictionaries of these among what a .pth held beside its weights."""
    found = {}
    for name, x in beside.items():
        if isinstance(x, np.ndarray | np.generic) and np.ndim(x) == 0:
            found[name] = np.asarray(x).item()
        elif isinstance(x, bool | int | float | str):
            found[name] = x
        elif isinstance(x, dict) and all(isinstance(value, bool | int | float | str | None) for value in x.values()):
            found[name] = dict(x)
    return found


def load(path, *, task: str = "add", act: str = "relu", names: str | None = None, residual_factor: float = 1.0, **task_fields) -> Imported:
    """A network from a file; `weight_files.read` and `from_state` say what is accepted. Raises BadInput, naming the trouble."""
    state, beside = read(path)
    network = from_state(state, task=task, act=act, names=names, residual_factor=residual_factor, **task_fields)
    return Imported(*network, _settings(beside))


def save(path, config: Config, params: dict, names: str = "authors") -> None:
    """Write a network's weights as .pth, .safetensors or .npz; the file is replaced whole. Raises BadInput as `to_state` does, and for
    a place that cannot be written."""
    write(path, to_state(config, params, names))


# --- weights to start from ----------------------------------------------------------------------------------------------


def draw_with_torch(config: Config, seed: int) -> dict:
    """The initial weights that the authors' code draws from torch's CPU generator with this seed, in our shapes.

    Their order: W_E, W_pos, then per layer W_K, W_Q, W_V, W_O, W_in, W_out, then W_U; each standard normal, in their
    shape, over sqrt(d_model), W_U over sqrt(classes); biases zero (spec: EXPERIMENTS.md A0). Their shape of W_O is flat for the
    modular tasks, and per head, as in their later code, for the others. Raises BadInput for the MLP, which their code does not
    have, and without torch.
    """
    if config.arch == "mlp":
        raise BadInput("init", "torch", f"with arch transformer; the authors' code draws no {config.arch}")
    torch, task, table = optional("torch", "init", "torch"), make_task(config), TABLES[config.arch]
    sizes = {"V": task.d_vocab, "S": config.n_ctx or task.n_ctx, "D": config.d_model, "H": config.n_heads, "K": config.d_head}
    sizes |= {"M": config.mlp_width, "C": task.d_vocab_out}
    later = {} if config.modular else PER_HEAD_W_O
    generator = torch.Generator().manual_seed(seed)

    def draw(name, n):
        ours, theirs = table[name][0], later.get(name, table[name][LAYOUTS["authors"]])
        shape = [int(np.prod([sizes[letter] for letter in axis])) for axis in _axes(theirs)]
        drawn = torch.randn(shape, generator=generator) / np.sqrt(n)
        return _rearrange(drawn.numpy(), theirs, ours, sizes).astype(config.dtype)

    in_order = [f"blocks.{{}}.{name}" for name in ("attn.W_K", "attn.W_Q", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")]
    biases = [name for name in ("blocks.{}.mlp.b_in", "blocks.{}.mlp.b_out") if name in table]
    flat = {name: draw(name, config.d_model) for name in ("embed.W_E", "pos_embed.W_pos")}
    for layer in range(config.n_layers):
        flat |= {name.format(layer): draw(name, config.d_model) for name in in_order if name in table}
        flat |= {name.format(layer): np.zeros(sizes[table[name][0]], config.dtype) for name in biases}
    return _nest(flat | {"unembed.W_U": draw("unembed.W_U", task.d_vocab_out)})


def initial_weights(init: str) -> Callable[[Config, int], dict]:
    """What runs start from, a function of config and seed: `torch`, or a file, which is read here, once, and gives every seed the same.

    Raises BadInput, named init, for a file that holds no network; the function does for a config that the weights do not fit.
    """
    if init == "torch":
        return draw_with_torch
    try:
        given = _weights_from(read(init)[0]).arrays
    except BadInput as error:
        raise BadInput("init", init, error.accepted if error.name == "file" else f"the weights of a network ({error})") from None

    def weights(config: Config, seed: int) -> dict:
        task = make_task(config)
        tokens = np.zeros((1, task.n_ctx), np.int32)
        wanted = by_name(jax.eval_shape(make_model(config, task).init, jax.random.key(0), tokens)["params"])
        for name in sorted({*given, *wanted}):
            theirs, ours = (f"{name} {x[name].shape}" if name in x else f"no {name}" for x in (given, wanted))
            if theirs != ours:
                raise BadInput("init", f"{init} with {theirs}", f"{ours}, as the sweep's task and model have it")
        return _nest({name: x.astype(config.dtype) for name, x in given.items()})

    return weights
