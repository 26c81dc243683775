"""The tables of a sweep: a row per run, a row per cell, and the same for the terminal."""

import csv
import io
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from jaxgrok.stats import survival as stats
from jaxgrok.store import events as phases
from jaxgrok.store.results import AXES, Results
from jaxgrok.store.steps import replace_text
from jaxgrok.training.grid import UNLIMITED

MEASURED = ("memorised", "grokked", "delay", "width")  # what a cell's row gives the median of
STAGE_BOUNDS = ("test_loss_peak", "restricted_10", "restricted_90", "drop_10", "drop_90", "stable")  # and once it was analysed


def shown_value(name: str, value) -> str:
    """A field's value for people."""
    if value is None:
        return UNLIMITED if name == "n_train" else "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_values(record: dict, names) -> list:
    """These fields of a run, as tables name them: unlimited data by that word."""
    return [UNLIMITED if name == "n_train" and record[name] is None else record[name] for name in names]


def name_of(fields) -> str:
    """`wd=0.1 lr=0.001`."""
    return " ".join(f"{name}={shown_value(name, value)}" for name, value in fields)


def waiting(results: Results, of_cells: list) -> str:
    """A line on the runs that are in no row; empty where there are none."""
    n = len(results.runs) - sum(len(cell.records) for cell in of_cells)
    return f"{n} of {len(results.runs)} runs have not begun, and are in no row." if n else ""


@dataclass(frozen=True)
class Cell:
    """One combination of all axes except the seed: its runs' records and timings, in the same order."""

    fields: tuple
    records: list
    timings: list

    @property
    def name(self) -> str:
        return name_of(self.fields)

    def times(self, measured: str) -> dict[int, tuple[int, bool]]:
        """{seed: (time, reached)} of memorised, grokked (any event), delay or width. With unlimited data nothing is memorised.

        A delay is censored at the run's end and counts only runs that memorised. A width is known only of runs that
        grokked and settled: of the others nothing is, so they are censored at 0 (spec: MEASURES.md). So are the falls of
        test and restricted loss: of a run that has not settled it is known only that its test loss falls after its peak.
        """
        out = {}
        for record, timing in zip(self.records, self.timings):
            if measured == "memorised" and record["n_train"] is None:
                continue
            if measured == "delay":
                memorised = timing.by("memorised")
                if memorised is None:
                    continue
                value = timing.delay
                out[record["seed"]] = (timing.last_epoch - memorised, False) if value is None else (value, True)
            elif measured == "width":
                out[record["seed"]] = (0, False) if timing.width is None else (timing.width, True)
            else:
                value = timing.by(measured)
                waited = 0 if measured.startswith("restricted") else timing.by("test_loss_peak") or timing.last_epoch
                censored = waited if measured.startswith(phases.FALLS) else timing.last_epoch
                out[record["seed"]] = (censored, False) if value is None else (value, True)
        return out

    def median(self, measured: str) -> stats.Median:
        times = self.times(measured)
        return stats.median(*zip(*times.values())) if times else stats.median([], [])

    def stages(self) -> dict[str, tuple[float, float]]:
        """{stage: (start, end)} between the medians of its bounds, where both exist; the last ends with the longest run."""
        end = max(timing.last_epoch for timing in self.timings)
        bounds = {
            stage: (0 if first is None else self.median(first).value, end if last is None else self.median(last).value)
            for stage, (first, last) in phases.STAGES.items()
        }
        return {stage: (start, stop) for stage, (start, stop) in bounds.items() if start is not None and stop is not None}

    def outcomes(self) -> dict[str, int]:
        return {outcome: sum(timing.outcome == outcome for timing in self.timings) for outcome in phases.OUTCOMES}


def cells(results: Results) -> list[Cell]:
    """The cells of a sweep, timed."""
    return [Cell(fields, records, [results.timing(record) for record in records]) for fields, records in results.cells().items()]


