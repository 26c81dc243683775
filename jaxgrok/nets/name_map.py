"""Weights under another program's names, by a small TOML file that says which is which.

    heads = 4                                # where one axis holds all heads side by side
    ignore = ["opt_state.*"]                 # what the network does not need

    [names]
    "embed.W_E" = "params.Embed_0.embedding"
    "blocks.{}.attn.W_Q" = { name = "params.layer_{}.q.kernel", axes = "D(HK)" }
    "blocks.{}.mlp.W_in" = { name = "params.layer_{}.Dense_0.kernel", axes = "DM" }

On the left are our names, on the right those of the file. {} is the number of a layer. `axes` states the file's axes by
the letters of `interop.TABLE`: V input vocabulary, S positions, D residual, H heads, K width of a head, M neurons, C
classes; P residue, for the MLP network. Without it they are TransformerLens's, which are also ours. (HK) is one
axis, on which H varies slowest. Weights that the network has and the map does not name must be biases, which are then
zero.
"""

import fnmatch
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgrok.config import BadInput
from jaxgrok.nets.entries import State

Sizes = dict[str, int]  # the size of each letter
AXES = re.compile(r"([A-Z]|\([A-Z]+\))+")


def axes_of(dims: str) -> list[str]:
    """`D(HK)` -> ["D", "HK"]."""
    return [group.strip("()") for group in re.findall(r"\(\w+\)|\w", dims)]


def shape_of(dims: str, sizes: Sizes) -> tuple[int, ...]:
    """The shape that these dimensions have."""
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in axes_of(dims))


def rearrange(x: np.ndarray, source: str, target: str, sizes: Sizes) -> np.ndarray:
    """x, whose dimensions are `source`, as an array whose dimensions are `target`."""
    letters = "".join(axes_of(source))
    split = x.reshape([sizes[letter] for letter in letters])
    moved = split.transpose([letters.index(letter) for letter in "".join(axes_of(target))])
    return np.ascontiguousarray(moved.reshape(shape_of(target, sizes)))


class Theirs(NamedTuple):
    """A weight in the file: its name, and its dimensions; None means ours."""

    name: str
    axes: str | None


