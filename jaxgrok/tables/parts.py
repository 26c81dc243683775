"""When each part of a task (a digit, a trigram, a repeated token) is learned, and in which order across runs.

    tables/parts.csv   a row per run and part: when it was learned, how its loss fell, and what it ended at
    tables/parts.md    a row per part of each cell, medians over runs, and whether the runs agree about the order

`Task.part_criterion` says when a part is learned. A part that the loss does not count, "outside", is in parts.csv
without events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from jaxgrok import stats
from jaxgrok.stats import Arrival, order
from jaxgrok.store.events import PartEvents, Timing
from jaxgrok.store.results import AXES, Cell, Results
from jaxgrok.tables.timing import Table, Times, values_of
from jaxgrok.tables.write import markdown, write_csv, write_text

EVENTS = ("grokked", "test_loss_peak", "drop_10", "drop_50", "drop_90")
MOST_ORDERED = 16  # with more parts, who came before whom is left to the figure
NOTE = (
    "Learned: the test loss of the part is below half of a guess's (ln 2 / 2 for a digit that is 0 or 1, ln 10 / 2 "
    "for any other digit and for skip trigrams, ln(tokens - 1) / 2 for repeated tokens, about ln(p) / 2 for one of "
    "several operations); where accuracy is the criterion of the whole, as for skip trigrams and operations, that of "
    "the part is 99 % too. Times are medians with 95 % intervals in epochs (updates). First in: the number of runs in"
    " which the part came first; parts that tie share the run. Drop width: from 10 to 90 % of the fall of the part's "
    "log test loss, in the runs in which it has settled."
)
ORDER_NOTE = (
    "Kendall's W is 1 if every run has the same order, and near 0 if each has its own (p: ranks shuffled within runs). "
    "Spread: from the arrival of the first part to that of the last."
)


@dataclass(frozen=True)
class Parts:
    """The parts of one cell.

    timings: for each run, {part: its events}. events: for each run, {part: what is known of it}, of all parts.
    left_out: the parts of which some run has no test target.
    """

    cell: Cell
    names: tuple[str, ...]
    timings: list[dict[str, Timing]]
    events: list[dict[str, PartEvents]]
    left_out: tuple[str, ...] = ()

    def arrivals(self, part: str) -> list[Arrival]:
        """When each run learned a part."""
        found = [of_run[part].arrival("grokked") for of_run in self.timings]
        return [arrival for arrival in found if arrival is not None]

    @property
    def times(self) -> Float[np.ndarray, "R parts"]:
        """When each run learned each part, or how long it was watched."""
        return np.array([[arrival.time for arrival in self.arrivals(part)] for part in self.names]).T

    @property
    def reached(self) -> Bool[np.ndarray, "R parts"]:
        return np.array([[arrival.reached for arrival in self.arrivals(part)] for part in self.names]).T

    def learned(self, part: str) -> stats.Median:
        """The median time at which a part was learned."""
        return stats.median(self.arrivals(part))

    def drop_width(self, part: str) -> Times:
        """The width of the fall of a part's log loss; unknown of a run in which the part has not settled."""
        widths = [of_run[part].drop_width for of_run in self.timings]
        known = {number: Arrival(width, True) for number, width in enumerate(widths) if width is not None}
        return Times(known, len(widths) - len(known))

    @property
    def concordance(self) -> order.Concordance:
        return order.concordance(self.times, self.reached)

    @property
    def spread(self) -> stats.Median:
        return stats.median(order.spread(self.times, self.reached))


def parts_of(results: Results) -> list[Parts]:
    """The parts of each cell whose task has any."""
    found = []
    for cell in results.cells:
        if not cell.task.parts:
            continue
        timings = [results.part_timings(record) for record in cell.records]
        seen = list(dict.fromkeys(part for of_run in timings for part in of_run))
        names = tuple(part for part in seen if all(part in of_run for of_run in timings))
        if names:
            events = [results.events(record).parts for record in cell.records]
            timings = [{part: of_run[part] for part in names} for of_run in timings]
            found.append(Parts(cell, names, timings, events, tuple(part for part in seen if part not in names)))
    return found


