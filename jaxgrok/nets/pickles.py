"""Reads a .pth file as data: its tensors as numpy arrays, and its other objects as what they hold.

torch's own reader for untrusted files (`weights_only=True`) does the reading. A pickle names the classes and functions
that its objects are made with. Where such a name is a class of the program that wrote the file, as in TransformerLens's
configuration, an inert `StandIn` takes its place: it keeps what the object was made of, and nothing runs. A name from
Python's standard library, such as `os.mkdir` or `builtins.eval`, has no place in a file of weights and is refused.
"""

import contextlib
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING, REVERSE_IMPORT_MAPPING
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from jaxgrok.config import BadInput
from jaxgrok.nets.entries import Opaque

# Of the standard library, these hold plain values alone.
HARMLESS = (
    *("argparse.Namespace", "types.SimpleNamespace", "builtins.bytes", "__builtin__.bytes"),
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
)
# torch writes the names of Python 2, where they had others: `commands.Popen`.
STANDARD = {*sys.stdlib_module_names, *IMPORT_MAPPING, *REVERSE_IMPORT_MAPPING.values()}


class StandIn:
    """What takes the place of an object whose class a pickle names.

    stands_for: that name. args: what the object was made with. state: what was set on it then; None if nothing was.
    """

    stands_for: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "StandIn":
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _has_stand_in(name: str) -> bool:
    package = name.split(".")[0]
    is_foreign = package not in STANDARD and (package != "torch" or name.startswith("torch.nn."))
    return is_foreign or name in HARMLESS


def read(torch: ModuleType, path: Path) -> Any:
    """The content of a .pth, with dictionaries, lists, plain values and numpy arrays; anything else is `Opaque`.

    An object is the dictionary of its attributes. A network that was saved whole (`torch.save(model, ...)`) has its
    state dictionary among them, as `state_dict`.

    Raises BadInput for a pickle that wants to run code. A damaged file can raise nearly any exception.
    """
    return _Reader(torch).plain(_load(torch, path))


def _load(torch: ModuleType, path: Path) -> Any:
    names: list[str] = []
    with contextlib.suppress(ValueError):  # an older format, whose names torch does not list
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    refused = [name for name in sorted(names) if not _has_stand_in(name)]
    if refused:
        accepted = (
            f"tensors and plain values alone; this pickle names {refused[0]}, which no weights need: it may run code"
        )
        raise BadInput("file", str(path), accepted)
    stand_ins = [(type("StandIn", (StandIn,), {"stands_for": name}), name) for name in names]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Reader:
    """Turns what torch has read into dictionaries, lists, plain values and numpy arrays."""

    def __init__(self, torch: ModuleType):
        self.torch = torch
        self.seen: dict[int, tuple[Any, Any]] = {}  # id -> (the object, kept alive; what it became)

    def plain(self, x: Any) -> Any:
        """What is shared stays shared: a small file may refer to one list a million times."""
        if id(x) not in self.seen:
            self.seen[id(x)] = x, self._plain(x)
        return self.seen[id(x)][1]

    def _plain(self, x: Any) -> Any:
        if isinstance(x, self.torch.Tensor):
            return self._array(x)
        if isinstance(x, dict):
            return {name: self.plain(value) for name, value in x.items()}
        if isinstance(x, list | tuple | set):
            return [self.plain(value) for value in x]
        return self._of_stand_in(x) if isinstance(x, StandIn) else x

    def _array(self, x: Any) -> Any:
        if x.is_quantized:
            return Opaque("a quantised tensor")
        if x.layout is not self.torch.strided or x.is_meta:
            return Opaque(f"a tensor of layout {x.layout}")
        if x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than its storage")  # one number, repeated
        x = x.detach()
        try:
            return x.float().numpy() if x.dtype in (self.torch.bfloat16, self.torch.float16) else x.numpy()
        except TypeError:  # numpy has no such numbers
            return Opaque(f"a tensor of {x.dtype}")

    def _of_stand_in(self, x: StandIn) -> Any:
        """What an object holds: of numpy's the value, of others their attributes."""
        if x.stands_for.endswith("multiarray.scalar"):
            dtype = _dtype(x.args[0])
            return Opaque("a number of numpy's") if dtype is None else np.frombuffer(x.args[1], dtype)[0]
        if x.stands_for.endswith("multiarray._reconstruct"):
            _, shape, dtype, is_fortran, data = x.state
            dtype, order = _dtype(dtype), "F" if is_fortran else "C"
            return Opaque("an array") if dtype is None else np.frombuffer(data, dtype).reshape(shape, order=order)
        state = x.state[1] if isinstance(x.state, tuple) and len(x.state) == 2 else x.state
        if isinstance(state, dict) and "_parameters" in state:
            around = {name: value for name, value in state.items() if not name.startswith("_")}
            return self.plain({"state_dict": _state_dict(x), **around})
        if isinstance(state, dict):
            return self.plain(state)
        # An enumeration holds its value. What a function makes of a tensor is not that tensor.
        is_value = len(x.args) == 1 and isinstance(x.args[0], bool | int | float | str)
        return x.args[0] if is_value else Opaque(f"what {x.stands_for} makes")


def _dtype(x: Any) -> np.dtype | None:
    """The dtype that a stand-in for numpy's describes; None if it is not one of plain numbers."""
    dtype = np.dtype(x.args[0])
    dtype = dtype if x.state is None else dtype.newbyteorder(x.state[1])
    return dtype if dtype.kind in "biuf" else None


def _state_dict(module: StandIn) -> dict[str, Any]:
    """The parameters and buffers of a module and of all below it, under the names that `state_dict` gives them."""
    assert isinstance(module.state, dict)
    own = {**module.state["_parameters"], **module.state.get("_buffers", {})}
    found = {name: x for name, x in own.items() if x is not None}
    for name, child in module.state.get("_modules", {}).items():
        if isinstance(child, StandIn) and isinstance(child.state, dict):
            found |= {f"{name}.{below}": x for below, x in _state_dict(child).items()}
    return found
