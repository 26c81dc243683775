"""The measures of every checkpoint of a sweep directory, one checkpoint at a time.

The key frequencies are found in each run's last checkpoint, and they hold for all its checkpoints.

The measures of a checkpoint are written beside it as soon as they are known (`SweepFiles.save_measures`). So memory
does not grow with the number of runs or checkpoints, and an interrupted analysis resumes. A network is measured again
only if its run has trained on and its keys have changed, if another dtype is asked for, or if the saved measures are
of another version (their `schema`, or their names).
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Bool

from jaxgrok.config import BadInput
from jaxgrok.measures import circuits as measures
from jaxgrok.measures import heads
from jaxgrok.measures.subjects import (
    FINISHED,
    HEADS,
    MEASURABLE,
    Measures,
    Params,
    cast,
    checkpoint_path,
    config_for_analysis,
    described,
    flatten,
    kind_of,
    last_epoch_of,
    missing_epoch,
    substitution_line,
)
from jaxgrok.store.results import KEYS, Results, RunRecord, load, params_of

SAVE_SECONDS = 30  # between writes within one checkpoint of many runs: the most work that a killed process loses


class AnalysisWatcher(Protocol):
    """What `analyze` tells about its progress."""

    def started(self, total: int) -> None:
        """Called once, unless there is no network: with their number, which is the sum over runs of their
        checkpoints."""

    def advanced(self, measured: int, found: int) -> None:
        """Called with the number of networks just measured, and of networks whose saved measures are still valid."""


class SilentAnalysis:
    """A watcher that shows nothing. `jaxgrok.cli.live.AnalysisWatch` shows the progress."""

    def started(self, total: int) -> None:
        pass

    def advanced(self, measured: int, found: int) -> None:
        pass


class Analysis(NamedTuple):
    """What `analyze` found.

    Attributes:
        results: the directory, opened after the analysis.
        skipped: a line for each checkpoint that is missing or damaged: where its networks were not measured, and which
            checkpoint was used instead of a run's last one. A command that prints any of them exits with status 1.
        pending: a line about the runs that have nothing to measure yet, or checkpoints that are not measured yet; none
            in a finished sweep.
    """

    results: Results
    skipped: list[str]
    pending: list[str]


def analyze(run_dir: str | Path, *, dtype: str = "float32", watch: AnalysisWatcher = SilentAnalysis()) -> Analysis:
    """Measure, in this dtype, every network of a sweep directory that has no valid measures yet.

    Runs without measures for their kind of network are left out (see `left_out`). A sweep may be training in the
    directory: only the checkpoints that the saved curves reach are measured, and `pending` describes the rest. If every
    measure is there already, nothing is written.

    Raises BadInput if there is no sweep in the directory, if no run of it can be measured, or if measures are missing
    and the directory cannot be written.
    """
    results = load(run_dir)
    measurable = [record for record in results.runs if kind_of(record.config) is not None]
    if not measurable:
        raise BadInput("network", described(results.runs[0].config), MEASURABLE)
    config_for_analysis(measurable[0].config, dtype)  # refuses the dtype before anything is read
    batches: dict[int, list[RunRecord]] = {}
    for record in measurable:
        if record.batch is not None and last_epoch_of(results, record):
            batches.setdefault(record.batch, []).append(record)
    total = sum(len(results.checkpoint_epochs(record)) for records in batches.values() for record in records)
    if total:
        watch.started(total)
    skipped = []
    for number, records in batches.items():
        batch = _Batch(results, number, records, dtype)
        batch.analyze(watch)
        skipped += batch.skipped
    return Analysis(load(run_dir), skipped, _pending(results, measurable))


def _pending(results: Results, records: Sequence[RunRecord]) -> list[str]:
    """A line about the runs that have no network to measure, and those that have newer checkpoints than curves.

    A running sweep saves checkpoints at once, but the curves only once a minute or so. A checkpoint newer than the
    curves may still be trained again, so it is not measured.
    """
    not_begun, ahead = 0, []
    for record in records:
        if record.status in FINISHED:
            continue
        saved = [] if record.batch is None else results.files.checkpoint_epochs(record.batch)
        if saved and saved[-1] > last_epoch_of(results, record):
            ahead.append(record)
        elif not last_epoch_of(results, record):
            not_begun += 1
    parts = [f"{not_begun} have not begun"] if not_begun else []
    if ahead:
        epoch = min(last_epoch_of(results, record) for record in ahead)
        parts.append(
            f"{len(ahead)} have checkpoints that are newer than the saved curves, which reach epoch {epoch:,}; analyse "
            "them once the sweep has saved its curves"
        )
    return [f"not measured yet: of {len(records)} runs, {', and '.join(parts)}"] if parts else []


class _Measurer(NamedTuple):
    """How the networks of a batch are measured.

    Attributes:
        measure: computes the measures of one run's network from its parameters.
        schema: the version of what it computes.
        names: the names of the saved arrays.
        keys: for circuits, the keys of each run by its number.
    """

    measure: Callable[[RunRecord, Params], Measures]
    schema: int
    names: set[str]
    keys: dict[int, Bool[np.ndarray, "K"]]

    def is_valid(self, run: int, found: dict[str, np.ndarray], dtype: str) -> bool:
        """Whether saved measures of a run are what would be computed now."""
        if set(found) != self.names or found["schema"] != self.schema or found["dtype"] != dtype:
            return False
        return not self.keys or np.array_equal(found[KEYS], self.keys[run])


class _Batch:
    """The checkpoints of one batch while they are analysed. `skipped` collects lines on those that cannot be read."""

    def __init__(self, results: Results, number: int, records: list[RunRecord], dtype: str):
        self.results, self.files, self.number, self.dtype = results, results.files, number, dtype
        self.records = records
        self.config = config_for_analysis(records[0].config, dtype)
        self.skipped: list[str] = []
        self._damaged: set[int] = set()
        self._loaded: tuple[int, Any] | None = None  # the last checkpoint that was read

    def load(self, epoch: int) -> tuple[np.ndarray, Params] | None:
        """A checkpoint: the run of each row, and the stacked parameters. None if it is damaged."""
        if epoch in self._damaged:
            return None
        if self._loaded is None or self._loaded[0] != epoch:
            try:
                self._loaded = epoch, self.files.load_params(self.number, epoch)
            except BadInput:
                self._damaged.add(epoch)
                return None
        return self._loaded[1]

    def params(self, record: RunRecord, epoch: int) -> Params:
        """One run's parameters from a checkpoint that can be read."""
        checkpoint = self.load(epoch)
        assert checkpoint is not None
        return cast(params_of(*checkpoint, record.number), self.dtype)

    def analyze(self, watch: AnalysisWatcher) -> None:
        """Measure every network that has no valid measures."""
        last = self._last_epochs()
        if not last:
            return
        measurer = self._heads(last) if kind_of(self.config) is HEADS else self._circuits(last)
        records = [record for record in self.records if record.number in last]
        for epoch in sorted({epoch for record in records for epoch in self.results.checkpoint_epochs(record)}):
            here = [record for record in records if epoch in self.results.checkpoint_epochs(record)]
            self._analyze_checkpoint(epoch, here, measurer, watch)

    # --- what holds for the whole batch -------------------------------------------------------------------------------

    def _last_epochs(self) -> dict[int, int]:
        """{run: the epoch of its last checkpoint that can be read}, without the runs that have none.

        If that is not the run's last checkpoint, `skipped` says so.
        """
        last: dict[int, int] = {}
        instead: dict[tuple[int, str, int | None], list[RunRecord]] = {}  # (epoch, what is wrong, epoch used): runs
        # Runs that end together share a checkpoint, which is then read once.
        for record in sorted(self.records, key=lambda record: self.results.checkpoint_epochs(record)[-1:]):
            epochs = self.results.checkpoint_epochs(record)
            used = next((epoch for epoch in reversed(epochs) if self.load(epoch) is not None), None)
            if used is not None:
                last[record.number] = used
            missing = missing_epoch(self.results, record)
            if missing is not None:
                instead.setdefault((missing, "missing", used), []).append(record)
            elif epochs and used != epochs[-1]:
                instead.setdefault((epochs[-1], "damaged", used), []).append(record)
        self.skipped += [substitution_line(self.results, records, *what) for what, records in instead.items()]
        return last

    def _circuits(self, last: dict[int, int]) -> _Measurer:
        keys: dict[int, np.ndarray] = {}
        for record in sorted(self.records, key=lambda record: last.get(record.number, -1)):
            if record.number in last:
                params = self.params(record, last[record.number])
                keys[record.number] = np.asarray(measures.find_keys(self.config, params))

        def measure(record: RunRecord, params: Params) -> Measures:
            run = record.run
            assert run.frac is not None  # modular tasks have one
            split = measures.split_of(self.config, run.frac, run.seed, run.split_seed)
            return measures.all(self.config, params, split, keys[record.number], run.seed)

        return self._measurer(measure, measures.SCHEMA, last, keys)

    def _heads(self, last: dict[int, int]) -> _Measurer:
        sequences = heads.sequences(self.config)

        def measure(record: RunRecord, params: Params) -> Measures:
            return heads.scores(self.config, params, *sequences)

        return self._measurer(measure, heads.SCHEMA, last, {})

    def _measurer(
        self, measure: Callable[[RunRecord, Params], Measures], schema: int, last: dict[int, int], keys: dict
    ) -> _Measurer:
        record = next(record for record in self.records if record.number in last)
        shapes = jax.eval_shape(partial(measure, record), self.params(record, last[record.number]))
        names = {name for name, x in flatten_dict(shapes, sep="/").items() if x is not None}
        return _Measurer(measure, schema, {"run", "dtype", "schema", *names}, keys)

    # --- one checkpoint -----------------------------------------------------------------------------------------------

    def _analyze_checkpoint(
        self, epoch: int, records: list[RunRecord], measurer: _Measurer, watch: AnalysisWatcher
    ) -> None:
        saved = self.files.load_measures(self.number, epoch) or {"run": np.array([], np.int64)}
        wanted, done = {record.number for record in records}, {}  # {run: {name: array}}
        for row, run in enumerate(saved["run"]):
            found = {name: x[row] for name, x in saved.items()}
            if run in wanted and measurer.is_valid(run, found, self.dtype):
                done[int(run)] = found
        todo = [record for record in records if record.number not in done]
        watch.advanced(0, len(records) - len(todo))
        if not todo:
            return
        _check_writable(self.files.path)
        if self.load(epoch) is None:
            path = checkpoint_path(self.results, self.number, epoch)
            self.skipped.append(f"{path} is damaged: {len(todo)} of its networks are not measured")
            if len(saved["run"]) > len(done):  # no table may mix measures of different versions
                self._save(epoch, records, done)
            return
        written = time.monotonic()
        try:
            for record in todo:
                found = flatten(measurer.measure(record, self.params(record, epoch)))
                version = {"dtype": np.array(self.dtype), "schema": np.int64(measurer.schema)}
                done[record.number] = {"run": np.int64(record.number), **version, **found}
                watch.advanced(1, 0)
                if time.monotonic() - written > SAVE_SECONDS:
                    self._save(epoch, records, done)
                    written = time.monotonic()
        finally:
            if done:
                self._save(epoch, records, done)

    def _save(self, epoch: int, records: list[RunRecord], done: dict[int, dict[str, np.ndarray]]) -> None:
        rows = [done[record.number] for record in records if record.number in done]
        names = rows[0] if rows else ()
        stacked = {name: np.stack([row[name] for row in rows]) for name in names} or {"run": np.array([], np.int64)}
        try:
            self.files.save_measures(self.number, epoch, stacked)
        except OSError as error:
            raise _not_writable(self.files.path, error.strerror or str(error)) from None


def _check_writable(path: Path) -> None:
    """Raises BadInput before anything is measured, if measures could not be saved."""
    folder = path / "analysis"
    if not os.access(folder if folder.exists() else path, os.W_OK):
        raise _not_writable(path, "it is read-only")


def _not_writable(path: Path, why: str) -> BadInput:
    accepted = f"a directory that can be written, as long as some of its checkpoints are not measured ({why})"
    return BadInput("run directory", str(path), accepted)
