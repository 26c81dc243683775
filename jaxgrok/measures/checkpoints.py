"""Measure one network, from a file or a run; or every checkpoint of a sweep directory, one at a time.

The task of a network decides what is measured (`kind_of`): its circuits, by `measures.all`, or its attention heads, by
`heads.scores`. In a sweep, the key frequencies are found in each run's last checkpoint, and they hold for all its
checkpoints.

The measures of a checkpoint are written beside it as soon as they are known (`SweepFiles.save_measures`). So memory
does not grow with the number of runs or checkpoints, and an interrupted analysis resumes. A network is measured again
only if its run has trained on and its keys have changed, if another dtype is asked for, or if the saved measures are
of another version (their `schema`, or their names).
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Bool

from jaxgrok.config import BadInput, Config
from jaxgrok.measures import circuits as measures
from jaxgrok.measures import fourier, heads
from jaxgrok.nets import interop
from jaxgrok.store.results import KEYS, Cell, Results, RunRecord, Status, load, params_of

Params = dict[str, Any]
Measures = dict[str, Any]  # what `measures.all` or `heads.scores` returns


class Kind(StrEnum):
    """What is measured of a network."""

    CIRCUITS = "circuits"
    HEADS = "heads"


CIRCUITS, HEADS = Kind.CIRCUITS, Kind.HEADS
FINISHED = (Status.TRAINED, Status.ENDED)
MEASURABLE = "induction, or a modular task with an MLP and residual factor 1"
SAVE_SECONDS = 30  # between writes within one checkpoint of many runs: the most work that a killed process loses
# The fields of a config that decide what is measured; all others are at their defaults, so that one compilation serves
# all configs that differ in them alone.
_SHAPES = (
    *("task", "p", "arch", "n_layers", "n_heads", "d_model", "d_mlp", "act", "residual_factor"),
    *("n_ctx", "seq_len", "repeat_len", "n_repeats", "n_tokens"),
)


class Watcher(Protocol):
    """What `analyze` tells about its progress."""

    def started(self, total: int) -> None:
        """Called once, unless there is no network: with their number, which is the sum over runs of their
        checkpoints."""

    def advanced(self, measured: int, found: int) -> None:
        """Called with the number of networks just measured, and of networks whose saved measures are still valid."""


class Silent:
    """A watcher that shows nothing. `jaxgrok.cli.live.AnalysisWatch` shows the progress."""

    def started(self, total: int) -> None:
        pass

    def advanced(self, measured: int, found: int) -> None:
        pass


def kind_of(config: Config) -> Kind | None:
    """What is measured of a network, or None if there are no measures of it."""
    if config.task == "induction":
        return HEADS
    return CIRCUITS if config.modular and config.arch != "attn_only" and config.residual_factor == 1 else None


def _described(config: Config) -> str:
    """The task, and the other fields of a config that decide whether it is measured."""
    text = f"task {config.task}"
    if config.arch == "attn_only":
        text += f" with arch {config.arch}"
    if config.residual_factor != 1:
        text += f" and residual factor {config.residual_factor:g}"
    return text


def left_out(results: Results) -> list[str]:
    """What analysis leaves out of a sweep: a line for each kind of network that has no measures."""
    counts = Counter(_described(record.config) for record in results.runs if kind_of(record.config) is None)
    runs = len(results.runs)
    return [f"left out: {n} of {runs} runs, {what}; measured are {MEASURABLE}" for what, n in counts.items()]


def of_kind(kind: Kind, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose networks are measured as this kind."""
    return [cell for cell in cells if kind_of(cell.config) is kind]


def config_for_analysis(config: Config, dtype: str = "float32") -> Config:
    """The config in this dtype, with every field that no measure depends on at its default.

    Configs that differ only in such fields become equal, so that they compile once.

    Raises BadInput for float64 if JAX has x64 off.
    """
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == "float64" and not x64:
        raise BadInput("dtype", dtype, 'float64 only after jax.config.update("jax_enable_x64", True)')
    return Config(**{name: getattr(config, name) for name in _SHAPES}, dtype=dtype)


def cast(params: Params, dtype: str) -> Params:
    """The parameters in another dtype, as numpy."""
    return jax.tree.map(lambda x: np.asarray(x, dtype), params)


