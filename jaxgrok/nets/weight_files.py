"""Files of named arrays: .pth, .safetensors and .npz, read as data and written whole.

Nothing in a file is executed. torch (for .pth) and safetensors are optional.
"""

import importlib
import os
from pathlib import Path

import numpy as np

from jaxgrok.config import BadInput

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")


def optional(module: str, name: str, value):
    """An optional dependency. Where it is missing, raises BadInput for the named value that asks for it, and says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise BadInput(name, value, f'only with {package}, which must be installed: pip install "jaxgrok[{package}]"') from None


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise BadInput("file", str(path), "a name that ends in " + " ".join(SUFFIXES))
    return path.suffix


def _read_torch(path: Path) -> dict:
    torch = optional("torch", "file", str(path))
    content = torch.load(path, map_location="cpu", weights_only=True)

    def plain(x):
        if isinstance(x, torch.Tensor):
            x = x.detach()
            return x.float().numpy() if x.dtype in (torch.bfloat16, torch.float16) else x.numpy()
        return x

    def all_plain(content):
        return {name: plain(x) for name, x in content.items()} if isinstance(content, dict) else content

    content = all_plain(content)
    return content | {"model": all_plain(content["model"])} if isinstance(content, dict) and "model" in content else content


def _read_npz(path: Path) -> dict:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def read(path) -> tuple[dict, dict]:
    """(state dictionary {name: numpy}, what stood beside it) of a .pth, .safetensors or .npz file.

    A .pth holds a state dictionary, or a dictionary with one under `model`. Read as data: a pickle that names anything
    but tensors and plain values is refused, and nothing in it runs. Raises BadInput for whatever cannot be read.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise BadInput("file", str(path), "a file that exists")
    try:
        if suffix == ".npz":
            content = _read_npz(path)
        elif suffix == ".safetensors":
            content = optional("safetensors.numpy", "file", str(path)).load_file(path)
        else:
            content = _read_torch(path)
    except BadInput:
        raise
    except Exception as error:  # each reader has its own, and a damaged file can raise nearly any of them
        if type(error).__name__ == "UnpicklingError" or "pickle" in str(error).lower():
            raise BadInput("file", str(path), "tensors and plain values alone; this pickle is damaged or wants to run code") from None
        raise BadInput("file", str(path), f"a whole {suffix} file; this one is damaged or cut short ({type(error).__name__})") from None
    beside = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        beside = {name: x for name, x in content.items() if name != "model"}
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(x, np.ndarray) for name, x in content.items()):
        raise BadInput("file", str(path), "a state dictionary of named tensors, or one under `model`")
    return content, beside


def write(path, state: dict) -> None:
    """Write a state dictionary {name: numpy} as .pth, .safetensors or .npz; the file is replaced whole. Raises BadInput for a place
    that cannot be written."""
    path = Path(path)
    suffix = _suffix(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        if suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, **state)
        elif suffix == ".safetensors":
            optional("safetensors.numpy", "file", str(path)).save_file(state, temporary)
        else:
            torch = optional("torch", "file", str(path))
            torch.save({name: torch.from_numpy(x.copy()) for name, x in state.items()}, temporary)
        os.replace(temporary, path)
    except BadInput:
        raise
    except Exception as error:  # each writer has its own
        raise BadInput("file", str(path), f"a place that can be written ({getattr(error, 'strerror', None) or error})") from None
