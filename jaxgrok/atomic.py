"""Atomic, durable writes of whole files: an interruption leaves the old file or the new one, never half of one."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxgrok.config import BadInput

# What keeps a good path from being written for a while: a full disk, a quota, a disk or network mount that fails.
DISK_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
WRITABLE = "a directory that can be written"


@contextlib.contextmanager
def bad_place(name: str, path: Path, accepted: str = WRITABLE) -> Iterator[None]:
    """Raise BadInput, named `name`, for what cannot be written in the block because the path is no place to write.

    A disk that fails is not the user's doing: its OSError goes through, as the rest of a full disk does.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FAILS:
            raise
        raise BadInput(name, str(path), f"{accepted} ({error.strerror or error})") from None


def sync(path: Path) -> None:
    """Return once a file, or the list of names in a folder, is on the disk itself and would survive a power cut.

    A file system that cannot say so is believed.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network mounts refuse to sync a folder
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` of everything below a folder, and of the folder itself, the innermost first."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file atomically. `write` fills a temporary file beside it, which has the same suffix."""
    # A name of its own keeps the processes of one directory apart, which may be on many machines.
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    replace_file(path, write)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    replace_text(path, json.dumps(content, indent=1) + "\n")
