"""Measures of claims about time: phase changes, the parts of a task, slingshots. Each gives a `Finding` of a sweep."""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxgrok.scorecard.findings import Finding, finding_of, single
from jaxgrok.stats import order
from jaxgrok.store.events import Outcome, first_held
from jaxgrok.store.results import Cell, Results, RunRecord
from jaxgrok.tables import parts as part_tables
from jaxgrok.tables import sizes as size_tables
from jaxgrok.tables.slingshots import slingshots_of_cells

NEVER = float("inf")


def name_of_run(cell: Cell, record: RunRecord) -> str:
    """`seed 3`, with the cell's name where the sweep has several."""
    return f"seed {record.seed}" + (f" {cell.name}" if cell.name else "")


def _all_runs(results: Results) -> list[tuple[str, RunRecord]]:
    return [(name_of_run(cell, record), record) for cell in results.cells for record in cell.records]


def times_as_late(results: Results) -> Finding:
    """How many times as late as it memorised each run grokked."""
    names, values = [], []
    for cell in results.cells:
        for record, timing in zip(cell.records, cell.timings, strict=True):
            memorised, grokked = timing.by("memorised"), timing.by("grokked")
            names.append(name_of_run(cell, record))
            values.append(NEVER if grokked is None else np.nan if not memorised else grokked / memorised)
    return finding_of(values, names)


def grokking_time(results: Results) -> Finding:
    """The epoch by which each run grokked."""
    return finding_of(
        [NEVER if (by := results.timing(record).by("grokked")) is None else by for _, record in _all_runs(results)],
        [name for name, _ in _all_runs(results)],
    )


def _first_below(epochs: np.ndarray, loss: np.ndarray, level: float) -> float:
    """The epoch at which a loss is below a level, and stays there for five more evaluations."""
    index = first_held(np.asarray(loss) < level)
    return NEVER if index is None else float(epochs[index])


def falls_apart(results: Results, train: float, test: float) -> Finding:
    """How many times as late as the train loss is below `train` the test loss is below `test`, in nats, of each run.

    The train loss is taken at evaluations: of a minibatch as a running mean over 5 % of the run.
    """
    values = []
    for _, record in _all_runs(results):
        curves = results.curves_of(record)
        loss = np.asarray(curves.train_loss, float)
        if record.config.batch_size:
            window = max(1, len(loss) // 20)
            loss = np.convolve(loss, np.ones(window) / window, mode="same")
        early = _first_below(curves.epoch_train, loss, train)
        late = _first_below(curves.epoch_eval, curves.test_loss, test)
        values.append(NEVER if late == NEVER else late / max(early, 1))
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


def parts_learned(results: Results) -> Finding:
    """How many parts of its task each run has learned."""
    values = [int(of_run.sum()) for parts in part_tables.parts_of(results) for of_run in parts.reached]
    return finding_of(values, [name for name, _ in _all_runs(results)])


def parts_apart(results: Results) -> Finding:
    """From the arrival of each run's first part to that of its last, over the time of the median part."""
    values = []
    for parts in part_tables.parts_of(results):
        for times, reached in zip(parts.times, parts.reached, strict=True):
            values.append((times.max() - times.min()) / np.median(times) if reached.all() else np.nan)
    return finding_of(values, [name for name, _ in _all_runs(results)])


def first_parts(results: Results, parts: list[str]) -> Finding:
    """Whether these parts were the first that each run learned (1) or not (0)."""
    values = []
    for found in part_tables.parts_of(results):
        chosen = np.array([name in parts for name in found.names])
        for times, reached in zip(found.times, found.reached, strict=True):
            times = np.where(reached, times, NEVER)
            values.append(float(times[chosen].max() <= times[~chosen].min()))
    return finding_of(values, [name for name, _ in _all_runs(results)])


def order_of_the_others(results: Results, parts: list[str]) -> Finding:
    """Kendall's W of the order in which the runs learn the parts other than these: 1 if every run has the same order,
    near 0 if each has its own."""
    (found,) = part_tables.parts_of(results)
    others = np.array([name not in parts for name in found.names])
    agreement = order.concordance(found.times[:, others], found.reached[:, others])
    return single(agreement.W, agreement.runs)


def crossover(results: Results) -> Finding:
    """The number of examples at which half of the runs generalise, with its interval."""
    found = size_tables.sizes_of(results).crossover
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


# --- what comes before what -------------------------------------------------------------------------------------------


def _settled(results: Results) -> list[tuple[str, RunRecord]]:
    """The runs that grokked, of which the falls of the losses are known."""
    return [
        (name, record)
        for name, record in _all_runs(results)
        if results.timing(record).outcome in (Outcome.GROKKED, Outcome.LEARNED)
    ]


def restricted_before_test(results: Results) -> Finding:
    """Epochs from a tenth of the fall of the log restricted loss to a tenth of that of the log test loss, of the runs
    that grokked."""
    values, runs = [], _settled(results)
    for _, record in runs:
        circuit, test = (results.timing(record).by(event) for event in ("restricted_10", "drop_10"))
        values.append(np.nan if circuit is None or test is None else test - circuit)
    return finding_of(values, [name for name, _ in runs])


def train_loss_after_grokking(results: Results) -> Finding:
    """The train loss at the end of each run that grokked, over the train loss where the test loss begins to fall."""
    values, runs = [], _settled(results)
    for _, record in runs:
        curves, start = results.curves_of(record), results.timing(record).by("drop_10")
        loss = np.asarray(curves.train_loss, float)
        values.append(np.nan if start is None else np.median(loss[-10:]) / _median_at(curves.epoch_train, loss, start))
    return finding_of(values, [name for name, _ in runs])


def _median_at(epochs: np.ndarray, loss: Float[np.ndarray, "T"], at: float) -> float:
    """The median of the ten values up to an epoch."""
    end = int(np.searchsorted(epochs, at, side="right"))
    return float(np.median(loss[max(0, end - 10) : end]))


MEASURES: dict[str, Callable[..., Finding]] = {
    measure.__name__: measure
    for measure in (
        times_as_late,
        grokking_time,
        falls_apart,
        drop,
        test_accuracy,
        slower_at_lower_decay,
        grokked_at_lowest_decay,
        parts_learned,
        parts_apart,
        first_parts,
        order_of_the_others,
        crossover,
        spikes,
        restricted_before_test,
        train_loss_after_grokking,
    )
}
