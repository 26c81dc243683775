"""The plan of a sweep: what its directory already holds, merged with what a command asks for, and laid into batches.

`prepare` makes a `Plan` and writes nothing. It works in two steps. `merge_records` joins the runs of the directory and
those of the command. `lay_out` then gives each run its batch: a batch that has begun keeps its members, and the runs
that have none yet are laid into new batches.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxgrok.config import CONFIG_FIELDS, LATER, BadInput, Config, Run
from jaxgrok.nets import interop
from jaxgrok.store.results import RunRecord, Status, read_records
from jaxgrok.store.schedule import default_checkpoint_every, default_eval_every, schedule
from jaxgrok.store.steps import SweepFiles
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import Sweep
from jaxgrok.training.plan import Batch, check_memory, make_batches
from jaxgrok.training.run import Params, make_program

Devices = tuple[Any, ...]  # of jax.Device, to which jaxlib gives no type


@dataclass(frozen=True)
class RowLayout:
    """Which run each row of a batch holds from an epoch on (None for a padding row), over how many devices."""

    epoch: int
    rows: tuple[int | None, ...]
    devices: int

    def to_manifest(self) -> dict[str, Any]:
        return {"from": self.epoch, "rows": list(self.rows), "devices": self.devices}

    @classmethod
    def from_manifest(cls, layout: dict[str, Any]) -> "RowLayout":
        """The layout that `to_manifest` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        epoch, rows, devices = layout["from"], layout["rows"], layout["devices"]
        if not isinstance(rows, list) or not all(isinstance(x, int) for x in (epoch, devices)):
            raise ValueError(f"a layout is {layout}")
        return cls(epoch, tuple(rows), devices)


@dataclass(frozen=True)
class PlannedBatch:
    """A batch of a plan.

    batch: its runs, and how long they train.
    layouts: the layouts it has had, oldest first. Training extends the list.
    asked: whether the command asks for any of its runs.
    """

    batch: Batch
    layouts: list[RowLayout]
    asked: bool

    def to_manifest(self) -> dict[str, Any]:
        """The batch as the manifest stores it."""
        layouts = [layout.to_manifest() for layout in self.layouts]
        return {"runs": list(self.batch.runs), "epochs": self.batch.epochs, "layouts": layouts}


@dataclass(frozen=True)
class Plan:
    """What a sweep trains, given what its directory already holds.

    records: every run of the directory and of the command, in order of number. A record's `epochs` is the most that any
        command has asked of it; its status and last epoch are those of the last save.
    planned: {number: batch} of the batches that have begun and of the new ones.
    weights: (config, seed) -> the parameters a run starts from; None means that the network draws them.
    """

    sweep: Sweep
    files: SweepFiles
    records: list[RunRecord]
    planned: dict[int, PlannedBatch]
    eval_every: int
    devices: Devices
    weights: Callable[[Config, int], Params] | None

    @functools.cached_property
    def batches(self) -> dict[int, Batch]:
        return {number: planned.batch for number, planned in self.planned.items()}

    @functools.cached_property
    def todo(self) -> tuple[int, ...]:
        """The numbers of the batches that the command asks for."""
        return tuple(sorted(number for number, planned in self.planned.items() if planned.asked))

    def checkpoints(self, batch: Batch) -> list[int]:
        """The epochs at which this batch's parameters are saved: denser early, then every 1 %, and the last."""
        every = self.sweep.checkpoint_every
        every = default_checkpoint_every(batch.epochs, self.eval_every) if every is None else every
        return [*schedule(batch.epochs, every, self.eval_every), batch.epochs]

    def check(self) -> None:
        """Raises BadInput if what is to be trained does not fit into memory, or if the given weights do not fit it."""
        check_memory([self.batches[number] for number in self.todo], self.devices)
        if self.weights is not None:
            for config in self.sweep.configs:
                self.weights(config, self.sweep.seeds[0])


