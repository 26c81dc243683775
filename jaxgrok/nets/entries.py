"""Finds the network in what a file holds: one state dictionary, or one of several that its reader names.

    networks(content)                          # {"model": {...}, "checkpoints[0]": {...}, "checkpoints[1]": {...}, ...}
    pick(content, None, path)                  # the only dictionary of tensors
    pick(content, "checkpoints[400]", path)    # one of a list

Programs save their weights under any key (`model`, `state_dict`, `model_state_dict`, ...), beside an optimiser's state,
losses and settings, and some save the networks of a whole training in a list.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from jaxgrok.config import BadInput

State = dict[str, np.ndarray]  # a state dictionary: named arrays

DEPTH = 3  # how far below the top a network may lie
OF_OPTIMISERS = ("exp_avg", "momentum_buffer", "square_avg")  # names of arrays
NO_NETWORKS = ("optimizer", "optimizer_state_dict", "opt_state", "scheduler")  # keys under which none is looked for
IN_LIST = re.compile(r"(.*)\[(-?\d+)\](.*)")  # what comes before an index, the index, what comes after it


class Picked(NamedTuple):
    """A network in a file's content, and what lies around it.

    Attributes:
        state: its state dictionary.
        beside: what the content holds beside it, by key.
        entry: where it is, as `--entry` has it; "" if the content is the network itself.
        others: where the other networks are.
    """

    state: State
    beside: dict[str, Any]
    entry: str
    others: tuple[str, ...]


def _is_network(x: Any) -> bool:
    """Whether this is a dictionary of named arrays, nested or not, one of which is a matrix at least."""
    if not isinstance(x, dict) or not x or not _has_names(x):
        return False
    leaves = _flat(x)
    if any(name.split(".")[-1] in OF_OPTIMISERS for name in leaves):
        return False
    return all(isinstance(leaf, np.ndarray) for leaf in leaves.values()) and any(
        leaf.ndim > 1 for leaf in leaves.values()
    )


def _flat(x: dict) -> dict[str, Any]:
    """A nested dictionary as a flat one, with names that are joined by dots."""
    return dict(flatten_dict(x, sep="."))


def _has_names(x: dict) -> bool:
    return all(isinstance(name, str) and (not isinstance(y, dict) or _has_names(y)) for name, y in x.items())


def _found(x: Any, where: str, depth: int = 0) -> Iterator[tuple[str, dict]]:
    """Every network in some content, and where it is."""
    if _is_network(x):
        # Flax's training states keep the parameters beside the optimiser's moments, all of them arrays.
        if _is_network(x.get("params")):
            yield f"{where}.params".removeprefix("."), x["params"]
        else:
            yield where, x
    elif depth < DEPTH and isinstance(x, dict):
        for key, value in ((key, value) for key, value in x.items() if key not in NO_NETWORKS):
            below = f"{where}.{key}".removeprefix(".") if isinstance(key, str) else f"{where}[{key}]"
            yield from _found(value, below, depth + 1)
    elif depth < DEPTH and isinstance(x, list):
        for index, value in enumerate(x):
            yield from _found(value, f"{where}[{index}]", depth + 1)


def networks(content: Any) -> dict[str, State]:
    """The state dictionaries in a file's content, in its order, by where they are. Nested names are joined by dots."""
    return {where: _flat(x) for where, x in _found(content, "")}


def pick(content: Any, entry: str | None, path: str) -> Picked:
    """The network that `entry` names. None means the only one that is not in a list.

    Raises BadInput for a content without a network, for an entry that is none, and if one of several has to be named.
    """
    found = networks(content)
    if not found:
        kind = f"a dictionary of {_some(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise BadInput("file", path, f"a state dictionary of named tensors, under any key; this is {kind}")
    if entry is None:
        alone = [where for where in found if not IN_LIST.fullmatch(where)]
        if len(alone) != 1:
            raise BadInput("entry", None, f"one of the {len(found)} networks in {path}: {_listed(found)}")
        where = alone[0]
    else:
        where = _from_end(entry, found)
        if where not in found:
            raise BadInput("entry", entry, f"a network in {path}: {_listed(found)}")
    others = tuple(other for other in found if other != where)
    top = re.split(r"[.\[]", where)[0]
    beside = {name: x for name, x in content.items() if name != top} if where and isinstance(content, dict) else {}
    return Picked(found[where], beside, where, others)


def _from_end(entry: str, found: dict[str, State]) -> str:
    """The entry, counted from the start of its list if it was counted from the end: `checkpoints[-1]`."""
    match = IN_LIST.fullmatch(entry)
    if match is None or int(match[2]) >= 0:
        return entry
    of_list = [where for where in found if (other := IN_LIST.fullmatch(where)) and _around(other) == _around(match)]
    index = len(of_list) + int(match[2])
    return of_list[index] if index >= 0 else entry


def in_list(content: Any, name: str) -> list[str]:
    """Where the networks of a list are, in its order: `checkpoints` -> `checkpoints[0]`, `checkpoints[1]`, ...; [] if
    there is no such list."""
    return [where for where in networks(content) if (match := IN_LIST.fullmatch(where)) and match[1] == name]


def _around(match: re.Match[str]) -> tuple[str, str]:
    """What comes before an index and after it, which tells one list from another."""
    return match[1], match[3]


def _listed(found: dict[str, State]) -> str:
    """Where the networks are, with the lists in short: `model, checkpoints[0] to checkpoints[399]`."""
    lists: dict[str, list[str]] = {}
    for where in found:
        match = IN_LIST.fullmatch(where)
        lists.setdefault("[]".join(_around(match)) if match else where, []).append(where)
    return _some(" to ".join(dict.fromkeys((of[0], of[-1]))) or "the file itself" for of in lists.values())


def _some(names: Any, most: int = 8) -> str:
    """The names, or the first of many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
