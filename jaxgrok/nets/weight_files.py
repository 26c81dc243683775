"""Reads and writes files of named arrays: .pth, .safetensors and .npz.

Nothing in a file is executed. torch (for .pth) and safetensors are optional dependencies.
"""

import importlib
import math
import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxgrok.atomic import bad_place, replace_file
from jaxgrok.config import BadInput

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")
PLACE = "a place that can be written"

State = dict[str, np.ndarray]  # a state dictionary: named arrays


def optional(module: str, name: str, value: Any) -> ModuleType:
    """An optional dependency, imported.

    Raises BadInput if it is missing. The message names the field `name`, whose value asks for the dependency, and says
    how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        accepted = f'only with {package}, which must be installed: pip install "jaxgrok[{package}]"'
        raise BadInput(name, value, accepted) from None


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise BadInput("file", str(path), "a name that ends in " + " ".join(SUFFIXES))
    return path.suffix


def _read_torch(path: Path) -> Any:
    """The content of a .pth with its tensors, also those under `model`, as numpy arrays."""
    torch = optional("torch", "file", str(path))

    def plain(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than its storage")  # one number, repeated
        x = x.detach()
        return x.float().numpy() if x.dtype in (torch.bfloat16, torch.float16) else x.numpy()

    def all_plain(content: Any) -> Any:
        return {name: plain(x) for name, x in content.items()} if isinstance(content, dict) else content

    content = all_plain(torch.load(path, map_location="cpu", weights_only=True))
    if isinstance(content, dict) and "model" in content:
        content["model"] = all_plain(content["model"])
    return content


def check_sizes(path: Path) -> None:
    """Raise ValueError for an .npz with an array that declares more bytes than it has: np.load would allocate them."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as members:
        for info in members.infolist():
            with members.open(info) as member:
                shape, _, dtype = headers[np.lib.format.read_magic(member)](member)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f"{info.filename} is larger than the file")


def _read_any(path: Path) -> Any:
    """The content of a file, whatever its kind. A damaged file can raise nearly any exception."""
    if path.suffix == ".npz":
        # Opened here, because np.load leaves a damaged file open.
        if zipfile.is_zipfile(path):
            check_sizes(path)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ".safetensors":
        return optional("safetensors.numpy", "file", str(path)).load_file(path)
    return _read_torch(path)


def read(path: str | os.PathLike[str]) -> tuple[State, dict[str, Any]]:
    """The state dictionary in a .pth, .safetensors or .npz file, and what was stored beside it.

    A .pth holds a state dictionary, or a dictionary with one under `model`. It is read as data: a pickle that names
    anything but tensors and plain values is refused, and nothing in it runs.

    Raises BadInput for a file that cannot be read or that holds no state dictionary.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise BadInput("file", str(path), "a file that exists")
    try:
        content = _read_any(path)
    except BadInput:
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind == "UnpicklingError" or "pickle" in str(error).lower():
            accepted = "tensors and plain values alone; this pickle is damaged or wants to run code"
        else:
            accepted = f"a whole {suffix} file; this one is damaged or cut short ({kind})"
        raise BadInput("file", str(path), accepted) from None
    beside = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        beside = {name: x for name, x in content.items() if name != "model"}
        content = content["model"]
    if not _is_state(content):
        raise BadInput("file", str(path), "a state dictionary of named tensors, or one under `model`")
    return content, beside


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(x, np.ndarray) for name, x in content.items()
    )


def _write_any(path: Path, suffix: str, state: State, named: str) -> None:
    """Write a file of the kind that the suffix tells. named: the path in messages."""
    if suffix == ".npz":
        with open(path, "wb") as file:
            np.savez(file, **state)  # pyright: ignore[reportArgumentType]  (its flag allow_pickle is no array's name)
    elif suffix == ".safetensors":
        optional("safetensors.numpy", "file", named).save_file(state, path)
    else:
        torch = optional("torch", "file", named)
        torch.save({name: torch.from_numpy(x.copy()) for name, x in state.items()}, path)


def write(path: str | os.PathLike[str], state: State) -> None:
    """Write a state dictionary to a .pth, .safetensors or .npz file. The file is replaced atomically.

    Raises BadInput for a place that cannot be written, and OSError for a disk that fails. A failure leaves the old file
    as it was, and no other file.
    """
    path = Path(path)
    suffix = _suffix(path)
    with bad_place("file", path, PLACE):
        try:
            replace_file(path, lambda temporary: _write_any(temporary, suffix, state, str(path)))
        except (BadInput, OSError):
            raise
        except Exception as error:  # each writer has its own
            raise BadInput("file", str(path), f"{PLACE} ({error})") from None