def events_of(results: Results) -> tuple[str, ...]:
    """The events that are known of a sweep: those of its circuits once its checkpoints were analysed."""
    return (*phases.EVENTS, *phases.CIRCUIT_EVENTS) if results.has_circuit_events else phases.EVENTS


def timings_table(results: Results, of_cells: list[Cell]) -> tuple[list[str], list[list]]:
    """(header, rows) of timings.csv: a row per run; an event that was not reached has empty bounds."""
    events = events_of(results)
    more = [name for name in results.varying() if name not in (*AXES, "n_train")]
    header = ["run", "seed", *AXES, "n_train", "outcome", "last_epoch"]
    header += [f"{event}_{end}" for event in events for end in ("after", "by")] + ["delay", "drop_width", "settled", *more]
    rows = []
    for cell in of_cells:
        for record, timing in zip(cell.records, cell.timings):
            row = [record["run"], record["seed"], *field_values(record, (*AXES, "n_train")), timing.outcome, timing.last_epoch]
            for event in events:
                row += timing.events.get(event, (None, None))
            rows.append([*row, timing.delay, timing.width, timing.settled, *(record[name] for name in more)])
    return header, sorted(rows, key=lambda row: row[0])


def summary_table(results: Results, of_cells: list[Cell]) -> tuple[list[str], list[list]]:
    """(header, rows) of summary.csv: a row per cell, counts of outcomes, and median, low, high, arrived of each time."""
    more = [name for name in results.varying() if name not in AXES]
    measured_ones = (*MEASURED, *(STAGE_BOUNDS if results.has_circuit_events else ()))
    header = [*AXES, *more, "runs", *(outcome.replace(" ", "_") for outcome in phases.OUTCOMES), "settled"]
    header += [f"{measured}_{part}" for measured in measured_ones for part in ("median", "low", "high", "arrived", "of")]
    rows = []
    for cell in of_cells:
        first = cell.records[0]
        row = [*field_values(first, (*AXES, *more)), len(cell.records), *cell.outcomes().values()]
        row.append(sum(timing.settled for timing in cell.timings))
        for measured in measured_ones:
            m = cell.median(measured)
            row += [m.value, m.low, m.high, m.arrived, m.total]
        rows.append(row)
    return header, rows


