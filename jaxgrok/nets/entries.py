"""Finds the network in what a file holds: one state dictionary, or one of several that its reader names.

    networks(content)                          # {"model": ..., "checkpoints[0]": ..., "checkpoints[1]": ..., ...}
    pick(content, None, path)                  # the only one that is not in a list
    pick(content, "checkpoints[400]", path)    # one of a list

Programs save their weights under any key (`model`, `state_dict`, `model_state_dict`, ...), beside an optimiser's state,
losses and settings, and some save the networks of a whole training in a list, or in a dictionary by epoch.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgrok.config import BadInput

State = dict[str, np.ndarray]  # a state dictionary: named arrays
Path = tuple[str | int, ...]  # the keys and indices that lead to a part of the content

DEPTH = 4  # how far below the top a network may lie
NESTED = 12  # levels of a nested dictionary of weights
# Keys under which programs keep a network, and keys under which none is looked for.
KEYS = ("params", "model", "state_dict", "model_state_dict", "model_state", "ema", "net", "network", "weights")
NO_NETWORKS = ("optimizer", "optimizer_state_dict", "opt_state", "scheduler")
OF_OPTIMISERS = ("exp_avg", "momentum_buffer", "square_avg")  # names of arrays
IN_LIST = re.compile(r"(.*)\[(-?\d{1,9})\](.*)")  # what comes before an index, the index, what comes after it


class Opaque(NamedTuple):
    """What a file holds and nobody here can read. what: a description of it."""

    what: str


class Found(NamedTuple):
    """A network in a content.

    Attributes:
        path: the keys and indices that lead to it.
        state: its state dictionary, with nested names joined by dots.
    """

    path: Path
    state: State

    @property
    def epoch(self) -> int | None:
        """The epoch, if the network lies in a dictionary by epoch."""
        return next((key.epoch for key in self.path if isinstance(key, Epoch)), None)


class Epoch(int):
    """A whole number that is a key of a dictionary."""

    @property
    def epoch(self) -> int:
        return int(self)


class Picked(NamedTuple):
    """A network in a file's content, and what lies around it.

    Attributes:
        state: its state dictionary.
        beside: what the content holds beside it, by key. What lies nearer to the network comes first.
        entry: where it is, as `--entry` has it; "" if the content is the network itself.
        others: where the other networks are.
        epoch: its epoch, if it lies in a dictionary by epoch.
    """

    state: State
    beside: dict[str, Any]
    entry: str
    others: tuple[str, ...]
    epoch: int | None = None


def where(path: Path) -> str:
    """A path as text: ("runs", 3, "model") -> `runs[3].model`."""
    return "".join(f"[{int(key)}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _leaves(x: Any, depth: int = NESTED) -> Iterator[tuple[str, Any]]:
    """(the name, the value) of everything in a nested dictionary, with names joined by dots."""
    if not isinstance(x, dict) or not depth or not all(isinstance(key, str) for key in x):
        yield "", x
        return
    for key, value in x.items():
        for name, leaf in _leaves(value, depth - 1):
            yield f"{key}.{name}" if name else key, leaf


def _is_matrix(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.ndim > 1 and x.dtype.kind not in "biu"


def _is_state(x: dict) -> bool:
    """Whether a dictionary itself holds weights: matrices, and nothing but named arrays."""
    return any(map(_is_matrix, x.values())) and all(
        isinstance(key, str) and isinstance(value, np.ndarray | Opaque | dict) for key, value in x.items()
    )


def _is_network(x: Any) -> bool:
    """Whether this is a state dictionary, or a nested dictionary of weights as Flax has it."""
    if not isinstance(x, dict) or not x:
        return False
    children = {key: value for key, value in x.items() if isinstance(value, dict)}
    if any(key in KEYS or _is_dotted(value) for key, value in children.items()):
        return False  # the network is one of these
    if not _is_state(x) and any(isinstance(value, np.ndarray) and value.ndim > 1 for value in x.values()):
        return False  # whole numbers, in a list of pairs
    leaves = dict(_leaves(x))
    if any(name.split(".")[-1] in OF_OPTIMISERS for name in leaves):
        return False
    known = all(isinstance(leaf, np.ndarray | Opaque) for leaf in leaves.values())
    return known and any(map(_is_matrix, leaves.values()))


def _is_dotted(x: dict) -> bool:
    """Whether names are joined by dots, as PyTorch's state dictionaries have it and nested ones have not."""
    return _is_state(x) and any("." in key for key in x)


