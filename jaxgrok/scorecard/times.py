"""Measures of claims about time: phase changes, the parts of a task, slingshots. Each gives a `Finding` of a sweep."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from jaxgrok.scorecard.findings import Finding, finding_of, single
from jaxgrok.stats import order
from jaxgrok.store.events import Outcome, first_held
from jaxgrok.store.results import Cell, Results, RunRecord
from jaxgrok.tables import parts as part_tables
from jaxgrok.tables import sizes as size_tables
from jaxgrok.tables.parts import Parts
from jaxgrok.tables.slingshots import slingshots_of_cells

Times = Float[np.ndarray, "parts"]
Reached = Bool[np.ndarray, "parts"]
NEVER = float("inf")
SMOOTHED = 25  # steps of minibatches that a train loss is the median of
# A part falls suddenly if its loss goes from 80 to 40 % of a guess's in less than half of the time up to then. A loss
# that falls exponentially from the start takes three quarters.
HIGH, LOW, SUDDEN = 0.8, 0.4, 0.5


def name_of_run(cell: Cell, record: RunRecord) -> str:
    """`seed 3`, with the cell's name where the sweep has several."""
    return f"seed {record.seed}" + (f" {cell.name}" if cell.name else "")


def _all_runs(results: Results) -> list[tuple[str, RunRecord]]:
    return [(name_of_run(cell, record), record) for cell in results.cells for record in cell.records]


def grokked_runs(results: Results) -> list[tuple[str, RunRecord]]:
    """The runs that grokked, and have not lost it, with their names."""
    return [
        (name_of_run(cell, record), record)
        for cell in results.cells
        for record, timing in zip(cell.records, cell.timings, strict=True)
        if timing.outcome is Outcome.GROKKED
    ]


def times_as_late(results: Results) -> Finding:
    """How many times as late as it memorised each run grokked."""
    names, values = [], []
    for cell in results.cells:
        for record, timing in zip(cell.records, cell.timings, strict=True):
            memorised, grokked = timing.by("memorised"), timing.by("grokked")
            names.append(name_of_run(cell, record))
            values.append(NEVER if grokked is None else np.nan if not memorised else grokked / memorised)
    return finding_of(values, names)


def _first_below(epochs: np.ndarray, loss: np.ndarray, level: float) -> float:
    """The epoch at which a loss is below a level, and stays there for five more evaluations."""
    index = first_held(np.asarray(loss) < level)
    return NEVER if index is None else float(epochs[index])


def falls_apart(results: Results, train: float, test: float) -> Finding:
    """How many times as late as the train loss is below `train` the test loss is below `test`, in nats, of each run.

    Of minibatches, the train loss is the median of the last SMOOTHED steps.
    """
    values = []
    for _, record in _all_runs(results):
        curves = results.curves_of(record)
        epochs, loss = np.asarray(curves.epoch_train), np.asarray(curves.train_loss, float)
        if record.config.batch_size and len(loss) > SMOOTHED:
            loss = np.median(np.lib.stride_tricks.sliding_window_view(loss, SMOOTHED), axis=1)
            epochs = epochs[SMOOTHED - 1 :]
        early = _first_below(epochs, loss, train)
        late = _first_below(curves.epoch_eval, curves.test_loss, test)
        values.append(NEVER if NEVER in (early, late) else late / max(early, 1))
    return finding_of(values, [name for name, _ in _all_runs(results)])


def drop(results: Results, high: float, low: float) -> Finding:
    """Steps that each run's test loss takes from below `high` to below `low`, in nats."""
    values = []
    for _, record in _all_runs(results):
        curves = results.curves_of(record)
        start, end = (_first_below(curves.epoch_eval, curves.test_loss, level) for level in (high, low))
        values.append(NEVER if end == NEVER else end - start)
    return finding_of(values, [name for name, _ in _all_runs(results)])


def test_accuracy(results: Results) -> Finding:
    """The test accuracy of each run at its last evaluations: the median of 10."""
    values = [float(np.median(results.curves_of(record).test_acc[-10:])) for _, record in _all_runs(results)]
    return finding_of(values, [name for name, _ in _all_runs(results)])


# --- weight decay -----------------------------------------------------------------------------------------------------


def _by_decay(results: Results) -> list[Cell]:
    """The cells of a sweep over weight decay alone, the smallest decay above 0 first."""
    cells = [cell for cell in results.cells if cell.records[0].coordinates["wd"] > 0]
    return sorted(cells, key=lambda cell: cell.records[0].coordinates["wd"])


def slower_at_lower_decay(results: Results) -> Finding:
    """Each seed's time to grok at a weight decay, over that at the next larger one.

    Of a run that has not grokked, the time is its length: the quotient is then a bound, and known only if the bound
    decides which of the two was slower.
    """
    values, names = [], []
    for lower, higher in itertools.pairwise(_by_decay(results)):
        slow, fast = (
            {record.seed: timing for record, timing in zip(cell.records, cell.timings, strict=True)}
            for cell in (lower, higher)
        )
        for seed in sorted(set(slow) & set(fast)):
            reached = [timing.by("grokked") for timing in (slow[seed], fast[seed])]
            first, second = (by or timing.last_epoch for by, timing in zip(reached, (slow[seed], fast[seed])))
            quotient = first / second
            decided = None not in reached or (reached[1] is not None and quotient > 1)
            decided |= reached[0] is not None and quotient < 1
            values.append(quotient if decided else np.nan)
            names.append(f"seed {seed}, {lower.name} over {higher.name}")
    return finding_of(values, names, of="pairs of runs")


def grokked_at_lowest_decay(results: Results) -> Finding:
    """The epoch by which each run of the smallest weight decay above 0 grokked."""
    lowest = _by_decay(results)[0]
    values = [NEVER if (by := timing.by("grokked")) is None else float(by) for timing in lowest.timings]
    return finding_of(values, [name_of_run(lowest, record) for record in lowest.records])


