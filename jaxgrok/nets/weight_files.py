"""Reads and writes files of named arrays: .pth, .safetensors and .npz. It also reads the checkpoints of Flax and orbax.

Nothing in a file is executed. torch (for .pth) and safetensors are optional dependencies.
"""

import importlib
import math
import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.atomic import bad_place, replace_file
from jaxgrok.config import BadInput
from jaxgrok.nets import pickles
from jaxgrok.nets.entries import Picked, State, pick

OF_TORCH = (".pth", ".pt", ".ckpt", ".bin")
WRITTEN = (".pth", ".pt", ".safetensors", ".npz")
SUFFIXES = (*OF_TORCH, ".safetensors", ".npz", ".msgpack")
ARRAY = ".npy"
OF_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA")  # what a folder of orbax's holds
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_},
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
}
PLACE = "a place that can be written"


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


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix not in suffixes:
        raise BadInput("file", str(path), "a name that ends in " + " ".join(suffixes))


def check_sizes(path: Path) -> None:
    """Raise ValueError for an .npz with an array that declares more bytes than it has: np.load would allocate them."""
    with zipfile.ZipFile(path) as members:
        for info in members.infolist():
            with members.open(info) as member:
                _check_size(member, info.file_size, info.filename)


def _check_size(array: Any, n_bytes: int, name: str) -> None:
    """Raise ValueError if an array declares more bytes than there are. array: an open .npy of this name."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = headers[np.lib.format.read_magic(array)](array)
    if math.prod(shape) * dtype.itemsize > n_bytes:
        raise ValueError(f"{name} is larger than the file")


def _read_any(path: Path) -> Any:
    """The content of a file, whatever its kind. A damaged file can raise nearly any exception."""
    if path.suffix == ".npz":
        # Opened here, because np.load leaves a damaged file open.
        if zipfile.is_zipfile(path):
            check_sizes(path)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ARRAY:
        with open(path, "rb") as file:
            _check_size(file, path.stat().st_size, path.name)
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".msgpack":
        from flax.serialization import msgpack_restore  # it takes a while to import

        return msgpack_restore(path.read_bytes())
    if path.is_dir():
        import orbax.checkpoint as ocp  # it takes a while to import

        return jax.tree.map(np.asarray, ocp.PyTreeCheckpointer().restore(path.absolute()))
    return pickles.read(optional("torch", "file", str(path)), path)


def _read_safetensors(path: Path) -> State:
    """The arrays of a .safetensors file. Its own reader for numpy knows no bfloat16."""
    optional("safetensors.numpy", "file", str(path))
    from safetensors import deserialize

    state = {}
    for name, tensor in deserialize(path.read_bytes()):
        dtype = SAFETENSORS_DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise BadInput(name, tensor["dtype"], f"{' '.join(SAFETENSORS_DTYPES)}; quantised weights are not read")
        state[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return state


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is a checkpoint that orbax wrote."""
    return any((path / name).exists() for name in OF_ORBAX)


def checkpoints_in(folder: Path) -> list[str]:
    """The folders in this one, and in those, that are checkpoints of orbax's. The steps of a sweep lie deeper."""
    places = [f"{below}/{name}" for below in ("*", "*/*") for name in OF_ORBAX]
    return sorted({str(file.parent) for place in places for file in folder.glob(place)})


def contents(path: str | os.PathLike[str], suffixes: tuple[str, ...] = SUFFIXES) -> Any:
    """What a file holds, whatever its kind: arrays, plain values, and dictionaries and lists of them.

    suffixes: the kinds that are accepted, beside the folder of an orbax checkpoint.

    Raises BadInput for a file that cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        _check_suffix(path, suffixes)
    if not path.exists():
        raise BadInput("file", str(path), "a file that exists")
    if path.is_dir() and not is_checkpoint_folder(path):
        inside = checkpoints_in(path)
        accepted = f"a file, or the folder of one orbax checkpoint{', such as ' + inside[-1] if inside else ''}"
        raise BadInput("file", str(path), accepted)
    try:
        if path.is_file():
            with open(path, "rb") as file:
                is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
            if is_pointer:
                accepted = "the file itself; this is a Git LFS pointer to it, and `git lfs pull` brings the file"
                raise BadInput("file", str(path), accepted)
        return _read_any(path)
    except BadInput:
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind == "UnpicklingError" or "pickle" in str(error).lower():
            accepted = "tensors and plain values alone; this pickle is damaged or wants to run code"
        else:
            accepted = f"a whole {path.suffix or 'orbax'} file; this one is damaged or cut short ({kind})"
        raise BadInput("file", str(path), accepted) from None


def read(path: str | os.PathLike[str], entry: str | None = None) -> Picked:
    """The state dictionary in a file, and what was stored beside it.

    A .pth is read as data (`pickles`). entry: which of several networks, as `entries.pick` takes it.

    Raises BadInput for a file that cannot be read or that holds no state dictionary, and if one has to be named.
    """
    return pick(contents(path), entry, str(path))


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
    _check_suffix(path, WRITTEN)
    with bad_place("file", path, PLACE):
        try:
            replace_file(path, lambda temporary: _write_any(temporary, path.suffix, state, str(path)))
        except (BadInput, OSError):
            raise
        except Exception as error:  # each writer has its own
            raise BadInput("file", str(path), f"{PLACE} ({error})") from None
