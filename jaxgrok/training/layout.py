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
import numpy as np

from jaxgrok.config import CONFIG_FIELDS, LATER, BadInput, Config, Run
from jaxgrok.nets import interop
from jaxgrok.store.batches import SavedBatch
from jaxgrok.store.files import Shard, SweepFiles
from jaxgrok.store.records import RunRecord, Status, read_batches, read_records
from jaxgrok.store.schedule import default_checkpoint_every, default_eval_every, schedule
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import Sweep
from jaxgrok.training.plan import Batch, check_disk, check_memory, make_batches
from jaxgrok.training.run import Params, check_precision, make_program

Devices = tuple[Any, ...]  # of jax.Device, to which jaxlib gives no type


@dataclass(frozen=True)
class PlannedBatch:
    """A batch of a plan. asked: whether the command asks for any of its runs."""

    batch: Batch
    asked: bool

    def to_manifest(self) -> dict[str, Any]:
        """The batch as the manifest stores it."""
        return {"runs": list(self.batch.runs), "epochs": self.batch.epochs}


@dataclass(frozen=True)
class Plan:
    """What a sweep trains, given what its directory already holds.

    records: every run of the directory and of the command, in order of number. A record's `epochs` is the most that any
        command has asked of it; its status and last epoch are those of the last save.
    planned: {number: batch} of the batches that have begun and of the new ones.
    weights: (config, seed) -> the parameters a run starts from; None means that the network draws them.
    shard: the part of the sweep that is trained here; None means all of it.
    """

    sweep: Sweep
    files: SweepFiles
    records: list[RunRecord]
    planned: dict[int, PlannedBatch]
    eval_every: int
    devices: Devices
    weights: Callable[[Config, int], Params] | None
    shard: Shard | None = None

    @functools.cached_property
    def batches(self) -> dict[int, Batch]:
        return {number: planned.batch for number, planned in self.planned.items()}

    @functools.cached_property
    def todo(self) -> tuple[int, ...]:
        """The numbers of the batches that the command asks for; of a shard, every n-th of all batches."""
        asked = sorted(number for number, planned in self.planned.items() if planned.asked)
        return tuple(asked if self.shard is None else [n for n in asked if n % self.shard.count == self.shard.index])

    def saved(self, number: int) -> SavedBatch:
        """What is on disk of a batch."""
        batch = self.batches[number]
        records = [replace(self.records[run], epochs=batch.epochs) for run in batch.runs]
        return SavedBatch(self.files.steps(number), records, batch.epochs, self.eval_every, self.sweep.train_every)

    def write(self) -> None:
        """Write the manifest, and the config of a new sweep."""
        if not self.files.exists():
            self.files.write_config({**self.sweep.fixed(), "eval_every": self.eval_every})
        runs = {record.number: record.to_manifest() for record in self.records}
        self.files.write_manifest(runs, {number: of.to_manifest() for number, of in sorted(self.planned.items())})

    def checkpoints(self, batch: Batch) -> list[int]:
        """The epochs at which this batch's parameters are saved: denser early, then every 1 %, and the last."""
        every = self.sweep.checkpoint_every
        every = default_checkpoint_every(batch.epochs, self.eval_every) if every is None else every
        return [*schedule(batch.epochs, every, self.eval_every), batch.epochs]

    def check(self) -> None:
        """Raises BadInput if what is to be trained does not fit into memory or on the disk, or if the given weights do
        not fit it."""
        check_memory([self.batches[number] for number in self.todo], self.devices)
        check_disk(self)
        if self.weights is not None:
            for config in self.sweep.configs:
                self.weights(config, self.sweep.seeds[0])


def prepare(
    sweep: Sweep,
    out: str | Path | None = None,
    batch_runs: int | None = None,
    devices: Sequence[Any] | None = None,
    shard: Shard | None = None,
) -> Plan:
    """The plan of a sweep. Writes nothing.

    out, batch_runs, devices, shard: as for `sweep`. Raises BadInput for what cannot be trained, or not in that
    directory. A run that does not fit into memory has a plan all the same, which says so; `Plan.check` refuses it.
    """
    files = SweepFiles(Path("runs") / sweep.default_name() if out is None else out)
    return plan_in(files, sweep, batch_runs, devices, shard)


