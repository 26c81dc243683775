"""When the phases of runs came: a row per run, a row per cell, and the same to read.

tables/timings.csv   a row per run: its outcome, and every event as a bracket (not yet at _after, there at _by)
tables/summary.csv   a row per cell: outcomes counted, and medians with 95 % intervals
tables/summary.md    the same to read, with the comparisons of cells
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrok import stats
from jaxgrok.config import CHOICES, UNLIMITED
from jaxgrok.stats import Arrival
from jaxgrok.store.events import CIRCUIT_EVENTS, EVENTS, FALLS, STAGES, Outcome
from jaxgrok.store.results import AXES, Cell, Results, RunRecord, text_of
from jaxgrok.tables.write import markdown, write_csv, write_text

STAGE_BOUNDS = ("test_loss_peak", "restricted_10", "restricted_90", "drop_10", "drop_90", "stable")
UNKNOWN = "unknown (needs settled runs)"

Table = tuple[list[str], list[list[Any]]]  # (header, rows)


# --- times over the runs of a cell ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """When the runs of a cell reached something.

    arrivals: by seed, for the runs of which it is known. unknown: how many runs there are of which it is not.
    """

    arrivals: dict[int, Arrival]
    unknown: int = 0

    @property
    def median(self) -> stats.Median:
        """The median over the runs of which the time is known."""
        return stats.median(list(self.arrivals.values()))

    def __str__(self) -> str:
        """The median with its interval, and the number of unknown runs: `860 [790, -] (2 unknown)`."""
        if not self.unknown:
            return str(self.median)
        return f"{self.median} ({self.unknown} unknown)" if self.arrivals else UNKNOWN


def event_times(cell: Cell, event: str) -> Times:
    """When each run reached an event. A run that has not is censored at its last epoch; a diverged one never will be.

    The falls of the test loss and of the restricted loss are known only of runs that have settled.
    """
    arrivals = {record.seed: timing.arrival(event) for record, timing in zip(cell.records, cell.timings, strict=True)}
    known = {seed: arrival for seed, arrival in arrivals.items() if arrival is not None}
    return Times(known, len(arrivals) - len(known) if event in FALLS else 0)


def delay_times(cell: Cell) -> Times:
    """Epochs from memorised to grokked, of the runs that memorised."""
    delays = {record.seed: timing.delay_arrival for record, timing in zip(cell.records, cell.timings, strict=True)}
    return Times({seed: arrival for seed, arrival in delays.items() if arrival is not None})


def drop_width_times(cell: Cell) -> Times:
    """Epochs from 10 to 90 % of the fall of the log test loss, of the runs that have settled."""
    widths = {record.seed: timing.drop_width for record, timing in zip(cell.records, cell.timings, strict=True)}
    known = {seed: Arrival(width, True) for seed, width in widths.items() if width is not None}
    return Times(known, len(widths) - len(known))


# column of summary.csv: the times that it is the median of
SUMMARY_TIMES: dict[str, Callable[[Cell], Times]] = {
    "memorised": lambda cell: event_times(cell, "memorised"),
    "grokked": lambda cell: event_times(cell, "grokked"),
    "delay": delay_times,
    "width": drop_width_times,
}


def stages(cell: Cell) -> dict[str, tuple[float, float]]:
    """{stage: (start, end)} between the medians of its bounds, if both exist. The last stage ends with the longest
    run."""
    end = max(timing.last_epoch for timing in cell.timings)
    bounds = {
        stage: (
            0 if first is None else event_times(cell, first).median.value,
            end if last is None else event_times(cell, last).median.value,
        )
        for stage, (first, last) in STAGES.items()
    }
    return {stage: (start, stop) for stage, (start, stop) in bounds.items() if start is not None and stop is not None}


def watched_text(cell: Cell) -> str:
    """How long after grokking the runs of a cell were trained: `median (shortest - longest)` in epochs."""
    watched = [timing.watched for timing in cell.timings if timing.watched is not None]
    if not watched:
        return "-"
    low, high = min(watched), max(watched)
    return f"{np.median(watched):,.0f}" + (f" ({low:,} - {high:,})" if low != high else "")


# --- timings.csv and summary.csv --------------------------------------------------------------------------------------


def values_of(record: RunRecord, names: Sequence[str]) -> list[Any]:
    """These coordinates of a run as CSV files have them: unlimited data by that word."""
    values = [record.coordinates[name] for name in names]
    return [UNLIMITED if name == "n_train" and x is None else x for name, x in zip(names, values, strict=True)]


def events_of(results: Results) -> tuple[str, ...]:
    """The events that are known of a sweep: those of the circuits only once checkpoints were analysed."""
    return (*EVENTS, *CIRCUIT_EVENTS) if results.has_circuit_events else EVENTS


def timings_table(results: Results, cells: Sequence[Cell]) -> Table:
    """timings.csv: a row per run. An event that a run did not reach has empty bounds."""
    events = events_of(results)
    more = [name for name in results.varying if name not in (*AXES, "n_train")]
    header = ["run", "seed", *AXES, "n_train", "outcome", "last_epoch"]
    header += [f"{event}_{end}" for event in events for end in ("after", "by")]
    header += ["delay", "drop_width", "settled", "watched_after_grokking", *more]
    rows = []
    for cell in cells:
        for record, timing in zip(cell.records, cell.timings, strict=True):
            row = [
                record.number,
                record.seed,
                *values_of(record, (*AXES, "n_train")),
                timing.outcome,
                timing.last_epoch,
            ]
            for event in events:
                row += timing.events.get(event, (None, None))
            row += [timing.delay, timing.drop_width, timing.settled, timing.watched]
            rows.append([*row, *(record.coordinates[name] for name in more)])
    return header, sorted(rows, key=lambda row: row[0])


def summary_table(results: Results, cells: Sequence[Cell]) -> Table:
    """summary.csv: a row per cell with its outcomes counted, and for each time the median, its interval (low, high),
    how many runs arrived, of how many, and of how many it is unknown."""
    more = [name for name in results.varying if name not in AXES]
    bounds = STAGE_BOUNDS if results.has_circuit_events else ()
    header = [*AXES, *more, "runs", *(outcome.replace(" ", "_") for outcome in Outcome), "settled"]
    header += [
        f"{name}_{part}"
        for name in (*SUMMARY_TIMES, *bounds)
        for part in ("median", "low", "high", "arrived", "of", "unknown")
    ]
    rows = []
    for cell in cells:
        row = [*values_of(cell.records[0], (*AXES, *more)), len(cell.records), *cell.outcomes.values()]
        row.append(sum(timing.settled for timing in cell.timings))
        times = [times_of(cell) for times_of in SUMMARY_TIMES.values()]
        for of in (*times, *(event_times(cell, event) for event in bounds)):
            m = of.median
            row += [m.value, m.low, m.high, m.arrived, m.total + of.unknown, of.unknown]
        rows.append(row)
    return header, rows


# --- to read ----------------------------------------------------------------------------------------------------------


NOTE = (
    "Times are in epochs: medians with 95 % intervals, by Kaplan-Meier or, if runs diverged, by Aalen-Johansen, in "
    "which a diverged run never arrives. `> 40,000 (3/32)`: half of the runs have not arrived within 40,000 epochs; 3"
    " of 32 have. `-`: the value does not exist. Memorised: the train accuracy is 99 %. Grokked: the test accuracy is"
    " 99 %. Each is the first evaluation from which this holds for 5 more. For n-digit addition and repeated "
    "subsequences, grokked means that the test loss is below half of a uniform guess's; on unlimited data it is "
    "called learned. Lost: the run grokked, and no longer does so at its last 5 evaluations. Delay: from memorised to"
    " grokked, over the runs that memorised. Drop width: from 10 to 90 % of the fall of the log test loss, over the "
    "runs that have settled; it is unknown for the others. Watched after: how long the runs trained after they "
    "grokked, the median and the range; what would happen later is unknown."
)

STAGES_NOTE = (
    "Memorisation ends at the peak of the test loss. Generalisation is from 10 to 90 % of the fall of the log "
    "restricted loss (over all pairs, with the keys of the run's last checkpoint), and clean-up is the same for the "
    "log test loss. Interpolation is between the peak and generalisation. Stability follows both. Stages may overlap."
    " The falls are known only for runs that have settled. The bounds of the restricted loss are known to within two "
    "checkpoints."
)


def readable_table(cells: Sequence[Cell]) -> Table:
    """For people: a row per cell with its outcomes counted and its medians."""
    varied = [name for name, _ in cells[0].fields] if cells else []
    always = {Outcome.LEARNED if cell.unlimited else Outcome.GROKKED for cell in cells}
    shown = [outcome for outcome in Outcome if outcome in always or any(cell.outcomes[outcome] for cell in cells)]
    arrived = f"{' or '.join(sorted(always)) or 'grokked'} at"
    header = [*varied, "runs", *shown, "memorised", arrived, "delay", "drop width", "watched after"]
    rows = []
    for cell in cells:
        values = [text_of(name, value) for name, value in cell.fields]
        counts = [str(cell.outcomes[outcome]) for outcome in shown]
        times = [str(times_of(cell)) for times_of in SUMMARY_TIMES.values()]
        rows.append([*values, str(len(cell.records)), *counts, *times, watched_text(cell)])
    return header, rows


def stages_table(cells: Sequence[Cell]) -> Table:
    """For people: where each stage starts and ends."""
    rows = []
    for cell in cells:
        values = [text_of(name, value) for name, value in cell.fields]
        for stage, (start, end) in STAGES.items():
            first = "0" if start is None else str(event_times(cell, start))
            last = "end of run" if end is None else str(event_times(cell, end))
            rows.append([*values, stage, first, last])
    return [*([name for name, _ in cells[0].fields] if cells else []), "stage", "from", "to"], rows


def waiting_line(results: Results) -> str:
    """A line on the runs that are in no row; empty if there are none."""
    n = results.not_begun
    return f"{n} of {len(results.runs)} runs have not begun, and are in no row." if n else ""


# --- cells compared ---------------------------------------------------------------------------------------------------

COMPARISON_HEADER = ["cell", "cell", "test", "earlier in first / second / undecided", "p", "p, Holm"]
COMPARISON_NOTE = (
    "Cells that differ in one axis are compared: numbers with their neighbours, categories in every pair. Sign test "
    "over the seeds that both cells have, if they have the same ones; otherwise log-rank. The last column is adjusted"
    " for the number of comparisons in this table (Holm)."
)


def compared_pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """The pairs of cells that differ in one axis: there by one step of its values if they are numbers, in any way if
    they are categories."""
    steps: dict[str, list[Any]] = {}
    for cell in cells:
        for name, value in cell.fields:
            if value not in steps.setdefault(name, []):
                steps[name].append(value)
    for name, values in steps.items():
        if name not in CHOICES:
            # Unlimited data, None, is the largest size.
            values.sort(key=lambda value: (value is None, 0 if value is None else value))
    pairs = []
    for first, second in combinations(cells, 2):
        differ = [(name, a, b) for (name, a), (_, b) in zip(first.fields, second.fields, strict=True) if a != b]
        if len(differ) == 1:
            ((name, a, b),) = differ
            if name in CHOICES or abs(steps[name].index(a) - steps[name].index(b)) == 1:
                pairs.append((first, second))
    return pairs


def comparison_rows(names: Sequence[tuple[str, str]], comparisons: Sequence[stats.Comparison]) -> list[list[str]]:
    """The rows of a table of comparisons, with their p values adjusted together."""
    adjusted = stats.holm([comparison.pvalue for comparison in comparisons])
    rows = []
    for pair, c, p in zip(names, comparisons, adjusted, strict=True):
        counts = f"{c.first} / {c.second} / {c.undecided}" if c.test == "sign" else "-"
        rows.append([*pair, c.test, counts, *("-" if np.isnan(x) else f"{x:.2g}" for x in (c.pvalue, p))])
    return rows


def grokking_comparison_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Cells compared by when they grokked."""
    pairs = compared_pairs(cells)
    grokked = [[event_times(cell, "grokked").arrivals for cell in pair] for pair in pairs]
    return comparison_rows([(a.name, b.name) for a, b in pairs], [stats.compare(*both) for both in grokked])


