"""The steps of one batch on disk: what it saved, each with its curves, parameters and state, committed together.

    checkpoints/B/E/            one step of batch B, saved after E updates (a step of orbax's CheckpointManager)
                   /arrays      state: all that training resumes from; curves: [member, time] since the sealed step
                                before; params: [network, ...] saved since then, in order of epoch
                   /record      JSON: what the arrays are, whose, and their digests (`StepRecord`)
    checkpoints/B/whole.json    size, time and inode of every file of a batch that was found whole to its end
    checkpoints/B/events.json   what tables say of the runs of such a batch (store/events.py)

A state can never be ahead of its curves, because both are in one step. A step holds what was recorded since the last
sealed step. Once that is much, the step is sealed: it is kept, and the next one begins where it ends. A step that is
not sealed is removed once two newer ones are on disk. So a batch leaves few files, and a save costs no more than what
was trained since the last sealed step.

Sealed steps form a chain: each record names the digest of the record before it. What is read is checked against its
digest. If a step is damaged, the batch is as it was at the last good step before it.
"""

import contextlib
import json
import logging
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgrok.atomic import sync, sync_tree, write_json
from jaxgrok.config import MAX_EPOCHS, BadInput, printable
from jaxgrok.store.integrity import check_array, described, digest_of_content, with_digest, without_digest

PADDING = -1  # the run of a row that only fills up its batch, or whose run has ended
KEPT_STEPS = 2  # so that one remains if the newest is damaged
# A step is sealed once the parameters since the last sealed one are so many bytes, and so many times the state, which
# every sealed step keeps too.
SEAL_BYTES, SEAL_STATES = 128e6, 2
STATE, CURVES, PARAMS = "state", "curves", "params"
ARRAYS, RECORD = "arrays", "record"  # orbax's names of the two items of a step
JSON_FILE = "metadata"  # in which orbax keeps a JSON item
WHOLE, EVENTS = "whole.json", "events.json"


class Damaged(BadInput):
    """A checkpoint that is missing, or is not what was written there. why: what was noticed."""

    effect = "its runs are as they were before"
    remedy = "The command that made the sweep trains what is missing"

    def __init__(self, path: Path, why: Exception | str):
        if isinstance(why, Exception):
            why = f"{type(why).__name__}: {why}".splitlines()[0][:200]
        super().__init__("checkpoint", str(path), "a whole one")
        self.why = why

    @property
    def said(self) -> str:
        """Which file it is, and what was noticed."""
        return printable(f"{self.value} is damaged ({self.why})")

    @property
    def line(self) -> str:
        """What is said of it by those who go on without it."""
        return f"{self.said}: {self.effect}. {self.remedy}"

    def __str__(self) -> str:
        return f"{self.said}. {self.remedy}"