def parts_table(results: Results, of_parts: Sequence[Parts]) -> Table:
    """parts.csv: a row per run and part."""
    more = [name for name in results.varying if name not in (*AXES, "n_train")]
    header = ["run", "seed", *AXES, "n_train", *more, "part", "last_epoch"]
    header += [f"{event}_{end}" for event in EVENTS for end in ("after", "by")]
    header += ["drop_width", "final_loss", "final_acc"]
    rows = []
    for parts in of_parts:
        for record, timings, events in zip(parts.cell.records, parts.timings, parts.events, strict=True):
            run = [record.number, record.seed, *values_of(record, (*AXES, "n_train", *more))]
            last_epoch = record.last_epoch
            for part, of_part in events.items():
                timing = timings.get(part)
                reached = {} if timing is None else timing.events
                bounds = [end for event in EVENTS for end in reached.get(event, (None, None))]
                width = None if timing is None else timing.drop_width
                rows.append([*run, part, last_epoch, *bounds, width, of_part.final_loss, of_part.final_accuracy])
    return header, sorted(rows, key=lambda row: row[0])


def readable_table(parts: Parts) -> Table:
    """For people: a row per part."""
    first = order.first_counts(parts.times, parts.reached)
    rows = []
    for at, part in enumerate(parts.names):
        losses = [events[part].final_loss for events in parts.events]
        loss = np.median([loss for loss in losses if loss is not None])
        arrived = f"{parts.reached[:, at].sum()}/{len(parts.timings)}"
        times = [str(parts.learned(part)), f"{first[at]:g}", str(parts.drop_width(part))]
        rows.append([part, arrived, *times, f"{loss:.2g}"])
    return ["part", "learned", "at", "first in", "drop width", "final loss"], rows


def order_lines(parts: Parts) -> list[str]:
    """What can be said about a cell's order of arrival, a line each."""
    c, runs = parts.concordance, len(parts.timings)
    agreement = "too few complete orders" if np.isnan(c.W) else f"Kendall's W {c.W:.2f}, p {c.pvalue:.2g}"
    before = order.before(parts.times, parts.reached)
    first, decided = (int(np.diagonal(counts, 1).sum()) for counts in (before.first, before.decided))
    lines = [f"Order of arrival, {c.runs} of {runs} runs with a complete order: {agreement}."]
    lines.append(f"Spread: {parts.spread} epochs.")
    if decided:
        lines.append(f"Of two neighbouring parts, the one listed first came first in {first} of {decided} pairs.")
    if parts.left_out:
        lines.append(f"Left out, because not every run has a test example of it: {', '.join(parts.left_out)}.")
    return lines


def before_table(parts: Parts) -> Table:
    """In how many of the runs that decide it each part came before each other part."""
    before = order.before(parts.times, parts.reached)
    counts = zip(before.first, before.decided, strict=True)
    shares = [[f"{first}/{of}" if of else "-" for first, of in zip(*row, strict=True)] for row in counts]
    return ["before", *parts.names], [[name, *row] for name, row in zip(parts.names, shares, strict=True)]


def parts_markdown(of_parts: Sequence[Parts]) -> str:
    """parts.md: a table per cell, and what its runs say about the order."""
    sections = []
    for parts in of_parts:
        sections += [f"## {parts.cell.name or 'All runs'}", markdown(*readable_table(parts))]
        sections.append(" ".join(order_lines(parts)))
        if len(parts.names) <= MOST_ORDERED:
            sections.append(markdown(*before_table(parts)))
    return "\n\n".join(["# Parts", *sections, NOTE, ORDER_NOTE]) + "\n"


def write_part_tables(results: Results, folder: Path | None = None) -> list[Parts]:
    """Write parts.csv and parts.md if a task has parts, and return what they show. folder None means the sweep's own
    `tables`."""
    folder = results.path / "tables" if folder is None else folder
    of_parts = parts_of(results)
    if of_parts:
        write_csv(folder / "parts.csv", *parts_table(results, of_parts))
        write_text(folder / "parts.md", parts_markdown(of_parts))
    return of_parts
