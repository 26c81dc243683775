"""Slingshots of a sweep: the spikes of each run's train loss, beside the floor of log_softmax in float32.

    tables/slingshots.csv   a row per run
    tables/slingshots.md    a row per cell, the ways of computing the loss compared on shared seeds, the released runs

A spike is defined in `phases.spikes` and nowhere else; the post's claim is that it needs the floor.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from jaxgrok.config import BadInput
from jaxgrok.stats import survival as stats
from jaxgrok.store import events as phases
from jaxgrok.store.results import AXES, Results
from jaxgrok.store.steps import replace_text
from jaxgrok.tables.timing import csv_text, field_values, markdown, name_of, shown_value, waiting
from jaxgrok.tasks import make_task, step_examples

FLOOR = 2.0**-23  # nats, 1.19e-7: the smallest loss above 0 that log_softmax gives in float32
HIGH = 0.1  # nats: peaks above it are counted
WHOLE = 0.01  # a sum of losses this near to a whole number of units is one
RESOLVED = 2**16  # units: a mean recorded in float32 knows its sum to well within WHOLE up to here
PER = 10_000  # epochs that spikes are counted in

NOTE = (
    "A spike: the train loss above 10 times the median of the 50 epochs before; stretches no more than 50 epochs apart are one. Runs with "
    "a spike: Clopper-Pearson 95 % interval. Spikes per 10,000 epochs: median (range) over runs. First spike: Kaplan-Meier median of the "
    "epoch it starts at, with its 95 % interval; a run without one is censored at its last epoch. Highest peak and lowest loss: of all "
    "runs. A run that diverges is looked at up to there."
)
FLOOR_NOTE = (
    "The floor: of an example that is nearly certain, log_softmax in float32 computes the loss as log(1 + x), where x sums over the wrong "
    "classes, and every addition to 1 is rounded to a multiple of 2^-23 = 1.19e-7. So the loss of one example, and the gradient of its "
    "right logit, are whole numbers of units of 2^-23, and 0 where what is added is below half a unit. The gradients of its wrong logits "
    "are not rounded so: those of an example no longer sum to 0. The recorded loss is a mean over examples and can lie below the floor; "
    "the whole number is mean x examples / 2^-23. Smallest sum: the smallest of these above 0. Whole sums: of the epochs with a mean above "
    "0 and at most 2^-23, the share whose sum is within 0.01 of a whole number (by chance 2 % of those above 1)."
)
# Spec: EXPERIMENTS.md, B1 and B2; published_curves.json.
RELEASED_TITLE = "Released runs as published (p = 113, fraction 0.3, seed 1; the sum is their lowest loss x 3,830 examples)"
RELEASED = (
    ["run", "loss", "epochs", "spikes", "spikes per 10,000 epochs", "first spike", "highest peak", "lowest loss", "smallest sum"],
    [
        ["low precision, wd 1", "float32", "50,000", "36 (5 before 10,000)", "7.2", "2,250", "1.037 (epoch 10,510)", "1.04e-07", "3,336"],
        ["wd_10-1, wd 0.1", "float64", "107,791", "0", "0", "-", "-", "9.2e-09", "295.66"],
    ],
)


@dataclass(frozen=True)
class Slingshots:
    """The train loss of one run, one entry an epoch, up to its first value that is not finite; and what is in it.

    epochs, loss [T]. smallest_sum: the smallest loss above 0 times the examples, in units of FLOOR; None where there is none.
    low, whole: epochs whose loss is above 0, at most FLOOR and small enough to tell, and those of them whose sum is whole.
    """

    epochs: np.ndarray
    loss: np.ndarray
    spikes: list[phases.Spike]
    smallest_sum: float | None
    low: int
    whole: int

    @property
    def highest(self) -> phases.Spike | None:
        return max(self.spikes, key=lambda spike: spike.peak, default=None)

    @property
    def rate(self) -> float:
        """Spikes per PER epochs."""
        return PER * len(self.spikes) / max(len(self.loss), 1)

    @property
    def first(self) -> tuple[int, bool]:
        """(epoch at which the first spike starts, True), or (last epoch, False)."""
        return (self.spikes[0].start, True) if self.spikes else (len(self.loss), False)

    @property
    def largest_ratio(self) -> float | None:
        """Of the loss to that of the epoch before, where that is above 0."""
        before = self.loss[:-1]
        return float(np.max(self.loss[1:][before > 0] / before[before > 0], initial=0)) or None

    def at_most(self, bound: float) -> int:
        """Epochs with a loss no larger."""
        return int((self.loss <= bound).sum())


def of_curve(epochs, train_loss, examples: int) -> Slingshots:
    """epochs, train_loss [T], one entry an epoch; examples: targets that a recorded loss is the mean over."""
    loss = np.asarray(train_loss) + 0.0  # log_softmax gives -0
    loss = loss[np.logical_and.accumulate(np.isfinite(loss))]
    epochs = np.asarray(epochs)[: len(loss)]
    with np.errstate(divide="ignore"):  # above a level of 0 by an infinite factor
        spikes = phases.spikes(epochs, loss)
    sums = loss[loss > 0].astype(float) * (examples / FLOOR)
    low = sums[sums <= min(examples, RESOLVED)]
    whole = (np.abs(low - np.round(low)) < WHOLE) & (np.round(low) > 0)
    return Slingshots(epochs, loss, spikes, float(sums.min()) if len(sums) else None, len(low), int(whole.sum()))


@dataclass(frozen=True)
class Cell:
    """One combination of all axes except the seed: its runs' records and slingshots, in the same order."""

    fields: tuple
    records: list[dict]
    found: list[Slingshots]

    @property
    def loss(self) -> str:
        return self.records[0]["loss"]

    @property
    def setting(self) -> tuple:
        """Its fields but the loss."""
        return tuple(field for field in self.fields if field[0] != "loss")

    def first_spikes(self) -> dict[int, tuple[int, bool]]:
        """{seed: (time, reached)}."""
        return {record["seed"]: found.first for record, found in zip(self.records, self.found)}