def readable_table(of_cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: outcomes counted, medians with 95 % intervals in epochs."""
    varied = [name for name, _ in of_cells[0].fields] if of_cells else []
    always = {"learned" if record["n_train"] is None else "grokked" for cell in of_cells for record in cell.records}
    shown = [outcome for outcome in phases.OUTCOMES if outcome in always or any(cell.outcomes()[outcome] for cell in of_cells)]
    header = [*varied, "runs", *shown, "memorised", f"{' or '.join(sorted(always)) or 'grokked'} at", "delay", "drop width"]
    rows = []
    for cell in of_cells:
        values = [shown_value(name, value) for name, value in cell.fields]
        counts = [str(cell.outcomes()[outcome]) for outcome in shown]
        rows.append([*values, str(len(cell.records)), *counts, *(str(cell.median(measured)) for measured in MEASURED)])
    return header, rows


def neighbours(of_cells: list[Cell]) -> list[tuple[Cell, Cell]]:
    """Pairs of cells that differ in one field, and there by one step of its values in the sweep."""
    steps = {}
    for cell in of_cells:
        for name, value in cell.fields:
            steps.setdefault(name, [])
            if value not in steps[name]:
                steps[name].append(value)
    for values in steps.values():
        values.sort(key=lambda value: (value is None, isinstance(value, str), 0 if value is None else value))
    pairs = []
    for first, second in combinations(of_cells, 2):
        differ = [(name, a, b) for (name, a), (_, b) in zip(first.fields, second.fields) if a != b]
        if len(differ) == 1:
            name, a, b = differ[0]
            if abs(steps[name].index(a) - steps[name].index(b)) == 1:
                pairs.append((first, second))
    return pairs


def comparison_rows(of_cells: list[Cell]) -> list[list[str]]:
    """Neighbouring cells compared by when they grokked."""
    rows = []
    for first, second in neighbours(of_cells):
        c = stats.compare(first.times("grokked"), second.times("grokked"))
        pairs = f"{c.first} / {c.second} / {c.undecided}" if c.test == "sign" else "-"
        rows.append([first.name, second.name, c.test, pairs, "-" if c.pvalue != c.pvalue else f"{c.pvalue:.2g}"])
    return rows


def markdown(header, rows) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


NOTE = (
    "Epochs: Kaplan-Meier medians with 95 % intervals. `> 40,000 (3/32)`: not reached within 40,000 epochs, 3 of 32 runs having "
    "arrived; `-`: does not exist. Memorised: train accuracy 99 %; grokked: test accuracy 99 %; each the first evaluation from "
    "which it holds for 5 more; of n-digit addition and repeated subsequences, a test loss below half of that of a uniform guess, and "
    "on unlimited data called learned. Delay: grokked minus memorised, over runs that memorised. Drop width: 10 to 90 % of the fall of the "
    "log test loss, of runs that grokked and settled; of the others it is unknown."
)


STAGES_NOTE = (
    "Memorisation ends at the peak of the test loss. Generalisation is from 10 to 90 % of the fall of the log restricted loss "
    "(all pairs, the keys of the run's last checkpoint), clean-up the same of the log test loss; interpolation lies between the peak and "
    "generalisation, stability after both. Stages may overlap. Bounds of the restricted loss are known to the distance of two checkpoints."
)


def stages_table(of_cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: where each stage starts and ends, medians with 95 % intervals in epochs."""
    rows = []
    for cell in of_cells:
        values = [shown_value(name, value) for name, value in cell.fields]
        for stage, (start, end) in phases.STAGES.items():
            bounds = ["0" if start is None else str(cell.median(start)), "end of run" if end is None else str(cell.median(end))]
            rows.append([*values, stage, *bounds])
    return [*([name for name, _ in of_cells[0].fields] if of_cells else []), "stage", "from", "to"], rows


def summary_markdown(results: Results, of_cells: list[Cell]) -> str:
    """summary.md: the table for people, what it rests on, and comparisons of neighbouring cells."""
    session, first = results.sessions[-1], results.runs[0]
    names = [*AXES, "n_train"] if first["frac"] is None else AXES
    constant = [
        f"{name} {shown_value(name, first[name])}"
        for name in names
        if name not in results.varying() and (first[name] is not None or name == "n_train")
    ]
    parts = [f"# {results.path.name}", ", ".join(constant) + "." if constant else "", markdown(*readable_table(of_cells)), NOTE]
    if results.has_circuit_events:
        parts += ["## Stages", markdown(*stages_table(of_cells)), STAGES_NOTE]
    comparisons = comparison_rows(of_cells)
    parts.insert(2, waiting(results, of_cells))
    if comparisons:
        header = ["cell", "cell", "test", "earlier in first / second / undecided", "p"]
        parts += ["## Which cell grokked earlier", markdown(header, comparisons)]
    made = ", ".join(f"{name} {number}" for name, number in session["versions"].items())
    parts.append(f"Made with {made}, on {len(session['devices'])} x {session['devices'][0]}, matmul precision {first['matmul_precision']}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(header, rows) -> str:
    """A table as CSV; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def write_tables(results: Results) -> list[Cell]:
    """Write tables/timings.csv, summary.csv and summary.md; returns the cells they show."""
    of_cells = cells(results)
    folder = Path(results.path) / "tables"
    folder.mkdir(exist_ok=True)
    replace_text(folder / "timings.csv", csv_text(*timings_table(results, of_cells)))
    replace_text(folder / "summary.csv", csv_text(*summary_table(results, of_cells)))
    replace_text(folder / "summary.md", summary_markdown(results, of_cells))
    return of_cells