# --- parts of a task --------------------------------------------------------------------------------------------------


def _runs_with_parts(results: Results) -> Iterator[tuple[str, RunRecord, Parts, Times, Reached]]:
    """(its name, a run, the parts of its cell, when it learned each of them or how long it was watched, and which of
    them it learned)."""
    for parts in part_tables.parts_of(results):
        rows = zip(parts.cell.records, parts.times, parts.reached, strict=True)
        yield from ((name_of_run(parts.cell, record), record, parts, *of_run) for record, *of_run in rows)


def sudden_parts(results: Results) -> Finding:
    """How many parts of its task each run has learned by a sudden fall of the part's test loss."""
    values, names = [], []
    for name, record, parts, _, _ in _runs_with_parts(results):
        curves, count = results.curves_of(record), 0
        for part in parts.names:
            at = record.task.parts.index(part)
            loss, guess = curves.of_part(at).test_loss, record.task.chance[at]
            start, end = (_first_below(curves.epoch_eval, loss, share * guess) for share in (HIGH, LOW))
            count += end != NEVER and end - start < SUDDEN * end
        values.append(count)
        names.append(name)
    return finding_of(values, names)


def parts_apart(results: Results) -> Finding:
    """From the arrival of each run's first part to that of its last, over the time of the median part."""
    found = [
        (name, (times.max() - times.min()) / np.median(times) if reached.all() else NEVER)
        for name, _, _, times, reached in _runs_with_parts(results)
    ]
    return finding_of([value for _, value in found], [name for name, _ in found])


def first_parts(results: Results, parts: list[str]) -> Finding:
    """Whether these parts were learned, and before all others, in each run (1) or not (0)."""
    values, names = [], []
    for name, _, found, times, reached in _runs_with_parts(results):
        chosen = np.array([part in parts for part in found.names])
        others = np.where(reached, times, NEVER)[~chosen]
        values.append(float(reached[chosen].all() and times[chosen].max() < others.min()))
        names.append(name)
    return finding_of(values, names)


def order_of_the_others(results: Results, parts: list[str]) -> Finding:
    """Kendall's W of the order in which the runs of a cell learn the parts other than these: 1 if every run has the
    same order, near 0 if each has its own."""
    (found,) = part_tables.parts_of(results)
    others = np.array([name not in parts for name in found.names])
    agreement = order.concordance(found.times[:, others], found.reached[:, others])
    return single(agreement.W, agreement.runs)


def crossover(results: Results) -> Finding:
    """The number of examples at which half of the runs generalise, with its interval. If all do, or none does, the
    smallest size is a bound, or nothing is reached."""
    found = size_tables.sizes_of(results).crossover
    if found.generalised in (0, found.runs):
        return single(NEVER if found.generalised == 0 else found.smallest, found.runs)
    size, low, high = (np.nan if value is None else value for value in (found.size, found.low, found.high))
    return single(size, found.runs, (low, high))


# --- slingshots -------------------------------------------------------------------------------------------------------


def spikes(results: Results, losses: list[str]) -> Finding:
    """How many spikes the train loss of each run has, of the runs whose loss is computed in these ways."""
    values, names = [], []
    for of_cell in slingshots_of_cells(results):
        if of_cell.loss in losses:
            values += [len(found.spikes) for found in of_cell.found]
            names += [name_of_run(of_cell.cell, record) for record in of_cell.cell.records]
    return finding_of(values, names)


def spikes_before_grokking(results: Results) -> Finding:
    """How many spikes the train loss of each run that grokked has up to then."""
    values, names = [], []
    for of_cell in slingshots_of_cells(results):
        cell = of_cell.cell
        for record, timing, found in zip(cell.records, cell.timings, of_cell.found, strict=True):
            if (grokked := timing.by("grokked")) is not None:
                values.append(sum(spike.start <= grokked for spike in found.spikes))
                names.append(name_of_run(cell, record))
    return finding_of(values, names)


# --- what comes before what -------------------------------------------------------------------------------------------


def restricted_before_test(results: Results) -> Finding:
    """Epochs from a tenth of the fall of the log restricted loss to a tenth of that of the log test loss, of the runs
    that grokked."""
    values, runs = [], grokked_runs(results)
    for _, record in runs:
        circuit, test = (results.timing(record).by(event) for event in ("restricted_10", "drop_10"))
        values.append(np.nan if circuit is None or test is None else test - circuit)
    return finding_of(values, [name for name, _ in runs])


def train_loss_after_grokking(results: Results) -> Finding:
    """The train loss at the end of each run that grokked, over the train loss where the test loss begins to fall."""
    values, runs = [], grokked_runs(results)
    for _, record in runs:
        curves, start = results.curves_of(record), results.timing(record).by("drop_10")
        loss = np.asarray(curves.train_loss, float)
        values.append(np.nan if start is None else np.median(loss[-10:]) / _median_at(curves.epoch_train, loss, start))
    return finding_of(values, [name for name, _ in runs])


def _median_at(epochs: np.ndarray, loss: Float[np.ndarray, "T"], at: float) -> float:
    """The median of the ten values up to an epoch."""
    end = int(np.searchsorted(epochs, at, side="right"))
    return float(np.median(loss[max(0, end - 10) : end]))


MEASURES = (
    times_as_late,
    falls_apart,
    drop,
    test_accuracy,
    slower_at_lower_decay,
    grokked_at_lowest_decay,
    sudden_parts,
    parts_apart,
    first_parts,
    order_of_the_others,
    crossover,
    spikes,
    spikes_before_grokking,
    restricted_before_test,
    train_loss_after_grokking,
)
