"""Slingshots of a sweep: the spikes of each run's train loss, beside the floor of log_softmax in float32.

    tables/slingshots.csv   a row per run
    tables/slingshots.md    a row per cell, the kinds of loss compared on shared seeds, and the released runs

A spike is defined in `events.spikes` and nowhere else. The post claims that spikes need the floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest

from jaxgrok import stats
from jaxgrok.config import BadInput
from jaxgrok.stats import Arrival
from jaxgrok.store.events import Spike, spikes
from jaxgrok.store.results import AXES, Cell, Results, text_of
from jaxgrok.tables.timing import COMPARISON_HEADER, Table, comparison_rows, constants_line, values_of, waiting_line
from jaxgrok.tables.write import markdown, write_csv, write_text
from jaxgrok.tasks import step_examples

FLOOR = 2.0**-23  # nats, 1.19e-7: the smallest loss above 0 that log_softmax gives in float32
HIGH = 0.1  # nats: peaks above it are counted
WHOLE = 0.01  # a sum of losses this close to a whole number of units counts as one
RESOLVED = 2**16  # units: up to here a mean recorded in float32 gives its sum to well within WHOLE
PER = 10_000  # epochs per which spikes are counted

NOTE = (
    "A spike: the train loss is above 10 times the median of the 50 epochs before; stretches no more than 50 epochs "
    "apart are one spike. Runs with a spike: with the Clopper-Pearson 95 % interval. Spikes per 10,000 epochs: median"
    " (range) over runs. First spike: the median of the epoch at which it starts, with its 95 % interval; a run "
    "without a spike is censored at its last epoch. Highest peak and lowest loss: over all runs. The loss of a run "
    "that diverges counts up to there."
)
FLOOR_NOTE = (
    "The floor: for an example that is nearly certain, log_softmax in float32 computes the loss as log(1 + x), where "
    "x sums over the wrong classes, and every addition to 1 is rounded to a multiple of 2^-23 = 1.19e-7. So the loss "
    "of one example, and the gradient of its right logit, are whole numbers of units of 2^-23, and they are 0 if what"
    " is added is below half a unit. The gradients of its wrong logits are not rounded like that, so the gradients of"
    " one example no longer sum to 0. The recorded loss is a mean over examples and can lie below the floor; the "
    "whole number is mean x examples / 2^-23. Smallest sum: the smallest of these above 0. Whole sums: of the epochs "
    "with a mean above 0 and at most 2^-23, the share whose sum is within 0.01 of a whole number (2 % of those above "
    "1 would be by chance)."
)
COMPARISON_NOTE = (
    "Cells that differ in the loss alone are compared by their first spikes. Undecided: neither run had a spike, or "
    "both had one at once. The last column is adjusted for the number of comparisons in this table (Holm)."
)
# Spec: EXPERIMENTS.md, B1 and B2; published_curves.json.
RELEASED_TITLE = (
    "Released runs as published (p = 113, fraction 0.3, seed 1; the sum is their lowest loss x 3,830 examples)"
)
RELEASED = (
    [
        "run",
        "loss",
        "epochs",
        "spikes",
        "spikes per 10,000 epochs",
        "first spike",
        "highest peak",
        "lowest loss",
        "smallest sum",
    ],
    [
        [
            "low precision, wd 1",
            "float32",
            "50,000",
            "36 (5 before 10,000)",
            "7.2",
            "2,250",
            "1.037 (epoch 10,510)",
            "1.04e-07",
            "3,336",
        ],
        ["wd_10-1, wd 0.1", "float64", "107,791", "0", "0", "-", "-", "9.2e-09", "295.66"],
    ],
)


@dataclass(frozen=True)
class Slingshots:
    """The train loss of one run, with one entry an epoch, up to its first value that is not finite, and its spikes.

    smallest_sum: the smallest loss above 0 times the examples, in units of FLOOR; None if no loss is above 0.
    low: the epochs whose loss is above 0, at most FLOOR, and small enough to tell whether its sum is whole.
    whole: those of them whose sum is whole.
    """

    epochs: Int[np.ndarray, "T"]
    loss: Float[np.ndarray, "T"]
    spikes: list[Spike]
    smallest_sum: float | None
    low: int
    whole: int

    @property
    def highest(self) -> Spike | None:
        return max(self.spikes, key=lambda spike: spike.peak, default=None)

    @property
    def rate(self) -> float:
        """Spikes per PER epochs."""
        return PER * len(self.spikes) / max(len(self.loss), 1)

    @property
    def first(self) -> Arrival:
        """When the first spike starts; a run without one is censored at its last epoch."""
        return Arrival(self.spikes[0].start, True) if self.spikes else Arrival(len(self.loss), False)

    @property
    def largest_ratio(self) -> float | None:
        """The largest ratio of a loss to the loss of the epoch before, over those above 0; None if there is none."""
        before = self.loss[:-1]
        ratios = self.loss[1:][before > 0] / before[before > 0]
        return float(ratios.max()) if ratios.any() else None

    def at_most(self, bound: float) -> int:
        """How many epochs have a loss of at most `bound`."""
        return int((self.loss <= bound).sum())


def slingshots_of(epochs: Int[np.ndarray, "T"], train_loss: Float[np.ndarray, "T"], examples: int) -> Slingshots:
    """The slingshots of a curve with one entry an epoch. examples: how many targets a recorded loss is the mean of."""
    loss = np.asarray(train_loss) + 0.0  # log_softmax gives -0
    loss = loss[np.logical_and.accumulate(np.isfinite(loss))]
    epochs = np.asarray(epochs)[: len(loss)]
    with np.errstate(divide="ignore"):  # a loss above a level of 0 is so by an infinite factor
        found = spikes(epochs, loss)
    sums = loss[loss > 0].astype(float) * (examples / FLOOR)
    low = sums[sums <= min(examples, RESOLVED)]
    whole = (np.abs(low - np.round(low)) < WHOLE) & (np.round(low) > 0)
    return Slingshots(epochs, loss, found, float(sums.min()) if len(sums) else None, len(low), int(whole.sum()))


@dataclass(frozen=True)
class CellSlingshots:
    """The slingshots of a cell's runs, in the order of its records."""

    cell: Cell
    found: list[Slingshots]

    @property
    def loss(self) -> str:
        return self.cell.config.loss

    @property
    def setting(self) -> tuple:
        """Its fields other than the loss."""
        return tuple(field for field in self.cell.fields if field[0] != "loss")

    def first_spikes(self) -> dict[int, Arrival]:
        """When the first spike of each seed's run starts."""
        return {record.seed: found.first for record, found in zip(self.cell.records, self.found, strict=True)}