@dataclass(frozen=True)
class StepRecord:
    """What a step says of itself.

    start: the epoch of the sealed step before, where the curves and parameters of this one begin; 0 if there is none.
    epoch: updates done. parent: the digest of that step's record, or "". sealed: whether the step is kept.
    members: the runs of the batch. identities: of each, the digest of its coordinates. split_hashes: of each, twelve
    digits of its examples. last_epoch, ended: of each, the updates done, and whether it trains no further.
    rows: the run that each row of the state holds. devices: over how many they were spread.
    saved: ((epoch, run), ...) of each network among the parameters.
    session: versions, devices and the command. arrays: {item: {name: dtype, shape and digest}}.
    """

    start: int
    epoch: int
    parent: str
    sealed: bool
    members: list[int]
    identities: list[str]
    split_hashes: list[str]
    last_epoch: list[int]
    ended: list[bool]
    rows: list[int]
    devices: int
    saved: list[tuple[int, int]]
    session: dict[str, Any]
    arrays: dict[str, dict[str, Any]]

    @property
    def digest(self) -> str:
        return digest_of_content(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "StepRecord":
        """The record that `to_json` wrote. Raises TypeError, KeyError or ValueError for anything else."""
        record = cls(**{**content, "saved": [(epoch, run) for epoch, run in content["saved"]]})
        lengths = {len(record.members), len(record.identities), len(record.split_hashes)}
        if lengths | {len(record.last_epoch), len(record.ended)} != {len(record.members)}:
            raise ValueError("its lists are of different lengths")
        record._check_types()
        return record

    def _check_types(self) -> None:
        """Raise TypeError or ValueError for values of the wrong kind, which a digest alone does not exclude."""
        epochs, runs = [epoch for epoch, _ in self.saved], [run for _, run in self.saved]
        numbers = [self.start, self.epoch, self.devices, *self.members, *self.last_epoch, *epochs]
        texts = [self.parent, *self.identities, *self.split_hashes, self.session["started"]]
        if not all(type(x) is int and x >= 0 for x in numbers) or not all(type(x) is int for x in self.rows):
            raise TypeError("a number of it is none")
        if not all(isinstance(x, str) for x in texts) or not all(type(x) is bool for x in (self.sealed, *self.ended)):
            raise TypeError("a text or a switch of it is none")
        if max(self.last_epoch, default=0) > self.epoch or not set(runs) <= set(self.members):
            raise ValueError("it contradicts itself")
        for item in (STATE, CURVES, PARAMS):
            for name, what in self.arrays[item].items():
                if not all(type(size) is int and size >= 0 for size in what["shape"]):
                    raise ValueError(f"{item}/{name} has the shape {what['shape']}")
                np.dtype(what["dtype"])
                if not isinstance(what["digest"], str):
                    raise TypeError(f"{item}/{name} has no digest")


class Step(NamedTuple):
    """What is saved at once: the record without its arrays' digests, and the arrays by item and name."""

    record: StepRecord
    arrays: dict[str, dict[str, np.ndarray]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax from logging what it raises anyway, and from warning of a file that it has yet to write."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


class BatchSteps:
    """The steps of one batch, in its folder. One process writes; any may read."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    # --- reading ------------------------------------------------------------------------------------------------------

    def epochs(self) -> list[int]:
        """The epochs at which there is a step, in order. It may be damaged."""
        names = [entry.name for entry in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d{0,7}", name))

    def path(self, epoch: int) -> Path:
        return self.folder / str(epoch)

    def damaged(self, epoch: int, why: Exception | str) -> Damaged:
        """The complaint about a step."""
        return Damaged(self.path(epoch), why)

    def record(self, epoch: int) -> StepRecord:
        """What a step says of itself. Raises Damaged, and names the step, if that is not what was written."""
        try:
            content = without_digest(json.loads((self.path(epoch) / RECORD / JSON_FILE).read_bytes()))
            record = StepRecord.from_json(content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self.damaged(epoch, error) from None
        if record.epoch != epoch:
            raise self.damaged(epoch, f"it is a copy of the step {record.epoch}")
        if epoch > MAX_EPOCHS:  # its curves would fill the memory
            raise self.damaged(epoch, f"no run trains more than {MAX_EPOCHS:,} epochs")
        return record

    def records(self) -> tuple[dict[int, StepRecord], list[Damaged]]:
        """({epoch: record} of the steps whose record is whole, in order of epoch; the others).

        A step that training has replaced meanwhile is in neither.
        """
        found, damage = {}, []
        for epoch in self.epochs():
            try:
                found[epoch] = self.record(epoch)
            except Damaged as error:
                if self.path(epoch).exists():
                    damage.append(error)
        return found, damage

    def load(self, record: StepRecord, *items: str) -> dict[str, dict[str, np.ndarray]]:
        """{item: {name: array}} of a step. Raises Damaged, and names the step, if an array is not what was written."""
        wanted = {f"{item}/{name}": what for item in items for name, what in record.arrays[item].items()}
        try:
            arrays = self._read(record.epoch, {name: what for name, what in wanted.items() if 0 not in what["shape"]})
            for name, what in wanted.items():
                if 0 in what["shape"]:  # orbax stores no array without values
                    arrays[name] = np.empty(what["shape"], what["dtype"])
                check_array(name, arrays[name], what)
        except MemoryError:
            raise
        except Exception as error:  # a damaged step makes orbax and tensorstore raise nearly anything
            self.mark_doubtful()
            raise self.damaged(record.epoch, error) from None
        return {item: {name: arrays[f"{item}/{name}"] for name in record.arrays[item]} for item in items}

    def _read(self, epoch: int, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        folder: Any = self.path(epoch) / ARRAYS  # orbax asks for a path of etils, and takes any
        with _quiet(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
            stored: dict[str, Any] = dict(flatten_dict(reader.metadata(folder).tree, sep="/"))
            for name, what in wanted.items():  # before anything of that size is allocated
                if list(stored[name].shape) != what["shape"]:
                    raise ValueError(f"{name} has the shape {list(stored[name].shape)}")
            if not wanted:
                return {}
            target = unflatten_dict(dict.fromkeys(wanted, 0), sep="/")
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
            args = ocp.args.PyTreeRestore(item=target, restore_args=as_numpy, partial_restore=True)
            restored: dict[str, Any] = dict(flatten_dict(reader.restore(folder, args=args), sep="/"))
            return restored

    # --- what need not be read again ----------------------------------------------------------------------------------

    @property
    def are_whole(self) -> bool:
        """Whether the batch was found whole once it had trained to its end, and no file has changed since.

        A large sweep takes hours to read, so a finished batch is not read again by each command that goes on with the
        sweep. What changes without a new size or time is found by whoever reads it, and then this is forgotten.
        """
        return bool(known := self._known_files()) and known == self._files()

    def mark_whole(self) -> None:
        """Remember that all files were found whole. It saves time alone, so a failure to write it is none."""
        with contextlib.suppress(OSError):
            write_json(self.folder / WHOLE, with_digest({"files": self._files()}))

    def mark_doubtful(self) -> None:
        """Forget that the files were found whole, where that is possible."""
        with contextlib.suppress(OSError):
            (self.folder / WHOLE).unlink(missing_ok=True)

    def save_events(self, content: Mapping[str, Any]) -> None:
        """Keep what tables say of the runs. It saves time alone, so a failure to write it is none."""
        with contextlib.suppress(OSError):
            write_json(self.folder / EVENTS, with_digest(content))

    def load_events(self) -> dict[str, Any] | None:
        """What `save_events` was given; None if there is nothing, or if it has changed since."""
        try:
            return without_digest(json.loads((self.folder / EVENTS).read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    @property
    def last_known(self) -> int | None:
        """The epoch of the last step of a batch that was found whole to its end; None for other batches."""
        epochs = [int(name.split("/")[0]) for name in self._known_files()]
        return max(epochs, default=None)

    def _known_files(self) -> dict[str, list[int]]:
        try:
            known = without_digest(json.loads((self.folder / WHOLE).read_bytes()))["files"]
            is_ours = all(re.fullmatch(r"\d{1,8}/.*", name) for name in known)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}
        return known if isinstance(known, dict) and is_ours else {}

    def _files(self) -> dict[str, list[int]]:
        """{path: size, time of change and inode} of every file of the steps. A copy has other inodes."""
        files = (file for epoch in self.epochs() for file in sorted(self.path(epoch).rglob("*")) if file.is_file())
        stats = ((file, file.stat()) for file in files)
        return {file.relative_to(self.folder).as_posix(): [of.st_size, of.st_mtime_ns, of.st_ino] for file, of in stats}

    # --- writing ------------------------------------------------------------------------------------------------------

    def save(self, step: Step) -> StepRecord:
        """Write a step, and return once it is on disk for good. Then what it supersedes is removed.

        A step of the same epoch is replaced: it is out of the way meanwhile, and comes back if the new one fails.

        Returns the record with the arrays' digests. Raises whatever the file system or orbax raises.
        """
        record = replace(step.record, arrays={item: described(arrays) for item, arrays in step.arrays.items()})
        self.folder.mkdir(exist_ok=True)  # not its parents: if they have vanished, they are not made anew
        whole = {f"{item}/{name}": array for item, arrays in step.arrays.items() for name, array in arrays.items()}
        tree = unflatten_dict({name: array for name, array in whole.items() if array.size}, sep="/")
        items = {ARRAYS: ocp.args.PyTreeSave(tree), RECORD: ocp.args.JsonSave(with_digest(record.to_json()))}
        with self._replacing(record.epoch):
            with _quiet(), self._manager() as manager:
                manager.save(record.epoch, args=ocp.args.Composite(**items), force=True)
            sync_tree(self.path(record.epoch))
            sync(self.folder)
        self._forget_superseded()
        return record

    @contextlib.contextmanager
    def _replacing(self, epoch: int) -> Iterator[None]:
        """Have no step of this epoch in the block, which writes a new one; put the old one back if it fails."""
        old = self.path(epoch)
        if not old.exists():
            yield
            return
        aside = self._beside("removed", epoch)
        old.rename(aside)
        try:
            yield
        except BaseException:
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):  # what made the block fail is what is said
                aside.rename(old)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _manager(self) -> ocp.CheckpointManager:
        # Every process writes batches of its own, so none waits for another.
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
        )
        options = ocp.CheckpointManagerOptions(
            create=False, enable_async_checkpointing=False, multiprocessing_options=alone
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=(ARRAYS, RECORD))

    def _forget_superseded(self) -> None:
        """Remove the steps that are neither sealed nor among the newest."""
        for epoch in self.epochs()[:-KEPT_STEPS]:
            try:
                if self.record(epoch).sealed:
                    continue
            except Damaged:
                continue  # it is kept for whoever wants to see what happened to it
            self.remove(epoch)

    def put_aside(self, epoch: int) -> None:
        """Rename a step that is trained again. It is kept: a disk that fails to read today may read tomorrow."""
        if self.path(epoch).exists():
            self.path(epoch).rename(self._beside("damaged", epoch))

    def _beside(self, what: str, epoch: int) -> Path:
        return self.folder / f"{what}-{epoch}-{uuid.uuid4().hex[:8]}"

    def remove(self, epoch: int) -> None:
        """Remove a step. It is renamed first, so that a half-removed step is never taken for a whole one.

        What cannot be deleted is left, and tried again by `clean`: a network mount keeps files that are still open.
        """
        if not self.path(epoch).exists():
            return
        aside = self._beside("removed", epoch)
        self.path(epoch).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def withdraw(self, epoch: int) -> None:
        """Remove a step that orbax has written into folders it made anew, and those folders."""
        shutil.rmtree(self.path(epoch), ignore_errors=True)
        self.clean()
        for folder in (self.folder, *self.folder.parents[:2]):  # checkpoints, and the sweep's directory
            with contextlib.suppress(OSError):  # of a folder that is not empty, or not there
                folder.rmdir()

    def clean(self) -> None:
        """Remove what interrupted saves and removals have left, as far as that is possible."""
        for pattern in ("*.orbax-checkpoint-tmp*", "removed-*"):
            for torn in self.folder.glob(pattern):
                shutil.rmtree(torn, ignore_errors=True)
