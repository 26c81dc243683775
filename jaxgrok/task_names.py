"""What the name of a task means: the text of `--task` and of a run's coordinates.

    add, x/y                  one operation on the pairs of numbers modulo p: its name, or an expression in x and y
    add+subtract              several of the named operations in one network
    s5, a5_conjugate, d7      an operation on the pairs of elements of a group
    addition5, parity3, ...   a task that draws its examples
    package.module:Name       your own class

The classes are in `jaxgrok.tasks`. Nothing here imports them, so that a config is checked before JAX starts.
"""

import functools
import importlib
import os
import re
import sys
from typing import Any, NamedTuple

from jaxgrok.expressions import NAMED, parse

MODULAR = ("add", "subtract", "multiply", "x2xyy2", "random")  # operations modulo p that have a name
GROUPS = ("s<N>", "a<N>", "d<N>")
DRAWN = ("addition<N>", "induction", "skip_trigram", "parity<K>")
NAMES = (*MODULAR, *GROUPS, *DRAWN)
MAX_DIGITS = 100  # of addition<N>, and bits of parity<K>
# The most N of a group: all its pairs are listed, as those of p are. A dihedral group has 2 N elements.
LARGEST_GROUPS = {"s": 6, "a": 6, "d": 1000}
ON_GROUPS = {"": "xy", "_conjugate": "xyx^-1", "_xyx": "xyx"}  # the ends of a group task's name: the operation
ACCEPTED = (
    f"{' '.join(NAMES)} (N and K from 1 to {MAX_DIGITS}; of groups N from 3, with at most 2,000 elements, and "
    "_conjugate or _xyx for xyx^-1 and xyx), several of the first joined by +, an expression in x and y, or "
    "package.module:Name"
)


class GroupName(NamedTuple):
    """A task on a group. family: s, a or d. n: of how many points. operation: one of the values of ON_GROUPS."""

    family: str
    n: int
    operation: str


def digits_of(task: str) -> int | None:
    """The N of `addition<N>`, from 1 to MAX_DIGITS; None for any other task."""
    return _number_of("addition", task)


def bits_of(task: str) -> int | None:
    """The K of `parity<K>`, from 1 to MAX_DIGITS; None for any other task."""
    return _number_of("parity", task)


def _number_of(name: str, task: str) -> int | None:
    match = re.fullmatch(rf"{name}([1-9]\d{{0,2}})", task)
    return int(match[1]) if match and int(match[1]) <= MAX_DIGITS else None


def group_of(task: str) -> GroupName | None:
    """The group and the operation of a task such as s5_conjugate; None for any other task."""
    match = re.fullmatch(r"([sad])([1-9]\d{0,3})(_conjugate|_xyx|)", task)
    if match is None or not 3 <= int(match[2]) <= LARGEST_GROUPS[match[1]]:
        return None
    return GroupName(match[1], int(match[2]), ON_GROUPS[match[3]])


def mixed_of(task: str) -> tuple[str, ...]:
    """The operations of a task such as add+subtract; () for any other task."""
    names = tuple(part.strip() for part in task.split("+"))
    return names if len(set(names)) == len(names) > 1 and set(names) <= set(MODULAR) else ()


def own_class(task: str) -> Any:
    """The class of a task package.module:Name; None for any other task. Imports its module, which is looked for where
    Python looks and in the current directory.

    Raises ValueError, which says what is wrong.
    """
    match = re.fullmatch(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)", task)
    if match is None:
        return None
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(match[1])
    except Exception as error:
        raise ValueError(f"a module that can be imported ({type(error).__name__}: {error})") from None
    if not hasattr(module, match[2]):
        raise ValueError(f"a class in the module {match[1]}, which has no {match[2]}")
    found = getattr(module, match[2])
    if not isinstance(found, type) or getattr(found, "listed", None) is None:
        raise ValueError("a subclass of jaxgrok.tasks.ListedTask or jaxgrok.tasks.DrawnTask")
    return found


def kind_of_drawn(task: str) -> str | None:
    """Which of DRAWN a task is; None for any other task."""
    if digits_of(task) is not None:
        return "addition<N>"
    if bits_of(task) is not None:
        return "parity<K>"
    return task if task in ("induction", "skip_trigram") else None


@functools.cache
def is_operation(task: str) -> bool:
    """Whether a task is one operation on the pairs of numbers modulo p."""
    others = (kind_of_drawn(task), group_of(task), mixed_of(task) or None, own_class(task))
    return all(kind is None for kind in others)


@functools.cache
def is_modular(task: str) -> bool:
    """Whether a task is about numbers modulo p."""
    return is_operation(task) or bool(mixed_of(task)) or bool(getattr(own_class(task), "modular", False))


@functools.cache
def is_listed(task: str) -> bool:
    """Whether all examples of a task are listed, so that a fraction of them is for training. The other tasks draw
    theirs."""
    own = own_class(task)
    return kind_of_drawn(task) is None if own is None else own.listed


def name_of(text: str) -> str:
    """The name of a task in its one form. Raises ValueError, which says what is accepted."""
    if kind_of_drawn(text) is not None or group_of(text) or own_class(text) or text in MODULAR:
        return text
    if mixed := mixed_of(text.strip()):
        return "+".join(mixed)
    is_mixture = "+" in text and any(part.strip() in MODULAR for part in text.split("+"))
    if is_mixture or not re.search(r"[xy0-9]\s*[-+*/^]|^\s*[(-]|\bif\b", text):
        raise ValueError(ACCEPTED)
    expression = parse(text)
    return NAMED.get(expression.text, expression.text)