def _found(x: Any, path: Path = ()) -> Iterator[Found]:
    """Every network in some content, in its order."""
    if _is_network(x):
        state = dict(_leaves(x))
        for name, array in state.items():
            if isinstance(array, Opaque):
                raise BadInput(f"{where(path)} {name}".strip(), array.what, "a plain tensor of numbers")
        yield Found(path, state)
    elif len(path) < DEPTH and isinstance(x, dict):
        by_epoch = bool(x) and all(isinstance(key, int) and not isinstance(key, bool) for key in x)
        for key in sorted(x) if by_epoch else [key for key in x if isinstance(key, str) and key not in NO_NETWORKS]:
            yield from _found(x[key], (*path, Epoch(key) if by_epoch else key))
    elif len(path) < DEPTH and isinstance(x, list):
        for index, value in enumerate(x):
            yield from _found(value, (*path, index))


def networks(content: Any) -> dict[str, Found]:
    """The networks in a file's content, in its order, by where they are.

    Raises BadInput for two that have one name, and for weights that cannot be read.
    """
    found: dict[str, Found] = {}
    for network in _found(content):
        name = where(network.path)
        if name in found:
            raise BadInput("entry", name, "one network of this name; the file has two")
        found[name] = network
    return found


def pick(content: Any, entry: str | None, path: str) -> Picked:
    """The network that `entry` names. None means the only one that is not in a list.

    Raises BadInput for a content without a network, for an entry that is none, and if one of several has to be named.
    """
    found = networks(content)
    if not found:
        kind = type(content).__name__
        if isinstance(content, dict):
            kind = f"a dictionary of {_some(map(str, content)) or 'nothing'}"
        raise BadInput("file", path, f"a state dictionary of named tensors, under any key; this is {kind}")
    if entry is None:
        alone = [name for name in found if not IN_LIST.fullmatch(name)]
        if len(alone) != 1:
            raise BadInput("entry", None, f"one of the {len(found)} networks in {path}: {_listed(found)}")
        name = alone[0]
    else:
        name = _from_end(entry, found)
        if name not in found and (inside := next(_trees(content, name), None)) is not None:
            found = {**found, name: inside}  # a part of what looks like one network
        if name not in found:
            raise BadInput("entry", entry, f"a network in {path}: {_listed(found)}")
    network = found[name]
    others = tuple(other for other in found if other != name)
    return Picked(network.state, _beside(content, network.path), name, others, network.epoch)


def _trees(x: Any, name: str, path: Path = ()) -> Iterator[Found]:
    """The nested dictionary of weights at this place, if there is one."""
    if not isinstance(x, dict) or len(path) > DEPTH:
        return
    if path and where(path) == name:
        leaves = dict(_leaves(x))
        if any(map(_is_matrix, leaves.values())) and all(isinstance(leaf, np.ndarray) for leaf in leaves.values()):
            yield Found(path, leaves)
    for key, value in x.items():
        if isinstance(key, str):
            yield from _trees(value, name, (*path, key))


def _beside(content: Any, path: Path) -> dict[str, Any]:
    """What lies on the way to a network: the nearest of each name, and nothing that holds another network."""
    levels = [content]
    for key in path[:-1]:
        levels.append(levels[-1][key])
    beside: dict[str, Any] = {}
    for level, key in zip(levels, path, strict=False):  # the content may be the network itself
        if isinstance(level, dict):
            around = {name: x for name, x in level.items() if name != key and isinstance(name, str)}
            beside |= {name: x for name, x in around.items() if next(_found(x), None) is None}
    return beside


def _from_end(entry: str, found: Mapping[str, Found]) -> str:
    """The entry, counted from the start of its list if it was counted from the end: `checkpoints[-1]`."""
    match = IN_LIST.fullmatch(entry)
    if entry in found or match is None or int(match[2]) >= 0:
        return entry
    of_list = [name for name in found if (other := IN_LIST.fullmatch(name)) and _around(other) == _around(match)]
    index = len(of_list) + int(match[2])
    return of_list[index] if index >= 0 else entry


def in_list(content: Any, name: str) -> list[str]:
    """Where the networks of a list are, in its order: `checkpoints` -> `checkpoints[0]`, `checkpoints[1]`, ...; [] if
    there is no such list."""
    return [entry for entry in networks(content) if (match := IN_LIST.fullmatch(entry)) and match[1] == name]


def _around(match: re.Match[str]) -> tuple[str, str]:
    """What comes before an index and after it, which tells one list from another."""
    return match[1], match[3]


def _listed(found: Iterable[str]) -> str:
    """Where the networks are, with the lists in short: `model, checkpoints[0] to checkpoints[399]`."""
    lists: dict[str, list[str]] = {}
    for name in found:
        match = IN_LIST.fullmatch(name)
        lists.setdefault("[]".join(_around(match)) if match else name, []).append(name)
    return _some(" to ".join(dict.fromkeys((of[0], of[-1]))) or "the file itself" for of in lists.values())


def _some(names: Iterable[str], most: int = 8) -> str:
    """The names, or the first of many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