def prepare(
    sweep: Sweep,
    out: str | Path | None = None,
    batch_runs: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Plan:
    """The plan of a sweep. Writes nothing.

    out, batch_runs, devices: as for `sweep`. Raises BadInput for what cannot be trained, or not in that directory. A
    run that does not fit into memory has a plan all the same, which says so; `Plan.check` refuses it.
    """
    files = SweepFiles(Path("runs") / sweep.default_name() if out is None else out)
    return plan_in(files, sweep, batch_runs, devices)


def plan_in(files: SweepFiles, sweep: Sweep, batch_runs: int | None, devices: Sequence[Any] | None) -> Plan:
    """The plan of a sweep in an opened directory. See `prepare`."""
    devices = tuple(jax.local_devices() if devices is None else devices)
    wanted = {run: sweep.planned_epochs(run) for run in sweep.runs()}
    eval_every = default_eval_every(min(wanted.values())) if sweep.eval_every is None else sweep.eval_every
    weights = None if sweep.init is None else interop.initial_weights(sweep.init)
    for config in sweep.configs:
        make_program(config, eval_every)  # raises for float64 without x64
    known, begun = [], {}
    if files.exists():
        _refuse_changes(sweep, files)
        eval_every, manifest = files.read_config()["eval_every"], files.read_manifest()
        known = read_records(files, manifest)
        begun = _read_batches(files, manifest, known)
    elif files.holds_something_else():
        raise BadInput("out", str(files.path), "a new or empty directory, or one that a sweep made")
    records = merge_records(known, wanted)
    goals = {record.number: wanted[record.run] for record in records if record.run in wanted}
    planned = lay_out(begun, records, goals, devices, batch_runs)
    return Plan(sweep, files, _in_batches(records, planned), planned, eval_every, devices, weights)


def _refuse_changes(sweep: Sweep, files: SweepFiles) -> None:
    """Raise BadInput if the directory holds a sweep that this one cannot extend."""
    old = files.read_config()
    unsaid = {"init": None, **{name: CONFIG_FIELDS[name].default for name in LATER}}
    for name, value in {**unsaid, **sweep.fixed(), "eval_every": sweep.eval_every}.items():
        before = old.get(name, unsaid.get(name))
        if value != before and not (name == "eval_every" and value is None):
            raise BadInput(name, value, f"{before!r}, the value of the sweep in {files.path}; or another --out")


# --- the first step: which runs there are -----------------------------------------------------------------------------


def merge_records(known: list[RunRecord], wanted: Mapping[Run, int]) -> list[RunRecord]:
    """The runs of a directory, then those that are new in a command, {run: its planned epochs}."""
    old = {record.run for record in known}
    new = [run for run in wanted if run not in old]
    return [
        *known,
        *(RunRecord(number, run, wanted[run], None, Status.WAITING, 0) for number, run in enumerate(new, len(known))),
    ]


def _in_batches(records: list[RunRecord], planned: dict[int, PlannedBatch]) -> list[RunRecord]:
    """The records with their batches. All runs of a batch train as long as the batch does."""
    placed = {run: number for number, of_batch in planned.items() for run in of_batch.batch.runs}
    out = []
    for record in records:
        batch, epochs = placed.get(record.number), record.epochs
        if batch is not None and planned[batch].asked:
            epochs = max(epochs, planned[batch].batch.epochs)
        out.append(replace(record, batch=batch, epochs=epochs))
    return out


def split_hash(run: Run) -> str:
    """Twelve hexadecimal digits of the run's train examples and their targets; on unlimited data, of its test
    examples."""
    train, test = make_task(run.config).split(run.size, run.seed, run.split_seed)
    listed = test if train is None else train
    return hashlib.sha256(listed.tokens.tobytes() + listed.targets.tobytes()).hexdigest()[:12]


def with_split_hashes(plan: Plan) -> list[RunRecord]:
    """The records of a plan, each with the hash of its split.

    Raises BadInput, and names the run, if the manifest recorded another hash: its curves are of other examples.
    """
    out = []
    for record in plan.records:
        found = split_hash(record.run)
        if record.split_hash not in ("", found):
            accepted = (
                f"a manifest whose run {record.number} (seed {record.seed}) has split_hash {found}, as its coordinates "
                f"give it; this one says {record.split_hash!r}. Restore it from a copy"
            )
            raise BadInput("manifest.json", str(plan.files.manifest_json), accepted)
        out.append(replace(record, split_hash=found))
    return out


# --- the second step: which runs train together -----------------------------------------------------------------------


def lay_out(
    begun: Mapping[int, PlannedBatch],
    records: list[RunRecord],
    goals: Mapping[int, int],
    devices: Devices,
    batch_runs: int | None,
) -> dict[int, PlannedBatch]:
    """{number: batch} of the batches that have begun, and of new ones for the runs that are in none.

    goals: {number of a run: the epochs that the command asks of it}. A batch that has begun keeps its members: if the
    command asks for one of them, all of them train on together.
    """
    planned = {}
    for number, of_batch in begun.items():
        batch = of_batch.batch
        asked = [goals[run] for run in batch.runs if run in goals]
        length = max(asked, default=batch.epochs)
        planned[number] = PlannedBatch(replace(batch, epochs=length), of_batch.layouts, bool(asked))
    placed = {run for of_batch in planned.values() for run in of_batch.batch.runs}
    waiting = {number: records[number].run for number in goals if number not in placed}
    new = make_batches(waiting, dict(goals), devices, batch_runs)
    first = max(planned, default=-1) + 1
    return planned | {number: PlannedBatch(batch, [], asked=True) for number, batch in enumerate(new, first)}


def _read_batches(files: SweepFiles, manifest: dict[str, Any], records: list[RunRecord]) -> dict[int, PlannedBatch]:
    """The batches of a manifest that have begun, none of them asked for yet.

    Raises BadInput, and names the manifest, if its batches contradict its runs.
    """
    try:
        found = {int(number): _read_batch(batch, records) for number, batch in manifest["batches"].items()}
        members = [run for of_batch in found.values() for run in of_batch.batch.runs]
        if len(set(members)) != len(members):
            raise ValueError("a run is in two batches")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        accepted = f"a manifest that sweep.py wrote ({type(error).__name__}: {error}). Restore it from a copy"
        raise BadInput("manifest.json", str(files.manifest_json), accepted) from None
    return {number: of_batch for number, of_batch in found.items() if files.batch_dir(number).exists()}


def _read_batch(batch: dict[str, Any], records: list[RunRecord]) -> PlannedBatch:
    runs, epochs, layouts = batch["runs"], batch["epochs"], batch["layouts"]
    if not isinstance(layouts, list) or not isinstance(epochs, int):
        raise ValueError(f"a batch has the epochs {epochs!r} and the layouts {layouts!r}")
    for run in runs:
        if not isinstance(run, int) or not 0 <= run < len(records):
            raise ValueError(f"a batch names the run {run!r}, which does not exist")
    shapes = {(records[run].config, records[run].run.n_train) for run in runs}
    if len(shapes) != 1:
        raise ValueError(f"the runs {runs} of a batch differ in their config or number of train examples")
    ((config, n_train),) = shapes
    return PlannedBatch(Batch(tuple(runs), config, n_train, epochs), list(map(RowLayout.from_manifest, layouts)), False)
