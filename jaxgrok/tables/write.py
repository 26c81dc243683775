"""How tables are written: CSV for programs, Markdown for people, each replaced atomically."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxgrok.atomic import bad_place, replace_file, replace_text

Rows = Iterable[Sequence[Any]]


def write_csv(path: Path, header: Sequence[str], rows: Rows) -> None:
    """Replace a CSV file atomically, row by row as they come. None becomes an empty field.

    The folder is made if it is missing. Raises BadInput if the file cannot be written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(["" if value is None else value for value in row] for row in rows)

    with bad_place("tables", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically. The folder is made if it is missing. Raises BadInput if it cannot be written."""
    with bad_place("tables", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)


def markdown(header: Sequence[Any], rows: Rows) -> str:
    """A Markdown table."""

    def cell(value: Any) -> str:
        return " ".join(str(value).replace("|", "\\|").splitlines())

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