def slingshots_of_cells(results: Results) -> list[CellSlingshots]:
    """The slingshots of every run that has begun. Raises BadInput if none has, or if not every epoch was recorded."""
    if results.train_every > 1:
        raise BadInput("train_every", results.train_every, "1: a train loss for every epoch")
    found = []
    for cell in results.cells:
        of_runs = []
        for record in cell.records:
            curves = results.curves_of(record)
            examples = step_examples(record.config, record.run.n_train) * record.task.n_counted
            of_runs.append(slingshots_of(curves.epoch_train, curves.train_loss, examples))
        found.append(CellSlingshots(cell, of_runs))
    if not found:
        raise BadInput("run directory", str(results.path), "a sweep of which a run has begun")
    return found


def runs_table(results: Results, cells: Sequence[CellSlingshots]) -> Table:
    """slingshots.csv: a row per run. What a run has none of is empty. first, last: the epochs at which these spikes
    start."""
    named = results.varying + ([] if "loss" in results.varying else ["loss"])
    header = ["run", "seed", *named, "epochs", "spikes", "first", "last"]
    header += ["highest_epoch", "highest_peak", "highest_factor"]
    header += ["median_peak", f"peaks_above_{HIGH:g}", "median_duration"]
    header += ["lowest_loss", "epochs_at_zero", "epochs_at_floor", "largest_ratio"]
    header += ["smallest_sum", "low_sums", "whole_sums"]
    rows = []
    for of_cell in cells:
        for record, found in zip(of_cell.cell.records, of_cell.found, strict=True):
            row = [record.number, record.seed, *values_of(record, named), len(found.loss), len(found.spikes)]
            rows.append([*row, *_spike_values(found), *_loss_values(found)])
    return header, sorted(rows, key=lambda row: row[0])