def flatten(tree: Measures) -> dict[str, np.ndarray]:
    """{"a": {"b": x}} as {"a/b": x}, in numpy. Entries that are None are left out."""
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items() if x is not None}


# --- one network ------------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """One network to be measured.

    Attributes:
        config: the config of the network.
        params: its parameters, as numpy.
        split: its train and test pairs; None if its circuits are not measured.
        params_of_keys: the parameters whose keys are used: those of its run's last checkpoint.
        seed: the seed of the random controls.
        about: what is reported about its split and origin beside the measures.
        warnings: lines that a reader of its measures must see.
    """

    config: Config
    params: Params
    split: measures.Split | None
    params_of_keys: Params
    seed: int
    about: dict[str, Any]
    warnings: tuple[str, ...] = ()


def _split_of(
    config: Config, frac: float | None, seed: int, split_seed: int | None
) -> tuple[measures.Split | None, dict[str, Any]]:
    """A network's split, and what is reported about it. (None, {}) if no circuits are measured."""
    if kind_of(config) is not CIRCUITS or frac is None:
        return None, {}
    split = measures.split_of(config, frac, seed, split_seed)
    return split, {"seed": seed if split_seed is None else split_seed, "frac_train": frac}


def subject_of_file(
    path: str | Path, *, frac: float = 0.3, split_seed: int = 0, seed: int | None = None, **options: Any
) -> Subject:
    """The network in a file of weights, on the split of `split_seed`.

    seed: of the labels of task `random` and of the random controls. None means the split's.
    options: as `interop.load` takes them.

    Raises BadInput, and names what is wrong.
    """
    config, params, recorded = interop.load(path, **options)
    seed = split_seed if seed is None else seed
    split, about = _split_of(config, frac, seed, split_seed)
    losses = {name: recorded.get(name) for name in ("train_loss", "test_loss")}
    about |= {f"recorded_{name}": x for name, x in losses.items() if isinstance(x, int | float) and math.isfinite(x)}
    return Subject(config, params, split, params, seed, about)


def subject_of_run(results: Results, epoch: int | None = None, **coordinates: Any) -> Subject:
    """The network of one run after `epoch` updates, to be measured with the keys of the run's last checkpoint.

    epoch None means the last checkpoint.

    Raises BadInput if the coordinates are not those of one run, if the run has not begun, if the epoch was not saved,
    or if its checkpoint is damaged.
    """
    record = results.record(**coordinates)
    last = results.params(run=record.number)
    last_epoch = results.checkpoint_epochs(record)[-1]
    params = last if epoch is None else results.params(epoch, run=record.number)
    split, about = _split_of(record.config, record.run.frac, record.seed, record.run.split_seed)
    about |= {"run": record.number, "epoch": last_epoch if epoch is None else epoch}
    missing = _missing_epoch(results, record)
    lines = () if missing is None else (_substitute(results, [record], missing, "missing", last_epoch),)
    return Subject(record.config, params, split, last, record.seed, about, lines)


def measure(subject: Subject, dtype: str = "float32") -> Measures:
    """`measures.all` or `heads.scores` of one network, as numpy, computed in this dtype.

    Raises BadInput if there are no measures of such a network.
    """
    config, kind = config_for_analysis(subject.config, dtype), kind_of(subject.config)
    if kind is HEADS:
        return jax.tree.map(np.asarray, heads.scores(config, cast(subject.params, dtype), *heads.sequences(config)))
    if kind is None or subject.split is None:
        raise BadInput("network", _described(config), MEASURABLE)
    keys = measures.find_keys(config, cast(subject.params_of_keys, dtype))
    found = measures.all(config, cast(subject.params, dtype), subject.split, keys, subject.seed)
    return jax.tree.map(np.asarray, found)


def to_json(subject: Subject, measured: Measures) -> dict[str, Any]:
    """The measures as plain values, with what is known about the split and the origin of the network.

    For circuits this is `measures.to_json`. For heads it is what `heads.scores` returns, with arrays as nested lists.
    """
    if kind_of(subject.config) is HEADS:
        return measures.plain(measured) | {"task": subject.config.task, "network": subject.about}
    return measures.to_json(subject.config, measured) | {"split": subject.about}


