"""Digests: how what is read from disk is told from what was written there.

File systems and copies lose and flip bits, and nothing in an array or in JSON would show it. So every array of a step
is stored with a digest of its bytes, and every JSON file with a digest of its content. What is made from these has none
of ours: .npz files have a check sum of their own, and tables and figures are made anew. The digests find damage; they
do not keep out an attacker, who could compute them anew.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

DIGEST_BYTES = 16  # a wrong value passes by chance once in 2^128 times


def _hexadecimal(*parts: bytes | memoryview) -> str:
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def digest_of(array: np.ndarray) -> str:
    """The digest of an array's dtype, shape and values."""
    whole = np.ascontiguousarray(array)
    return _hexadecimal(f"{array.dtype.str}{array.shape}".encode(), whole.reshape(-1).view(np.uint8).data)


def described(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """{name: its dtype, shape and digest}, as plain values."""
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "digest": digest_of(array)}
        for name, array in arrays.items()
    }


def check_array(name: str, array: np.ndarray, description: Mapping[str, Any]) -> None:
    """Raises ValueError if an array is not the one that was described."""
    if [str(array.dtype), list(array.shape)] != [description["dtype"], description["shape"]]:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    if digest_of(array) != description["digest"]:
        raise ValueError(f"the values of {name} have changed")


def digest_of_content(content: Mapping[str, Any]) -> str:
    """The digest of plain values, whatever the order of keys."""
    return _hexadecimal(json.dumps(content, sort_keys=True).encode())


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, with its digest under `digest`."""
    return {**content, "digest": digest_of_content(content)}


def without_digest(stored: Any) -> dict[str, Any]:
    """What `with_digest` was given. Raises ValueError if it has changed since."""
    if not isinstance(stored, dict) or "digest" not in stored:
        raise ValueError("it has no digest")
    content = {name: value for name, value in stored.items() if name != "digest"}
    if digest_of_content(content) != stored["digest"]:
        raise ValueError("its content has changed since it was written")
    return content
