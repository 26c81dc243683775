"""A sweep directory opened for reading: `load(run_dir)` finds runs by their coordinates, never by their row."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxgrok.config import CONFIG_FIELDS, UNLIMITED, BadInput, Config, Run
from jaxgrok.store.curves import RunCurves, SweepCurves
from jaxgrok.store.events import Outcome, RestrictedLoss, Timing, time_run
from jaxgrok.store.steps import SweepFiles
from jaxgrok.tasks import Task, make_task

KEYS = "key_frequencies/keys"  # the name of a run's keys among its measures
AXES = ("task", "arch", "p", "frac", "wd", "lr")  # the coordinates that every table names beside the seed


class Status(StrEnum):
    """How far a run has come. ENDED: it settled or diverged, and trains no further."""

    WAITING = "waiting"
    TRAINING = "training"
    TRAINED = "trained"
    ENDED = "ended"


@dataclass(frozen=True)
class RunRecord:
    """One run of a sweep, as the manifest records it.

    number: its number in the sweep, and its row in metrics.npz. epochs: how long it is planned to train. batch: the
    batch it trains in, None before there is one. status, last_epoch: as of the last save.
    """

    number: int
    run: Run
    epochs: int
    batch: int | None
    status: Status
    last_epoch: int
    split_hash: str = ""

    @property
    def config(self) -> Config:
        return self.run.config

    @functools.cached_property
    def task(self) -> Task:
        return make_task(self.config)

    @property
    def seed(self) -> int:
        return self.run.seed

    @functools.cached_property
    def coordinates(self) -> dict[str, Any]:
        """Everything that tells the run from another, by the names used on disk, and its number as `run`."""
        return {"run": self.number, "n_train": self.run.n_train, **self.run.coordinates()}

    def to_manifest(self) -> dict[str, Any]:
        """The record as the manifest stores it."""
        more = {"split_hash": self.split_hash, "epochs": self.epochs, "batch": self.batch, "status": str(self.status)}
        return {**self.run.coordinates(), **more, "last_epoch": self.last_epoch}

    @classmethod
    def from_manifest(cls, number: int, record: dict[str, Any]) -> "RunRecord":
        """The record that `to_manifest` wrote. Raises KeyError, TypeError or ValueError (BadInput too) for another."""
        whole = {name: record[name] for name in ("epochs", "last_epoch")}
        if not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in whole.values()):
            raise ValueError(f"run {number}: {whole}")
        run, batch, status = Run.from_coordinates(record), record["batch"], Status(record["status"])
        return cls(number, run, whole["epochs"], batch, status, whole["last_epoch"], record.get("split_hash", ""))


def read_records(files: SweepFiles, manifest: dict[str, Any]) -> list[RunRecord]:
    """The runs of a manifest, in order of number. Raises BadInput, and names the manifest, for what no sweep wrote."""
    try:
        records = [RunRecord.from_manifest(int(number), record) for number, record in manifest["runs"].items()]
        if [record.number for record in records] != list(range(len(records))):
            raise ValueError("its runs are not numbered 0, 1, 2, ...")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        accepted = f"a manifest that sweep.py wrote ({type(error).__name__}: {error}). Restore it from a copy"
        raise BadInput("manifest.json", str(files.manifest_json), accepted) from None
    return records


def text_of(name: str, value: Any) -> str:
    """A coordinate's value for people."""
    if value is None:
        return UNLIMITED if name == "n_train" else "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def name_of(fields: Sequence[tuple[str, Any]]) -> str:
    """`wd=0.1 lr=0.001`."""
    return " ".join(f"{name}={text_of(name, value)}" for name, value in fields)


