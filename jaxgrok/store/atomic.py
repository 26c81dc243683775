"""Atomic writes of whole files: an interruption leaves the old file or the new one, never half of one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file atomically. `write` fills a temporary file beside it, which has the same suffix."""
    # The process number keeps two analyses of one directory apart.
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
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
