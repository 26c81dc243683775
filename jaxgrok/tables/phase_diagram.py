"""A sweep over two axes as a plane: what becomes of the runs at each point, and when.

tables/phase_diagram.md   one table for each plane: a row per value of one axis, a column per value of the other
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgrok.config import CHOICES
from jaxgrok.stats import Median
from jaxgrok.store.events import Outcome
from jaxgrok.store.results import Cell, Results, name_of, text_of
from jaxgrok.tables.timing import Table, event_times
from jaxgrok.tables.write import markdown, write_text

NOTE = (
    "In each field: how many runs grokked (or, on unlimited data, learned), of how many, the median epoch at which they"
    " did, by Kaplan-Meier, and how many runs ended in another way. `> 40,000`: half of the runs have not done so by"
    " then. Runs that lost it again are counted in both."
)


@dataclass(frozen=True)
class Plane:
    """The cells of a sweep that differ in two axes alone.

    across, down: names of the axes, `down` the one with rows. columns, rows: their values, in order. cells: by (value
    of down, value of across); a point that was not run has none. rest: the fields that all its cells share.
    """

    across: str
    down: str
    columns: list[Any]
    rows: list[Any]
    cells: dict[tuple[Any, Any], Cell]
    rest: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return name_of(self.rest)


def planes(cells: Sequence[Cell]) -> list[Plane]:
    """The planes of a sweep: one for each combination of its other axes. None if fewer than two axes vary.

    The plane is of the first two axes that are numbers, or else of the first two.
    """
    names = [name for name, _ in cells[0].fields] if cells else []
    if len(names) < 2:
        return []
    numbers = [name for name in names if name not in CHOICES]
    down, across = sorted((numbers + [name for name in names if name not in numbers])[:2], key=names.index)
    groups: dict[tuple[tuple[str, Any], ...], dict[tuple[Any, Any], Cell]] = {}
    for cell in cells:
        fields = dict(cell.fields)
        at = fields.pop(down), fields.pop(across)
        groups.setdefault(tuple(fields.items()), {})[at] = cell
    return [
        Plane(across, down, _sorted(at[1] for at in of), _sorted(at[0] for at in of), of, rest)
        for rest, of in groups.items()
        if len({at[0] for at in of}) > 1 and len({at[1] for at in of}) > 1
    ]


def _sorted(values: Any) -> list[Any]:
    """Numbers in order, and unlimited data last; names as they come."""
    found = list(dict.fromkeys(values))
    if any(isinstance(value, str) for value in found):
        return found
    return sorted(found, key=lambda value: (value is None, 0 if value is None else value))


def arrived(cell: Cell) -> Median:
    """When the runs of a cell grokked, or learned."""
    return event_times(cell, "grokked").median


def others(cell: Cell) -> dict[Outcome, int]:
    """How many runs of a cell ended in another way than by grokking or learning."""
    good = (Outcome.GROKKED, Outcome.LEARNED)
    return {outcome: n for outcome, n in cell.outcomes.items() if n and outcome not in good}


def share_text(cell: Cell) -> str:
    """`3/4`: how many runs of a cell grokked or learned, of how many."""
    return f"{arrived(cell).arrived}/{len(cell.records)}"


def time_text(cell: Cell) -> str:
    """The median epoch, or by when half of the runs had not arrived; `-` if all diverged at once."""
    median = arrived(cell)
    if median.value is not None:
        return f"{median.value:,.0f}"
    return f"> {median.longest:,.0f}" if median.longest > 0 else "-"


def readable_table(plane: Plane) -> Table:
    """For people: a row per value of one axis."""
    rows = []
    for y in plane.rows:
        row = [text_of(plane.down, y)]
        for x in plane.columns:
            cell = plane.cells.get((y, x))
            if cell is None:
                row.append("-")
                continue
            left = "".join(f"; {n} {outcome}" for outcome, n in others(cell).items())
            row.append(f"{share_text(cell)} at {time_text(cell)}{left}")
        rows.append(row)
    return [f"{plane.down} \\ {plane.across}", *(text_of(plane.across, x) for x in plane.columns)], rows


def write_phase_diagrams(results: Results, folder: Path | None = None) -> None:
    """Write phase_diagram.md if two axes vary, into a folder; None means the sweep's own `tables`."""
    found = planes(results.cells)
    if found:
        folder = results.path / "tables" if folder is None else folder
        parts = ["# Phase diagram"]
        for plane in found:
            parts += [f"## {plane.name}"] if plane.name else []
            parts.append(markdown(*readable_table(plane)))
        write_text(folder / "phase_diagram.md", "\n\n".join([*parts, NOTE]) + "\n")