class NameMap(NamedTuple):
    """What a map says: their weight for each of our names, the number of heads, and the names to be left out."""

    path: str
    names: dict[str, Theirs]
    heads: int | None
    ignore: tuple[str, ...]

    def apply(self, state: Mapping[str, Any], ours: Mapping[str, str]) -> State:
        """The weights under our names and in our dimensions.

        ours: the dimensions of each kind of weight that a network may have.

        Raises BadInput for a name that the file lacks, for a weight that the map neither names nor leaves out, and for
        a shape that does not fit its axes.
        """
        theirs = dict(self._of_layers(state))
        unknown = sorted(set(kind_of(name) for name in theirs) - set(ours))
        if unknown:
            raise BadInput(self.path, unknown[0], f"our names: {' '.join(ours)}")
        dims = {name: weight.axes or ours[kind_of(name)] for name, weight in theirs.items()}
        for name, axes in dims.items():
            letters = set("".join(axes_of(ours[kind_of(name)])))
            if not AXES.fullmatch(axes) or sorted("".join(axes_of(axes))) != sorted(letters):
                raise BadInput(f"{name} in {self.path}", axes, f"axes of the letters {' '.join(sorted(letters))}")
        arrays = {name: np.asarray(state[weight.name]) for name, weight in theirs.items()}
        left = set(state) - {weight.name for weight in theirs.values()}
        left = {name for name in left if not any(fnmatch.fnmatch(name, pattern) for pattern in self.ignore)}
        if left:
            raise BadInput(self.path, min(left), "a map that names every weight of the file, or has it under ignore")
        sizes = self._sizes(arrays, dims)
        return {name: rearrange(x, dims[name], ours[kind_of(name)], sizes) for name, x in arrays.items()}

    def _of_layers(self, state: Mapping[str, Any]) -> Iterable[tuple[str, Theirs]]:
        """Our name and theirs of every weight, with the layers counted out."""
        for name, (their_name, axes) in self.names.items():
            if "{}" not in name:
                found = [(name, their_name)]
            else:
                layers = range(len(state))
                pairs = [tuple(x.replace("{}", str(layer)) for x in (name, their_name)) for layer in layers]
                found = [pair for pair in pairs if pair[1] in state] or pairs[:1]
            for ours, theirs in found:
                if theirs not in state:
                    raise BadInput(self.path, f"{name} = {theirs}", f"a name of the file: {listed(state)}")
                yield ours, Theirs(theirs, axes)

    def _sizes(self, arrays: State, dims: dict[str, str]) -> Sizes:
        """The size of each letter. Raises BadInput for the first array whose shape fits none."""
        sizes: Sizes = {} if self.heads is None else {"H": self.heads}
        # Plain axes first, so that at most one letter of a product is unknown.
        for name in sorted(dims, key=lambda name: "(" in dims[name]):
            axes, shape = axes_of(dims[name]), arrays[name].shape
            if len(axes) != len(shape) or 0 in shape:
                raise BadInput(name, shape, f"axes {dims[name]}, as {self.path} has it")
            for axis, size in zip(axes, shape, strict=True):
                unknown = [letter for letter in axis if letter not in sizes]
                known = math.prod(sizes[letter] for letter in axis if letter in sizes)
                if len(unknown) > 1:
                    raise BadInput(self.path, "no heads", f"heads = N, which {name} with its axis ({axis}) needs")
                if size % known or (not unknown and size != known):
                    raise BadInput(name, shape, f"axes {dims[name]} with {axis} = {known}, as other weights have it")
                sizes |= {letter: size // known for letter in unknown}
        return sizes


def kind_of(name: str) -> str:
    """`blocks.3.attn.W_Q` -> `blocks.{}.attn.W_Q`."""
    return re.sub(r"^blocks\.\d+\.", "blocks.{}.", name)


def listed(state: Mapping[str, Any], most: int = 5) -> str:
    """The names of a state dictionary, or the first of many: `24 names: tok_emb.weight, ...`."""
    names = list(state)
    return f"{len(names)} names: {', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def read_map(path: str | PathLike[str]) -> NameMap:
    """The map in a TOML file. Raises BadInput for a file that is none."""
    text = str(path)
    try:
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise BadInput("names", text, f"a TOML file that can be read ({error.strerror or error})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput("names", text, f"a TOML file ({error})") from None
    extra = sorted(set(content) - {"names", "heads", "ignore"})
    if extra:
        raise BadInput(text, extra[0], "names, heads and ignore")
    given, heads, ignore = content.get("names"), content.get("heads"), content.get("ignore", [])
    if not isinstance(given, dict) or not given:
        raise BadInput(text, "no [names]", 'a table [names] with lines such as "embed.W_E" = "tok_emb.weight"')
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or heads < 1):
        raise BadInput(f"heads in {text}", heads, "a whole number from 1")
    if not isinstance(ignore, list) or not all(isinstance(pattern, str) for pattern in ignore):
        raise BadInput(f"ignore in {text}", ignore, 'a list of names, such as ["opt_state.*"]')
    return NameMap(text, {name: _theirs(text, name, value) for name, value in given.items()}, heads, tuple(ignore))


def _theirs(path: str, ours: str, value: Any) -> Theirs:
    if isinstance(value, str):
        value = {"name": value}
    is_known = isinstance(value, dict) and "name" in value and set(value) <= {"name", "axes"}
    if not is_known or not all(isinstance(x, str) for x in value.values()):
        raise BadInput(f"{ours} in {path}", value, '"their name" or { name = "their name", axes = "D(HK)" }')
    if ("{}" in ours) != ("{}" in value["name"]):
        raise BadInput(f"{ours} in {path}", value["name"], "{} for the layer in both names, or in neither")
    return Theirs(value["name"], value.get("axes"))