def _spike_values(found: Slingshots) -> list[Any]:
    """The columns of slingshots.csv from `first` to `median_duration`."""
    highest = found.highest
    if highest is None:
        return [None] * 6 + [0, None]
    peaks = [spike.peak for spike in found.spikes]
    durations = [spike.end - spike.start for spike in found.spikes]
    ends = [found.spikes[0].start, found.spikes[-1].start]
    high = sum(peak > HIGH for peak in peaks)
    medians = [float(np.median(peaks)), high, float(np.median(durations))]
    return [*ends, highest.peak_epoch, highest.peak, highest.factor, *medians]


def _loss_values(found: Slingshots) -> list[Any]:
    """The columns of slingshots.csv from `lowest_loss` on."""
    lowest = float(found.loss.min()) if len(found.loss) else None
    epochs = [found.at_most(0), found.at_most(FLOOR)]
    return [lowest, *epochs, found.largest_ratio, found.smallest_sum, found.low, found.whole]


def _share(count: int, total: int) -> str:
    """`3/8 [0.09, 0.76]`, with the Clopper-Pearson 95 % interval."""
    ci = binomtest(count, total).proportion_ci(0.95, method="exact")
    return f"{count}/{total} [{ci.low:.2g}, {ci.high:.2g}]"


def readable_table(cells: Sequence[CellSlingshots]) -> Table:
    """For people: a row per cell."""
    header = [
        *(name for name, _ in cells[0].cell.fields),
        "runs with a spike",
        "spikes per 10,000 epochs",
        "first spike",
    ]
    header += ["highest peak", "lowest loss", "smallest sum", "whole sums"]
    rows = []
    for of_cell in cells:
        rates = [found.rate for found in of_cell.found]
        spread = f" ({min(rates):.2g} - {max(rates):.2g})" if len(rates) > 1 else ""
        highest = [found.highest for found in of_cell.found if found.highest is not None]
        top = max(highest, key=lambda spike: spike.peak, default=None)
        sums = [found.smallest_sum for found in of_cell.found if found.smallest_sum is not None]
        low, whole = sum(found.low for found in of_cell.found), sum(found.whole for found in of_cell.found)
        rows.append(
            [
                *(text_of(name, value) for name, value in of_cell.cell.fields),
                _share(len(highest), len(of_cell.found)),
                f"{np.median(rates):.2g}{spread}",
                str(stats.median(list(of_cell.first_spikes().values()))),
                "-" if top is None else f"{top.peak:.3g} (epoch {top.peak_epoch:,})",
                f"{min(found.loss.min(initial=np.inf) for found in of_cell.found):.3g}",
                f"{min(sums):,.6g}" if sums else "-",
                f"{100 * whole / low:.3g} % of {low:,}" if low else "-",
            ]
        )
    return header, rows


def spike_comparison_rows(cells: Sequence[CellSlingshots]) -> list[list[str]]:
    """Cells that differ in the loss alone, compared by their first spikes."""
    pairs = [(a, b) for a, b in combinations(cells, 2) if a.setting == b.setting and a.loss != b.loss]
    comparisons = [stats.compare(a.first_spikes(), b.first_spikes()) for a, b in pairs]
    return comparison_rows([(a.cell.name, b.cell.name) for a, b in pairs], comparisons)


def slingshots_markdown(results: Results, cells: Sequence[CellSlingshots]) -> str:
    """slingshots.md: the table for people, what it rests on, the comparisons, and the released runs."""
    sections = [f"# {results.path.name}: slingshots", constants_line(results, _constants(results))]
    sections += [waiting_line(results), markdown(*readable_table(cells)), NOTE, FLOOR_NOTE]
    if comparisons := spike_comparison_rows(cells):
        sections += ["## Which loss spiked earlier", markdown(COMPARISON_HEADER, comparisons), COMPARISON_NOTE]
    sections += [f"## {RELEASED_TITLE}", markdown(*RELEASED)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _constants(results: Results) -> list[str]:
    sizes = [] if results.runs[0].run.unlimited else ["n_train"]
    return [*AXES, *sizes, "loss"]


def write_slingshot_tables(results: Results, cells: Sequence[CellSlingshots], folder: Path | None = None) -> None:
    """Write slingshots.csv and slingshots.md into a folder; None means the sweep's own `tables`."""
    folder = results.path / "tables" if folder is None else folder
    write_csv(folder / "slingshots.csv", *runs_table(results, cells))
    write_text(folder / "slingshots.md", slingshots_markdown(results, cells))
