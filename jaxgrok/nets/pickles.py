"""Reads a .pth file as data: its tensors as numpy arrays, and its other objects as what they hold.

torch's own reader for untrusted files (`weights_only=True`) does the reading. A pickle names the classes and functions
that its objects are made with. Where such a name is a class of the program that wrote the file, as in TransformerLens's
configuration, an inert `StandIn` takes its place: it keeps what the object was made of, and nothing runs. A name from
Python's standard library, such as `os.mkdir` or `builtins.eval`, has no place in a file of weights and is refused.
"""

import contextlib
import sys
from _compat_pickle import IMPORT_MAPPING, REVERSE_IMPORT_MAPPING
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from jaxgrok.config import BadInput

# Of the standard library, these hold plain values alone.
HARMLESS = ("argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath")


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
    """The content of a .pth, with dictionaries, lists, plain values and numpy arrays.

    An object is the dictionary of its attributes, and a network that was saved whole (`torch.save(model, ...)`) is its
    state dictionary.

    Raises BadInput for a pickle that wants to run code, and for quantised weights. A damaged file can raise nearly any
    exception.
    """
    content = _load(torch, path)
    return _plain(torch, path, content)


def _load(torch: ModuleType, path: Path) -> Any:
    names: list[str] = []
    with contextlib.suppress(ValueError):  # an older format, whose names torch does not list
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    refused = [name for name in sorted(names) if not _has_stand_in(name)]
    if refused:
        accepted = f"tensors and plain values alone; this pickle names {refused[0]}: it wants to run code"
        raise BadInput("file", str(path), accepted)
    stand_ins = [(type("StandIn", (StandIn,), {"stands_for": name}), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain(torch: ModuleType, path: Path, x: Any) -> Any:
    """The same with dictionaries, lists, plain values and numpy arrays alone."""

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return _array(torch, path, x)
        if isinstance(x, dict):
            return {name: plain(value) for name, value in x.items()}
        if isinstance(x, list | tuple | set):
            return [plain(value) for value in x]
        if isinstance(x, StandIn):
            return _of_stand_in(x, plain)
        return x

    return plain(x)


def _array(torch: ModuleType, path: Path, x: Any) -> np.ndarray:
    if x.is_quantized:
        raise BadInput("file", str(path), "weights that are floating-point numbers; these are quantised")
    if x.is_sparse:
        x = x.to_dense()
    if x.numel() * x.element_size() > x.untyped_storage().nbytes():
        raise ValueError("a tensor is larger than its storage")  # one number, repeated
    x = x.detach()
    return x.float().numpy() if x.dtype in (torch.bfloat16, torch.float16) else x.numpy()


def _of_stand_in(x: StandIn, plain: Any) -> Any:
    """What an object holds: of numpy's the value, of a network its state dictionary, of others their attributes."""
    if x.stands_for.endswith("multiarray.scalar"):
        dtype, data = x.args
        return np.frombuffer(data, _dtype(dtype))[0]
    if x.stands_for.endswith("multiarray._reconstruct"):
        _, shape, dtype, is_fortran, data = x.state
        return np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if is_fortran else "C")
    state = x.state[1] if isinstance(x.state, tuple) else x.state
    if isinstance(state, dict):
        return plain(_state_dict(x)) if "_parameters" in state else plain(state)
    return plain(x.args[0] if len(x.args) == 1 else list(x.args))


def _dtype(x: Any) -> np.dtype:
    """The dtype that a stand-in for numpy's describes: one of plain numbers, or this raises ValueError."""
    dtype = np.dtype(x.args[0])
    dtype = dtype if x.state is None else dtype.newbyteorder(x.state[1])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of dtype {dtype}")
    return dtype


def _state_dict(module: StandIn) -> dict[str, Any]:
    """The parameters and buffers of a module and of all below it, under the names that `state_dict` gives them."""
    assert isinstance(module.state, dict)
    own = {**module.state["_parameters"], **module.state.get("_buffers", {})}
    found = {name: x for name, x in own.items() if x is not None}
    for name, child in module.state.get("_modules", {}).items():
        if isinstance(child, StandIn) and isinstance(child.state, dict):
            found |= {f"{name}.{below}": x for below, x in _state_dict(child).items()}
    return found