def plan_in(
    files: SweepFiles,
    sweep: Sweep,
    batch_runs: int | None,
    devices: Sequence[Any] | None,
    shard: Shard | None = None,
) -> Plan:
    """The plan of a sweep in an opened directory. See `prepare`."""
    devices = tuple(jax.local_devices() if devices is None else devices)
    wanted = {run: sweep.planned_epochs(run) for run in sweep.runs()}
    eval_every = default_eval_every(min(wanted.values())) if sweep.eval_every is None else sweep.eval_every
    weights = None if sweep.init is None else interop.initial_weights(sweep.init)
    for config in sweep.configs:
        make_program(config, eval_every)  # raises for float64 without x64
        check_precision(config, devices[0].platform)
    known, begun = [], {}
    # Asked twice: another shard may write its plan between the first two questions.
    if not files.exists() and files.holds_something_else() and not files.exists():
        raise BadInput("out", str(files.path), "a new or empty directory, or one that a sweep made")
    if files.exists():
        manifest = files.read_manifest()
        config = files.read_config(manifest)
        _refuse_changes(sweep, files, config, manifest)
        eval_every, known = config["eval_every"], read_records(files, manifest)
        begun = _read_batches(files, manifest, known, shard)
    records = merge_records(known, wanted)
    goals = {record.number: wanted[record.run] for record in records if record.run in wanted}
    planned = lay_out(begun, records, goals, devices, batch_runs, 1 if shard is None else shard.count)
    plan = Plan(sweep, files, _in_batches(records, planned), planned, eval_every, devices, weights, shard)
    for number in begun:
        for record in plan.saved(number).records:
            plan.records[record.number] = replace(record, epochs=plan.records[record.number].epochs)
    return plan


def _refuse_changes(sweep: Sweep, files: SweepFiles, old: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Raise BadInput if the directory holds a sweep that this one cannot extend. old: its config."""
    if "version" not in manifest:
        accepted = (
            "a directory of this version; this one was made by version 0.1.0, opens for reading, and is not extended"
        )
        raise BadInput("out", str(files.path), accepted)
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
    content = listed.tokens.tobytes() + listed.targets.tobytes()
    if ":" in run.config.task and listed.part is not None:  # a class of the user's own may change its parts
        content += np.asarray(listed.part).tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


# --- the second step: which runs train together -----------------------------------------------------------------------


def lay_out(
    begun: Mapping[int, PlannedBatch],
    records: list[RunRecord],
    goals: Mapping[int, int],
    devices: Devices,
    batch_runs: int | None,
    shards: int = 1,
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
        planned[number] = PlannedBatch(replace(batch, epochs=length), bool(asked))
    placed = {run for of_batch in planned.values() for run in of_batch.batch.runs}
    waiting = {number: records[number].run for number in goals if number not in placed}
    new = make_batches(waiting, dict(goals), devices, batch_runs, shards)
    first = max(planned, default=-1) + 1
    return planned | {number: PlannedBatch(batch, asked=True) for number, batch in enumerate(new, first)}


def _read_batches(
    files: SweepFiles, manifest: dict[str, Any], records: list[RunRecord], shard: Shard | None
) -> dict[int, PlannedBatch]:
    """The batches of a manifest that keep their members, none of them asked for yet: those that have begun, and for a
    shard all, because another shard may be about to begin them.

    Raises BadInput, and names the manifest, if its batches contradict its runs.
    """
    found = {}
    for number, (runs, epochs) in read_batches(files, manifest, len(records)).items():
        shapes = {(records[run].config, records[run].run.n_train) for run in runs}
        if len(shapes) != 1 or not isinstance(epochs, int) or epochs < 0:
            accepted = f"a manifest that sweep.py wrote (batch {number} is of no one shape). Restore it from a copy"
            raise BadInput("manifest.json", str(files.manifest_json), accepted)
        if shard is not None or files.steps(number).epochs():
            ((config, n_train),) = shapes
            found[number] = PlannedBatch(Batch(tuple(runs), config, n_train, epochs), asked=False)
    return found