def cells(results: Results) -> list[Cell]:
    """The slingshots of every run that has begun. Raises BadInput where none has, or not every epoch was recorded."""
    if results.metrics.train_every > 1:
        raise BadInput("train_every", results.metrics.train_every, "1: a train loss for every epoch")
    found = []
    for fields, records in results.cells().items():
        of_runs = []
        for record in records:
            config, curves = results.config(record), results.metrics.of_run(record["run"])
            examples = step_examples(config, record["n_train"]) * make_task(config).n_counted
            of_runs.append(of_curve(curves["epoch_train"], curves["train_loss"], examples))
        found.append(Cell(fields, records, of_runs))
    if not found:
        raise BadInput("run directory", str(results.path), "a sweep of which a run has begun")
    return found


def runs_table(results: Results, of_cells: list[Cell]) -> tuple[list[str], list[list]]:
    """(header, rows) of slingshots.csv; what there is none of is empty. first, last: epochs at which these spikes start."""
    named = results.varying()
    named += [] if "loss" in named else ["loss"]
    header = ["run", "seed", *named, "epochs", "spikes", "first", "last", "highest_epoch", "highest_peak", "highest_factor"]
    header += ["median_peak", f"peaks_above_{HIGH:g}", "median_duration", "lowest_loss", "epochs_at_zero", "epochs_at_floor"]
    header += ["largest_ratio", "smallest_sum", "low_sums", "whole_sums"]
    rows = []
    for cell in of_cells:
        for record, found in zip(cell.records, cell.found):
            spikes, highest, none = found.spikes, found.highest, [None] * 3
            peaks, durations = [spike.peak for spike in spikes], [spike.end - spike.start for spike in spikes]
            row = [record["run"], record["seed"], *field_values(record, named), len(found.loss), len(spikes)]
            row += [spikes[0].start, spikes[-1].start] if spikes else [None, None]
            row += [highest.peak_epoch, highest.peak, highest.factor] if spikes else none
            high = sum(peak > HIGH for peak in peaks)
            row += [float(np.median(peaks)), high, float(np.median(durations))] if spikes else [None, high, None]
            lowest = float(found.loss.min()) if len(found.loss) else None
            row += [lowest, found.at_most(0), found.at_most(FLOOR), found.largest_ratio, found.smallest_sum, found.low, found.whole]
            rows.append(row)
    return header, sorted(rows, key=lambda row: row[0])