# --- summary.md -------------------------------------------------------------------------------------------------------


def constants_line(results: Results, names: Sequence[str]) -> str:
    """The coordinates that all runs share, in a line; empty if there are none."""
    first = results.runs[0].coordinates
    shared = [name for name in names if name not in results.varying and (first[name] is not None or name == "n_train")]
    return ", ".join(f"{name} {text_of(name, first[name])}" for name in shared) + "." if shared else ""


def made_with(results: Results) -> str:
    """Versions and devices of the session that trained last: `jax 0.10.2, ..., on 1 x cpu`. Empty before the first."""
    if not results.sessions:
        return ""
    session = results.sessions[-1]
    versions = ", ".join(f"{name} {number}" for name, number in session.get("versions", {}).items())
    devices = session.get("devices", ["?"])
    return f"{versions}, on {len(devices)} x {devices[0]}"


def summary_markdown(results: Results, cells: Sequence[Cell]) -> str:
    """summary.md: the table for people, what it rests on, and the comparisons of cells."""
    first = results.runs[0]
    names = AXES if first.config.listed else (*AXES, "n_train")
    sections = [f"# {results.path.name}", constants_line(results, names), waiting_line(results)]
    sections += [markdown(*readable_table(cells)), NOTE]
    if results.has_circuit_events:
        sections += ["## Stages", markdown(*stages_table(cells)), STAGES_NOTE]
    if comparisons := grokking_comparison_rows(cells):
        sections += ["## Which cell grokked earlier", markdown(COMPARISON_HEADER, comparisons), COMPARISON_NOTE]
    sections.append(f"Made with {made_with(results)}, matmul precision {first.config.matmul_precision}.")
    return "\n\n".join(section for section in sections if section) + "\n"


def write_timing_tables(results: Results, folder: Path | None = None) -> None:
    """Write timings.csv, summary.csv and summary.md into a folder; None means the sweep's own `tables`."""
    folder = results.path / "tables" if folder is None else folder
    write_csv(folder / "timings.csv", *timings_table(results, results.cells))
    write_csv(folder / "summary.csv", *summary_table(results, results.cells))
    write_text(folder / "summary.md", summary_markdown(results, results.cells))
