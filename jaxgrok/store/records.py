"""The runs of a sweep: what the manifest says of each, and how far it has come."""

import functools
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from jaxgrok.config import CONFIG_FIELDS, MAX_EPOCHS, UNDIGESTED, BadInput, Config, Run
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.integrity import digest_of_content
from jaxgrok.tasks import Task, make_task


class Status(StrEnum):
    """How far a run has come. ENDED: it settled or diverged, and trains no further."""

    WAITING = "waiting"
    TRAINING = "training"
    TRAINED = "trained"
    ENDED = "ended"


@dataclass(frozen=True)
class RunRecord:
    """One run of a sweep.

    number: its number in the sweep, and its row in metrics.npz. epochs: how long it is planned to train. batch: the
    batch it trains in, None before there is one. The manifest holds these. status, last_epoch, split_hash: as of the
    last save; they follow from the steps of the batch.
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

    @functools.cached_property
    def identity(self) -> str:
        """The digest of its coordinates, by which a step knows whose curves and parameters it holds."""
        later = {name: CONFIG_FIELDS[name].default for name in UNDIGESTED}
        said = {name: x for name, x in self.run.coordinates().items() if name not in later or x != later[name]}
        return digest_of_content(said)

    def to_manifest(self) -> dict[str, Any]:
        """The record as the manifest stores it."""
        return {**self.run.coordinates(), "epochs": self.epochs, "batch": self.batch}

    @classmethod
    def from_manifest(cls, number: int, record: dict[str, Any]) -> "RunRecord":
        """The record that `to_manifest` wrote, of a run that waits. A manifest of version 0.1.0 has its status too.

        Raises KeyError, TypeError or ValueError (BadInput too) for anything else.
        """
        epochs, last_epoch, batch = record["epochs"], record.get("last_epoch", 0), record["batch"]
        if not _is_epoch(epochs) or not _is_epoch(last_epoch):
            raise ValueError(f"run {number}: epochs {epochs!r}, last_epoch {last_epoch!r}")
        if batch is not None and not _is_number(batch):
            raise ValueError(f"run {number}: batch {batch!r}")
        split_hash, status = record.get("split_hash", ""), Status(record.get("status", "waiting"))
        if not isinstance(split_hash, str):
            raise TypeError(f"run {number}: split_hash {split_hash!r}")
        return cls(number, Run.from_coordinates(record), epochs, batch, status, last_epoch, split_hash)

    def as_of(self, last_epoch: int, ended: bool, split_hash: str) -> "RunRecord":
        """The record of the run once it has done so many updates."""
        if ended:
            status = Status.ENDED
        elif last_epoch >= self.epochs:
            status = Status.TRAINED
        else:
            status = Status.TRAINING if last_epoch else Status.WAITING
        return replace(self, status=status, last_epoch=last_epoch, split_hash=split_hash)


def _is_number(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _is_epoch(x: Any) -> bool:
    return _is_number(x) and x <= MAX_EPOCHS


def read_records(files: SweepFiles, manifest: dict[str, Any]) -> list[RunRecord]:
    """The runs of a manifest, in order of number. Raises BadInput, and names the manifest, for what no sweep wrote."""
    try:
        records = [RunRecord.from_manifest(int(number), record) for number, record in manifest["runs"].items()]
        if [record.number for record in records] != list(range(len(records))):
            raise ValueError("its runs are not numbered 0, 1, 2, ...")
    except BadInput as error:
        if error.name == "task" and ":" in str(error.value):  # a user's class, which is not found or has changed
            accepted = f"{error.accepted}; the class of this sweep's task has to be where it was"
            raise BadInput("task", error.value, accepted) from None
        raise _not_ours(files, error) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_ours(files, error) from None
    return records


def _not_ours(files: SweepFiles, error: Exception) -> BadInput:
    accepted = f"a manifest that sweep.py wrote ({type(error).__name__}: {error}). Restore it from a copy"
    return BadInput("manifest.json", str(files.manifest_json), accepted)


def read_batches(files: SweepFiles, manifest: dict[str, Any], n_runs: int) -> dict[int, tuple[list[int], int]]:
    """{number of a batch: (its runs, the epochs they train)} of a manifest.

    Raises BadInput, and names the manifest, if that is not what a sweep wrote, or if it contradicts its runs.
    """
    try:
        found = {int(number): (batch["runs"], batch["epochs"]) for number, batch in manifest["batches"].items()}
        for number, (runs, epochs) in found.items():
            if number < 0 or not runs or not _is_epoch(epochs):
                raise ValueError(f"batch {number}: runs {runs!r}, epochs {epochs!r}")
        members = [run for runs, _ in found.values() for run in runs]
        for run in members:
            if not _is_number(run) or run >= n_runs:
                raise ValueError(f"a batch names the run {run!r}, which does not exist")
        if len(set(members)) != len(members):
            raise ValueError("a run is in two batches")
        placed = {run: number for number, (runs, _) in found.items() for run in runs}
        for run in range(n_runs):
            if manifest["runs"][str(run)]["batch"] != placed.get(run):
                raise ValueError(f"run {run} and the batches contradict each other")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_ours(files, error) from None
    return found