def _share(count: int, total: int) -> str:
    """`3/8 [0.09, 0.76]`, with the Clopper-Pearson 95 % interval."""
    ci = binomtest(count, total).proportion_ci(0.95, method="exact")
    return f"{count}/{total} [{ci.low:.2g}, {ci.high:.2g}]"


def readable_table(of_cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a row per cell."""
    header = [*(name for name, _ in of_cells[0].fields), "runs with a spike", "spikes per 10,000 epochs", "first spike"]
    header += ["highest peak", "lowest loss", "smallest sum", "whole sums"]
    rows = []
    for cell in of_cells:
        rates = [found.rate for found in cell.found]
        spread = f" ({min(rates):.2g} - {max(rates):.2g})" if len(rates) > 1 else ""
        highest = max((found.highest for found in cell.found if found.spikes), key=lambda spike: spike.peak, default=None)
        sums = [found.smallest_sum for found in cell.found if found.smallest_sum is not None]
        low, whole = (sum(getattr(found, name) for found in cell.found) for name in ("low", "whole"))
        rows.append(
            [
                *(shown_value(name, value) for name, value in cell.fields),
                _share(sum(bool(found.spikes) for found in cell.found), len(cell.found)),
                f"{np.median(rates):.2g}{spread}",
                str(stats.median(*zip(*cell.first_spikes().values()))),
                "-" if highest is None else f"{highest.peak:.3g} (epoch {highest.peak_epoch:,})",
                f"{min(found.loss.min(initial=np.inf) for found in cell.found):.3g}",
                f"{min(sums):,.6g}" if sums else "-",
                f"{100 * whole / low:.3g} % of {low:,}" if low else "-",
            ]
        )
    return header, rows


COMPARISON_HEADER = ["cell", "cell", "test", "earlier in first / second / undecided", "p"]


def comparison_rows(of_cells: list[Cell]) -> list[list[str]]:
    """Cells that differ in the loss alone, compared by their first spikes; undecided: neither run had one, or both at once."""
    rows = []
    for first, second in combinations(of_cells, 2):
        if first.setting == second.setting and first.loss != second.loss:
            c = stats.compare(first.first_spikes(), second.first_spikes())
            pairs = f"{c.first} / {c.second} / {c.undecided}" if c.test == "sign" else "-"
            names = [name_of(cell.fields) for cell in (first, second)]
            rows.append([*names, c.test, pairs, "-" if c.pvalue != c.pvalue else f"{c.pvalue:.2g}"])
    return rows


def slingshots_markdown(results: Results, of_cells: list[Cell]) -> str:
    """slingshots.md: the table for people, what it rests on, the comparisons, and the released runs."""
    first = results.runs[0]
    constant = [name for name in (*AXES, "n_train", "loss") if name not in results.varying() and first[name] is not None]
    parts = [
        f"# {results.path.name}: slingshots",
        ", ".join(f"{name} {shown_value(name, first[name])}" for name in constant) + ".",
        waiting(results, of_cells),
        markdown(*readable_table(of_cells)),
        NOTE,
        FLOOR_NOTE,
    ]
    comparisons = comparison_rows(of_cells)
    if comparisons:
        parts += ["## Which loss spiked earlier", markdown(COMPARISON_HEADER, comparisons)]
    parts += [f"## {RELEASED_TITLE}", markdown(*RELEASED)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_tables(results: Results, of_cells: list[Cell]) -> None:
    """Write tables/slingshots.csv and slingshots.md."""
    folder = Path(results.path) / "tables"
    folder.mkdir(exist_ok=True)
    replace_text(folder / "slingshots.csv", csv_text(*runs_table(results, of_cells)))
    replace_text(folder / "slingshots.md", slingshots_markdown(results, of_cells))