def remarks(subject: Subject, measured: Measures) -> list[str]:
    """What a reader of these measures must know beside them, in lines."""
    lines = list(subject.warnings)
    if kind_of(subject.config) is HEADS:
        return lines
    if subject.config.task not in fourier.WAVE_ARGUMENTS:
        lines.append(
            f"task {subject.config.task}: its answer is no wave of a and b, so restricted, excluded and fitted losses "
            "do not exist"
        )
    if measured["no_keys"]:
        lines.append("no keys: no frequency satisfies the rules, so the measures that need keys do not exist")
    for part in ("train", "test"):
        recorded, ours = subject.about.get(f"recorded_{part}_loss"), float(measured["loss_all_classes"][part])
        if recorded is not None:
            agrees = abs(ours - recorded) <= 0.01 * abs(recorded)
            doubt = "" if agrees else "; are these the split, fraction and task of that network?"
            lines.append(f"{part} loss {ours:.6e}, recorded in the file {recorded:.6e}{doubt}")
    return lines


# --- a sweep directory ------------------------------------------------------------------------------------------------


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


def analyze(run_dir: str | Path, *, dtype: str = "float32", watch: Watcher = Silent()) -> Analysis:
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
        raise BadInput("network", _described(results.runs[0].config), MEASURABLE)
    config_for_analysis(measurable[0].config, dtype)  # refuses the dtype before anything is read
    batches: dict[int, list[RunRecord]] = {}
    for record in measurable:
        if record.batch is not None and _last_epoch(results, record):
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


def _last_epoch(results: Results, record: RunRecord) -> int:
    return int(results.sweep_curves.last_epoch[record.number])


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
        if saved and saved[-1] > _last_epoch(results, record):
            ahead.append(record)
        elif not _last_epoch(results, record):
            not_begun += 1
    parts = [f"{not_begun} have not begun"] if not_begun else []
    if ahead:
        epoch = min(_last_epoch(results, record) for record in ahead)
        parts.append(
            f"{len(ahead)} have checkpoints that are newer than the saved curves, which reach epoch {epoch:,}; analyse "
            "them once the sweep has saved its curves"
        )
    return [f"not measured yet: of {len(records)} runs, {', and '.join(parts)}"] if parts else []


def _missing_epoch(results: Results, record: RunRecord) -> int | None:
    """The epoch of a run's last checkpoint, if that is missing.

    A run that has finished has a checkpoint at its last epoch. Where the last one of an unfinished run should be is not
    known, since the directory does not say how often checkpoints are saved; but there is at least one.
    """
    last, saved = _last_epoch(results, record), results.checkpoint_epochs(record)
    finished = record.status in FINISHED and record.last_epoch == last
    return last if not saved or (finished and last not in saved) else None


def _path_of(results: Results, batch: int | None, epoch: int) -> Path:
    assert batch is not None  # a run with checkpoints is in a batch
    return results.files.batch_dir(batch) / str(epoch)


def _substitute(results: Results, records: Sequence[RunRecord], epoch: int, state: str, used: int | None) -> str:
    """The line on the last checkpoint of these runs, which is missing or damaged, and on what is used instead of it."""
    runs = ("run " if len(records) == 1 else "runs ") + " ".join(str(record.number) for record in records)
    path = _path_of(results, records[0].batch, epoch)
    if used is None:
        return f"{path} is {state}, and {runs} have no other checkpoint: they are not measured"
    keys = ", and their key frequencies are found in it" if kind_of(records[0].config) is CIRCUITS else ""
    return f"{path}, the last checkpoint of {runs}, is {state}: that of epoch {used:,} counts as the last{keys}"


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

    def analyze(self, watch: Watcher) -> None:
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
            missing = _missing_epoch(self.results, record)
            if missing is not None:
                instead.setdefault((missing, "missing", used), []).append(record)
            elif epochs and used != epochs[-1]:
                instead.setdefault((epochs[-1], "damaged", used), []).append(record)
        self.skipped += [_substitute(self.results, records, *what) for what, records in instead.items()]
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

    def _analyze_checkpoint(self, epoch: int, records: list[RunRecord], measurer: _Measurer, watch: Watcher) -> None:
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
            path = _path_of(self.results, self.number, epoch)
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
