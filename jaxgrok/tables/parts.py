"""The tables of a task's parts: when each digit, trigram or repeated token is learned, and in which order across runs.

    tables/parts.csv   a row per run and part: when it was learned, how its loss fell, and what it ended at
    tables/parts.md    a row per part of each cell, medians over runs; whether runs agree about the order

When a part is learned: `Results.part_timings` (spec: MEASURES.md). What the loss does not count (the part "outside") is in
parts.csv without events.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgrok.stats import order
from jaxgrok.stats import survival as stats
from jaxgrok.store import events as phases
from jaxgrok.store.results import AXES, Results
from jaxgrok.store.steps import replace_text
from jaxgrok.tables.timing import Cell, csv_text, field_values, markdown

EVENTS = ("grokked", "test_loss_peak", "drop_10", "drop_50", "drop_90")
ORDERED = 16  # parts: of more, a matrix of who came before whom is left to the figure
NOTE = (
    "Learned: a test loss below half of that of a guess (ln 2 / 2 for a digit that is 0 or 1, ln 10 / 2 for another and for skip trigrams, "
    "ln(tokens - 1) / 2 for repeated tokens), and of skip trigrams 99 % accuracy too; Kaplan-Meier medians with 95 % intervals, in epochs "
    "(updates). Drop width: 10 to 90 % of the fall of the part's log test loss, where it has settled. First in: runs in which it came "
    "first; parts that tie share the run."
)
ORDER_NOTE = (
    "Kendall's W is 1 where every run has the same order and near 0 where each has its own (p: ranks shuffled within runs). Spread: from "
    "the first part's arrival to the last's."
)


@dataclass(frozen=True)
class Parts:
    """The parts of one cell. timings: {part: its events} of each run; times, reached [R, P]: when they were learned, or were last seen
    not to be; curves: {part: test loss [evaluations]} and epoch_eval of each run. left_out: parts of which some run has no test target."""

    cell: Cell
    names: tuple[str, ...]
    timings: list[dict[str, phases.Timing]]
    curves: list[dict]
    left_out: tuple[str, ...] = ()

    @property
    def times(self) -> np.ndarray:
        return np.array([[t.last_epoch if t.by("grokked") is None else t.by("grokked") for t in run.values()] for run in self.timings])

    @property
    def reached(self) -> np.ndarray:
        return np.array([[t.by("grokked") is not None for t in run.values()] for run in self.timings])

    def width(self, part: str) -> stats.Median:
        """Of the fall of a part's log loss; unknown, and censored at 0, of a run in which it has not settled."""
        widths = [run[part].width for run in self.timings]
        return stats.median([width or 0 for width in widths], [width is not None for width in widths])

    def learned(self, part: str) -> stats.Median:
        at = self.names.index(part)
        return stats.median(self.times[:, at], self.reached[:, at])

    @property
    def concordance(self) -> order.Concordance:
        return order.concordance(self.times, self.reached)

    @property
    def spread(self) -> stats.Median:
        return stats.median(*order.spread(self.times, self.reached))


def parts_of(results: Results, of_cells: list[Cell]) -> list[Parts]:
    """The parts of each cell whose task has any."""
    found = []
    for cell in of_cells:
        timings = [results.part_timings(record) for record in cell.records]
        seen = list(dict.fromkeys(part for of_run in timings for part in of_run))
        names = tuple(part for part in seen if all(part in of_run for of_run in timings))
        if names:
            curves = [results.part_curves(run=record["run"]) for record in cell.records]
            timings = [{part: of_run[part] for part in names} for of_run in timings]
            found.append(Parts(cell, names, timings, curves, tuple(part for part in seen if part not in names)))
    return found


def parts_table(results: Results, of_parts: list[Parts]) -> tuple[list[str], list[list]]:
    """(header, rows) of parts.csv."""
    more = [name for name in results.varying() if name not in (*AXES, "n_train")]
    header = ["run", "seed", *AXES, "n_train", *more, "part", "last_epoch"]
    header += [f"{event}_{end}" for event in EVENTS for end in ("after", "by")] + ["drop_width", "final_loss", "final_acc"]
    rows = []
    for parts in of_parts:
        for record, timings, curves in zip(parts.cell.records, parts.timings, parts.curves):
            for part, loss in curves["test_part_loss"].items():
                timing = timings.get(part)
                events = [timing.events.get(event, (None, None)) if timing else (None, None) for event in EVENTS]
                last = [float(np.median(x[-10:])) if len(x) else None for x in (loss, curves["test_part_acc"][part])]
                row = [record["run"], record["seed"], *field_values(record, (*AXES, "n_train", *more)), part]
                row.append(int(results.metrics.last_epoch[record["run"]]))
                rows.append([*row, *(end for event in events for end in event), timing and timing.width, *last])
    return header, sorted(rows, key=lambda row: row[0])


def readable_table(parts: Parts) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a row per part."""
    first = order.first_counts(parts.times, parts.reached)
    rows = []
    for at, part in enumerate(parts.names):
        losses = [np.median(curves["test_part_loss"][part][-10:]) for curves in parts.curves]
        arrived = f"{parts.reached[:, at].sum()}/{len(parts.timings)}"
        rows.append([part, arrived, str(parts.learned(part)), f"{first[at]:g}", str(parts.width(part)), f"{np.median(losses):.2g}"])
    return ["part", "learned", "at", "first in", "drop width", "final loss"], rows


def order_lines(parts: Parts) -> list[str]:
    """What is told of a cell's order of arrival, a line each."""
    c, runs = parts.concordance, len(parts.timings)
    agreement = "not enough complete orders" if c.W != c.W else f"Kendall's W {c.W:.2f}, p {c.pvalue:.2g}"
    before = order.before(parts.times, parts.reached)
    first, decided = (int(np.diagonal(counts, 1).sum()) for counts in (before.first, before.decided))
    lines = [f"Order of arrival over {c.runs} of {runs} runs with a whole order: {agreement}.", f"Spread: {parts.spread} epochs."]
    lines += [f"Of two neighbours the one listed first came first in {first} of {decided} pairs."] if decided else []
    missing = f"Left out, because not every run has a test example of it: {', '.join(parts.left_out)}."
    return lines + ([missing] if parts.left_out else [])


def before_table(parts: Parts) -> tuple[list[str], list[list[str]]]:
    """(header, rows): in how many of the runs that decide it each part came before each other."""
    before = order.before(parts.times, parts.reached)
    shares = [[f"{first}/{of}" if of else "-" for first, of in zip(*row)] for row in zip(before.first, before.decided)]
    return ["before", *parts.names], [[name, *row] for name, row in zip(parts.names, shares)]


def parts_markdown(of_parts: list[Parts]) -> str:
    """parts.md: a table per cell, and what its runs say about the order."""
    sections = []
    for parts in of_parts:
        sections += [f"## {parts.cell.name or 'All runs'}", markdown(*readable_table(parts)), " ".join(order_lines(parts))]
        if len(parts.names) <= ORDERED:
            sections.append(markdown(*before_table(parts)))
    return "\n\n".join(["# Parts", *sections, NOTE, ORDER_NOTE]) + "\n"


def write_part_tables(results: Results, of_cells: list[Cell]) -> list[Parts]:
    """Write tables/parts.csv and parts.md where a task has parts; returns what they show."""
    of_parts = parts_of(results, of_cells)
    if of_parts:
        folder = Path(results.path) / "tables"
        folder.mkdir(exist_ok=True)
        replace_text(folder / "parts.csv", csv_text(*parts_table(results, of_parts)))
        replace_text(folder / "parts.md", parts_markdown(of_parts))
    return of_parts