@dataclass(frozen=True)
class Cell:
    """One combination of all axes except the seed. records and timings are of its runs, in the same order.

    fields: ((name, value), ...) of the axes that vary in the sweep; () in a sweep that varies the seed alone.
    """

    fields: tuple[tuple[str, Any], ...]
    records: list[RunRecord]
    timings: list[Timing]

    @property
    def name(self) -> str:
        return name_of(self.fields)

    @property
    def config(self) -> Config:
        """The config of its runs, which differ in their seeds alone."""
        return self.records[0].config

    @property
    def task(self) -> Task:
        return self.records[0].task

    @property
    def unlimited(self) -> bool:
        return self.records[0].run.unlimited

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many runs ended in each way."""
        return {outcome: sum(timing.outcome is outcome for timing in self.timings) for outcome in Outcome}


class Results:
    """A sweep directory, opened for reading; training may still be going on in it.

    runs: a RunRecord of every run, in order of number. sweep_curves: the curves of all of them.
    """

    def __init__(self, path: str | Path):
        self.files = SweepFiles(path)
        if not self.files.exists():
            raise BadInput("run directory", str(path), "a directory that sweep.py made")
        manifest, config = self.files.read_manifest(), self.files.read_config()
        self.sessions: list[dict[str, Any]] = manifest["sessions"]
        self.batches: dict[str, Any] = manifest["batches"]
        self.runs = read_records(self.files, manifest)
        if not self.runs or not self.sessions:
            raise BadInput("run directory", str(path), "a directory of a sweep that has runs")
        configs = {record.config for record in self.runs}
        self.sweep_curves = SweepCurves(
            len(self.runs),
            max(record.epochs for record in self.runs),
            config["eval_every"],
            config["train_every"],
            "float64" if any(config.needs_x64 for config in configs) else "float32",
            max(len(make_task(config).parts) for config in configs),
        )
        self.sweep_curves.copy_from(self.files.metrics_npz)

    @property
    def path(self) -> Path:
        return self.files.path

    # --- runs and cells -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def varying(self) -> list[str]:
        """The coordinates in which runs differ, beside the seed: a cell is one combination of them."""
        # The number of train examples of a modular task follows from its fraction.
        sizes = () if all(record.run.frac is not None for record in self.runs) else ("n_train",)
        names = [*AXES, *sizes, "init_scale", *(name for name in CONFIG_FIELDS if name not in AXES)]
        return [name for name in names if len({record.coordinates[name] for record in self.runs}) > 1]

    @functools.cached_property
    def cells(self) -> list[Cell]:
        """The cells of the sweep, with the timings of their runs. A run that has not begun is in none."""
        by_fields: dict[tuple, list[RunRecord]] = {}
        varying = self.varying
        for record in self.runs:
            if self.sweep_curves.last_epoch[record.number]:
                fields = tuple((name, record.coordinates[name]) for name in varying)
                by_fields.setdefault(fields, []).append(record)
        return [
            Cell(fields, records, [self.timing(record) for record in records]) for fields, records in by_fields.items()
        ]

    @property
    def not_begun(self) -> int:
        """How many runs have not begun."""
        return int((self.sweep_curves.last_epoch == 0).sum())

    def select(self, **coordinates: Any) -> list[RunRecord]:
        """The runs with these coordinates, by the names used on disk; `weight_decay` is another name for `wd`.

        Raises BadInput if there is no such run.
        """
        if "weight_decay" in coordinates:
            coordinates["wd"] = coordinates.pop("weight_decay")
        for name, value in coordinates.items():
            values = {record.coordinates[name] for record in self.runs if name in record.coordinates}
            if value not in values:
                listed = " ".join(map(str, sorted(values, key=str)))
                raise BadInput(name, value, f"one of {listed}" if values else "a coordinate of a run")
        wanted = coordinates.items()
        found = [record for record in self.runs if all(record.coordinates[name] == value for name, value in wanted)]
        if not found:
            raise BadInput("coordinates", coordinates, "a combination that was trained")
        return found

    def record(self, **coordinates: Any) -> RunRecord:
        """The one run with these coordinates. Raises BadInput if there is none, or more than one."""
        found = self.select(**coordinates)
        if len(found) > 1:
            names = ("seed", *self.varying)
            differ = [name for name in names if len({record.coordinates[name] for record in found}) > 1]
            raise BadInput("coordinates", coordinates, "coordinates of one run; also give " + " ".join(differ))
        return found[0]

    # --- curves and events --------------------------------------------------------------------------------------------

    def curves(self, **coordinates: Any) -> RunCurves:
        """One run's curves, by its coordinates."""
        return self.sweep_curves.of_run(self.record(**coordinates).number)

    def part_curves(self, part: str | None = None, **coordinates: Any) -> dict[str, Any]:
        """One run's test curves by part: `epoch_eval` and `test_answer_acc` [evaluations], and under `test_part_loss`
        and `test_part_acc` a dictionary {part: [evaluations]}, of one part alone if it is named.

        Raises BadInput for a part that does not exist.
        """
        record = self.record(**coordinates)
        names = record.task.parts
        if not names or part is not None:
            check_part(part, record.config)
        curves = self.sweep_curves.of_run(record.number)
        numbers = {name: i for i, name in enumerate(names) if part in (None, name)}
        by_part = {
            curve: {name: getattr(curves, curve)[:, i] for name, i in numbers.items()}
            for curve in ("test_part_loss", "test_part_acc")
        }
        return {"epoch_eval": curves.epoch_eval, "test_answer_acc": curves.test_answer_acc, **by_part}

    def timing(self, record: RunRecord) -> Timing:
        """The events of one run, with those of its circuits if all its checkpoints were analysed."""
        if record.number not in self._timings:
            curves, restricted = self.sweep_curves.of_run(record.number), self._restricted.get(record.number)
            self._timings[record.number] = time_run(
                curves, record.task.criterion, unlimited=record.run.unlimited, restricted=restricted
            )
        return self._timings[record.number]

    @functools.cached_property
    def _timings(self) -> dict[int, Timing]:
        return {}

    def part_timings(self, record: RunRecord) -> dict[str, Timing]:
        """{part: its events} of one run, for the parts that the loss counts (`Task.part_criterion`). `memorised` is the
        run's. A part of which the run's test set has no target is left out."""
        task, curves = record.task, self.sweep_curves.of_run(record.number)
        timings = {}
        for i, part in enumerate(task.parts[: task.counted]):
            of_part = curves.of_part(i)
            if len(of_part.test_loss) and np.isnan(of_part.test_loss).all():
                continue
            timings[part] = time_run(of_part, task.part_criterion(part), unlimited=record.run.unlimited)
        return timings

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoint_epochs(self, record: RunRecord) -> list[int]:
        """The epochs at which a run's parameters were saved."""
        if record.batch is None:
            return []
        last = int(self.sweep_curves.last_epoch[record.number])
        return [epoch for epoch in self._epochs_of_batch(record.batch) if epoch <= last]

    def _epochs_of_batch(self, batch: int) -> list[int]:
        if batch not in self._batch_epochs:
            self._batch_epochs[batch] = self.files.checkpoint_epochs(batch)
        return self._batch_epochs[batch]

    @functools.cached_property
    def _batch_epochs(self) -> dict[int, list[int]]:
        return {}

    def params(self, epoch: int | None = None, **coordinates: Any) -> dict[str, Any]:
        """One run's parameters after `epoch` updates, as numpy; None means its last checkpoint.

        Raises BadInput for an epoch that was not saved.
        """
        record = self.record(**coordinates)
        epochs = self.checkpoint_epochs(record)
        if not epochs or record.batch is None:
            raise BadInput("run", record.number, "a run that has begun")
        epoch = epochs[-1] if epoch is None else epoch
        if epoch not in epochs:
            raise BadInput("epoch", epoch, "a saved one: " + " ".join(map(str, epochs)))
        return params_of(*self.files.load_params(record.batch, epoch), record.number)

    # --- measures -----------------------------------------------------------------------------------------------------

    def analysed(
        self, runs: set[int] | None = None, names: Sequence[str] | None = None
    ) -> Iterator[tuple[RunRecord, int, dict[str, Any]]]:
        """(record, epoch, {name: array}) of every analysed checkpoint, batch by batch in order of epoch. One file is
        open at a time.

        runs: the numbers of the runs wanted; None means all. names: the measures wanted; None means all. A measure's
        name is its path in `measures.all`, joined by "/": `restricted_loss/all`.
        """
        records = {record.number: record for record in self.runs if runs is None or record.number in runs}
        for batch in sorted({record.batch for record in records.values() if record.batch is not None}):
            for epoch in self._epochs_of_batch(batch):
                found = self.files.load_measures(batch, epoch, None if names is None else ("run", *names))
                for row, run in enumerate([] if found is None else found["run"]):
                    if found is not None and run in records and epoch <= self.sweep_curves.last_epoch[run]:
                        # Copied: a view would keep the rows of all other runs in memory.
                        yield records[run], epoch, {name: np.array(x[row]) for name, x in found.items()}

    def last_analysed(self, records: list[RunRecord]) -> list[dict[str, Any]]:
        """{name: array} of each run's last analysed checkpoint, with its `epoch`, in the order of the records. A run
        that was not analysed is left out."""
        load = functools.lru_cache(maxsize=1)(self.files.load_measures)  # the runs of a batch mostly end together
        found = []
        for record in records:
            for epoch in reversed(self.checkpoint_epochs(record)):
                measures = None if record.batch is None else load(record.batch, epoch)
                if measures is not None and record.number in measures["run"]:
                    (row,) = (measures["run"] == record.number).nonzero()[0]
                    found.append({**{name: np.array(x[row]) for name, x in measures.items()}, "epoch": epoch})
                    break
        return found

    def measures(self, **coordinates: Any) -> dict[str, Any]:
        """One run's measures at all its analysed checkpoints: what `measures.all` gives, [checkpoints, ...], and
        `epoch` [checkpoints]. What `measures.all` gives as None is left out. Raises BadInput for a run that was not
        analysed."""
        return self.measured([self.record(**coordinates)])[0]

    def measured(self, records: list[RunRecord], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """`measures` of several runs, or the named ones (see `analysed`), in one pass over the files."""
        series: dict[int, dict[str, list]] = {record.number: {"epoch": []} for record in records}
        for record, epoch, found in self.analysed(set(series), names):
            rows = series[record.number]
            rows["epoch"].append(epoch)
            for name in found.keys() - NOT_MEASURES:
                rows.setdefault(name, []).append(found[name])
        for record in records:
            if not series[record.number]["epoch"]:
                accepted = f"a run that was analysed: python scripts/analyze.py {self.path}"
                raise BadInput("run", record.number, accepted)
        return [
            unflatten_dict({name: np.stack(rows) for name, rows in of_run.items()}, sep="/")
            for of_run in series.values()
        ]

    @functools.cached_property
    def _restricted(self) -> dict[int, RestrictedLoss]:
        """{run: its restricted loss} for the runs whose every checkpoint was analysed with the same keys."""
        points: dict[int, list] = {}
        for record, epoch, found in self.analysed(names=(KEYS, "restricted_loss/all")):
            if KEYS in found:  # not where heads were measured
                points.setdefault(record.number, []).append((epoch, found["restricted_loss/all"], found[KEYS]))
        curves = {}
        for number, of_run in points.items():
            epochs, losses, keys = (np.array(column) for column in zip(*of_run, strict=True))
            # The curve has gaps if the run has trained on, or its analysis was interrupted.
            whole = list(epochs) == self.checkpoint_epochs(self.runs[number])
            if whole and (keys == keys[-1]).all():
                curves[number] = RestrictedLoss(epochs, losses)
        return curves

    @property
    def has_circuit_events(self) -> bool:
        """Whether the checkpoints of any run were analysed."""
        return bool(self._restricted)


NOT_MEASURES = {"run", "dtype", "schema"}  # what stands beside the measures of a checkpoint


def params_of(rows: np.ndarray, stacked: Any, number: int) -> dict[str, Any]:
    """One run's parameters out of a checkpoint's stacked ones [row, ...]. Raises BadInput if the run is not among
    them."""
    found = (rows == number).nonzero()[0]
    if len(found) != 1:
        raise BadInput("run", number, "one of the checkpoint's runs: " + " ".join(map(str, rows)))
    return jax.tree.map(lambda leaf: leaf[found[0]], stacked)


def check_part(part: str | None, config: Config, label: str = "part") -> None:
    """Raises BadInput, named `label`, if the config's task has no such part."""
    names = make_task(config).parts
    if part not in names:
        raise BadInput(label, part, f"a part of task {config.task}: {', '.join(names) or 'it has none'}")


def load(run_dir: str | Path) -> Results:
    """Open a sweep directory for reading. Raises BadInput if there is none."""
    return Results(run_dir)
