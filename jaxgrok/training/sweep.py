"""Many runs at once: `sweep` trains what a directory lacks of a grid, and keeps curves, checkpoints and states there.

Batches are trained one after another, each from start to end, in compiled intervals of at most eval_every epochs. The
host dispatches intervals, short ones together, ahead of what it records, and steps are written by a thread of their
own, so that the devices wait for neither.
"""

import errno
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import jaxgrok
from jaxgrok.atomic import DISK_FAILS
from jaxgrok.stopping import deferred
from jaxgrok.store.batches import SavedBatch
from jaxgrok.store.curves import RunCurves, SweepCurves
from jaxgrok.store.events import Outcome, RunEvents, Timing, time_run
from jaxgrok.store.files import Shard, SweepFiles
from jaxgrok.store.records import Status
from jaxgrok.store.results import load, write_metrics
from jaxgrok.store.steps import CURVES, PARAMS, SEAL_BYTES, SEAL_STATES, STATE, Step, StepRecord
from jaxgrok.training.batch import Dispatched, Interval, LiveBatch, compiled, joined
from jaxgrok.training.grid import Sweep
from jaxgrok.training.layout import Plan, plan_in, prepare
from jaxgrok.training.plan import free_bytes
from jaxgrok.training.run import x64_is_on

OUT_OF_DEVICE_MEMORY = ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY")  # as XLA says it, and as a driver says it
SAVE_SECONDS = 60  # between saves: the most work that a killed process loses
WITHDRAWALS, BETWEEN_WITHDRAWALS = 10, 0.05  # how often a failed step is removed again, and seconds in between
SAVE_SHARE = 50  # training is held up by a save for at most one in so many seconds
PENDING = 2  # dispatches in flight before the host waits for the oldest
SHORT_SECONDS = 0.05  # of intervals that are dispatched together
TICK = 1e-9  # seconds: no time at all
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # whose versions a step records
STARTED = time.strftime("%Y-%m-%dT%H:%M:%S%z")  # of this process
CANNOT_WRITE = {*DISK_FAILS, errno.EROFS, errno.ENOENT, errno.EACCES}

GONE = "the directory, or a part of it, was removed or renamed during training"


class Interrupted(KeyboardInterrupt):
    """The sweep was asked to stop and has saved everything in `path`. The same call resumes it."""

    def __init__(self, path: Path):
        super().__init__(f"stopped with everything saved in {path}")
        self.path = path


class SaveFailed(OSError):
    """A step could not be saved. Everything saved before is whole, and the same call resumes from there."""

    def __init__(self, path: Path, cause: str):
        super().__init__(errno.EIO, cause, str(path))


class Standing:
    """How far all runs of a sweep have come.

    home: what tells the folder of checkpoints, as it was at the start, from another of the same name.
    last_epoch [R]: updates done. ended [R]: whether a run has settled or diverged and trains no further.
    """

    def __init__(self, plan: Plan):
        self.home = _identity(plan.files.checkpoints)
        self.last_epoch = np.array([record.last_epoch for record in plan.records], np.int64)
        self.ended = np.array([record.status is Status.ENDED for record in plan.records], bool)
        self._plan = plan
        self._live: tuple[int, SweepCurves] | None = None  # the batch that trains
        self._read: tuple[int, SweepCurves] | None = None  # the batch that was last read from disk
        self._events: dict[int, list[RunEvents] | None] = {}  # of the batches that are on disk

    def follow(self, batch: int, curves: SweepCurves) -> None:
        """Take over how far a batch has come, and keep its curves at hand while it trains."""
        runs = list(self._plan.batches[batch].runs)
        self._live = batch, curves
        self.last_epoch[runs], self.ended[runs] = curves.last_epoch, curves.ended

    def _place(self, run: int) -> tuple[int, int]:
        """The batch of a run that has begun, and its row there."""
        batch = self._plan.records[run].batch
        assert batch is not None  # a run that has curves is in a batch
        return batch, self._plan.batches[batch].runs.index(run)

    def timing(self, run: int) -> Timing | None:
        """The events of a run that has ended, if they are on disk and need no curves."""
        batch, row = self._place(run)
        if self._live is not None and self._live[0] == batch:
            return None
        if batch not in self._events:
            self._events[batch] = self._plan.saved(batch).stored_events()
        events = self._events[batch]
        return None if events is None else events[row].timing

    def of_run(self, run: int) -> RunCurves:
        """The curves of a run, in memory or from disk."""
        batch, row = self._place(run)
        found = self._live if self._live is not None and self._live[0] == batch else self._read
        if found is None or found[0] != batch:
            found = self._read = batch, self._plan.saved(batch).curves()
        return found[1].of_run(row)


class Watcher(Protocol):
    """What a sweep calls while it trains, for instance to show a live line."""

    def started(self, standing: Standing, plan: Plan) -> None:
        """Called once, when the sweep's files are open."""

    def compiling(self) -> None:
        """Called before a dispatch for which XLA compiles: the first of a shape that is new in this process."""

    def compiled(self) -> None:
        """Called once that dispatch is done."""

    def advanced(self, standing: Standing, plan: Plan, run_epochs: int) -> None:
        """Called after each interval was recorded. run_epochs: how many epochs it trained, summed over its runs."""

    def warned(self, line: str) -> None:
        """Called with what the user should know: damage that was found, or memory that did not suffice."""


class Silent:
    """A watcher that shows nothing."""

    def started(self, standing: Standing, plan: Plan) -> None:
        pass

    def compiling(self) -> None:
        pass

    def compiled(self) -> None:
        pass

    def advanced(self, standing: Standing, plan: Plan, run_epochs: int) -> None:
        pass

    def warned(self, line: str) -> None:
        pass


def sweep(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    batch_runs: int | None = None,
    devices: Sequence[Any] | None = None,
    shard: Shard | None = None,
    watch: Watcher = Silent(),
) -> Path:
    """Train every run of a sweep, or what its directory lacks of it; returns the directory.

    out: the directory; None means `runs/` and a name made from the configuration.
    batch_runs: how many runs train at once; None means as many as suit the device.
    devices: None means all local ones.
    shard: train this part alone, into a directory that other processes fill too.

    Raises BadInput before anything is written. Raises Interrupted after SIGINT, SIGTERM, SIGHUP or SIGUSR1, once
    everything is saved, and SaveFailed if something cannot be saved.
    """
    # Bad input is refused while nothing is written.
    plan = prepare(sweep, out, batch_runs, devices, shard)
    plan.check()
    with plan.files.locked(shard) as planning:
        # Planned again, now that no other process can be planning there.
        plan = plan_in(plan.files, sweep, batch_runs, devices, shard)
        plan.write()
        if shard is not None:
            planning.close()
        try:
            _carry_out(plan, watch)
        except Interrupted:
            _write_metrics(plan.files)
            raise
        _write_metrics(plan.files)
    return plan.files.path


def _write_metrics(files: SweepFiles) -> None:
    with files.summing_up():
        write_metrics(load(files.path))


def _carry_out(plan: Plan, watch: Watcher) -> None:
    """Train what a plan has left to train."""
    with deferred() as asked, ThreadPoolExecutor(1, "save") as saver:
        standing = Standing(plan)
        watch.started(standing, plan)
        for number in plan.todo:
            if not _Training(plan, number, standing, watch, saver).train(asked):
                raise Interrupted(plan.files.path)


class _Saver:
    """Writes the steps of one batch, one at a time, in a thread of their own.

    last: the record of the newest step that is on disk. sealed: that of the newest sealed one.
    """

    def __init__(self, files: SweepFiles, saved: SavedBatch, threads: ThreadPoolExecutor, home: Any):
        self._files, self._steps, self._threads, self._home = files, saved.steps, threads, home
        self.last = saved.last
        sealed = [record for record in saved.chain if record.sealed]
        self.sealed = sealed[-1] if sealed else None
        self._running: Future[StepRecord] | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def wait(self) -> None:
        """Return once what was submitted is on disk. Raises SaveFailed."""
        if self._running is None:
            return
        running, self._running = self._running, None
        self.last = running.result()
        if self.last.sealed:
            self.sealed = self.last

    def submit(self, step: Step) -> None:
        """Write a step in the background."""
        assert self._running is None
        self._running = self._threads.submit(self._write, step)

    def _write(self, step: Step) -> StepRecord:
        needed = sum(array.nbytes for arrays in step.arrays.values() for array in arrays.values())
        try:
            self._check_home()
            saved = self._steps.save(step)
            self._check_home()  # orbax makes missing folders anew
        except Exception as error:  # orbax and tensorstore raise nearly anything
            if not self._is_home():
                self._withdraw(step.record.epoch)
                raise SaveFailed(self._files.path, GONE) from error
            self._steps.clean()
            raise SaveFailed(self._files.path, _cause(error, self._files.path, needed)) from error
        return saved

    def _withdraw(self, epoch: int) -> None:
        """Remove what orbax has written in place of a directory that has gone.

        Writes that had begun go on for a moment and make folders anew, so it is done again; but not where another sweep
        has begun meanwhile.
        """
        self._steps.withdraw(epoch)
        for _ in range(WITHDRAWALS):
            time.sleep(BETWEEN_WITHDRAWALS)
            if self._files.manifest_json.exists():
                return
            self._steps.withdraw(epoch)

    def _check_home(self) -> None:
        if not self._is_home():
            raise FileNotFoundError(errno.ENOENT, GONE)

    def _is_home(self) -> bool:
        """Whether the folder of checkpoints is the one of the start. One that is made anew in its place may have the
        same inode, so the manifest beside it is asked for too."""
        return _identity(self._files.checkpoints) == self._home and self._files.manifest_json.exists()


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name; None if there is none."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _cause(error: BaseException, path: Path, needed: int) -> str:
    """Why a save has failed, in one line. Orbax wraps the file system's errors, or repeats their text alone."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, FileNotFoundError):
            return GONE  # in part, or while it is being removed: what tells a whole one was still there
        if isinstance(found, OSError) and found.errno in CANNOT_WRITE:
            return found.strerror or str(found)
        found = found.__cause__ or found.__context__
    free = free_bytes(path)
    text = str(error)
    for code in CANNOT_WRITE - {errno.ENOENT}:
        if os.strerror(code) in text:
            return os.strerror(code)
    if free is not None and free < needed:
        return f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:,.1f} MB to write, {free / 1e6:,.1f} MB free"
    return f"{type(error).__name__}: {text}".splitlines()[0][:200]


class _Training:
    """One batch of a plan being trained: its curves, the networks that are not in a sealed step yet, and its saves."""

    def __init__(self, plan: Plan, number: int, standing: Standing, watch: Watcher, threads: ThreadPoolExecutor):
        self.plan, self.number, self.standing, self.watch, self.threads = plan, number, standing, watch, threads
        self.steps, self.members = plan.files.steps(number), list(plan.batches[number].runs)
        self.pending: deque[tuple[Dispatched, float | None]] = deque()  # with when it was dispatched, if that counts
        self.groups = 1  # of rows, which train in turn
        self.step_seconds, self.recorded_at = math.inf, 0.0  # how long a step takes, and when one was last recorded

    def train(self, asked: Callable[[], bool]) -> bool:
        """Train the batch to its end, or until asked to stop. Returns whether it reached its end."""
        while True:
            try:
                return self._train(asked)
            except jax.errors.JaxRuntimeError as error:
                if not any(sign in str(error) for sign in OUT_OF_DEVICE_MEMORY) or self.groups >= len(self.members):
                    raise
            self.groups *= 2
            self.step_seconds = math.inf
            self.pending.clear()
            rows = -(-len(self.members) // self.groups)
            self.watch.warned(f"batch {self.number} did not fit into the device's memory: {rows} of its runs at a time")

    def _train(self, asked: Callable[[], bool]) -> bool:
        self.steps.clean()
        saved = self.plan.saved(self.number)
        if saved.is_whole and saved.stored_events() is not None:
            return True
        self._open(saved)
        if saved.is_finished:
            self._finish(saved)
            return True
        batch = LiveBatch(self.plan, self.number, saved, self.groups)
        self.saver = _Saver(self.plan.files, saved, self.threads, self.standing.home)
        self.save_due = time.monotonic() + SAVE_SECONDS
        try:
            while True:
                if batch.at_checkpoint:
                    self._keep_params(batch)
                    self._drop_ended_runs(batch)
                leave = batch.finished or asked()
                is_due = time.monotonic() > self.save_due and not self.saver.busy
                if leave or is_due or self._is_much(batch):
                    self._save(batch)
                if leave:
                    self.saver.wait()
                    if batch.finished:
                        self._finish(self._read_back())
                    return batch.finished
                self._advance(batch)
        finally:
            if self.saver.busy:
                self.saver.wait()

    def _open(self, saved: SavedBatch) -> None:
        """Take over what is saved of the batch, as far as it is whole. What is not is trained again."""
        if not self.steps.are_whole:
            saved.verify()
        self.curves = saved.curves(saved.epochs)
        for damage in saved.damage:
            here = saved.last.epoch if saved.last else 0
            self.watch.warned(f"{damage.said}: trained again from epoch {here:,}")
            self.steps.put_aside(int(Path(damage.value).name))
        if saved.damage:
            self.steps.mark_doubtful()
        self.standing.follow(self.number, self.curves)
        last = saved.last
        for epoch in self.steps.epochs():
            if last is None or epoch > last.epoch:  # what follows a damaged step
                self.steps.put_aside(epoch)
        self.networks: list[tuple[int, int]] = []  # (epoch, run) of each network since the last sealed step
        self.params: list[Any] = []  # their parameters, a pytree [network, ...] for each epoch
        if last is not None and not last.sealed and last.saved:
            self.networks, self.params = list(last.saved), [saved.params(last.epoch)]

    def _read_back(self) -> SavedBatch:
        """The batch, read whole once it has trained to its end. Raises SaveFailed if it is not what was written."""
        saved = self.plan.saved(self.number)
        saved.verify()
        if saved.damage:
            raise SaveFailed(self.plan.files.path, f"what was written is not what is there: {saved.damage[0].said}")
        return saved

    def _finish(self, saved: SavedBatch) -> None:
        """Leave beside the steps of a batch that was found whole what spares reading them again."""
        saved.save_events(self.curves)
        if not self.steps.are_whole:
            self.steps.mark_whole()

    def _rows(self, runs: np.ndarray) -> np.ndarray:
        """The rows of these runs in the batch's curves."""
        return np.searchsorted(self.members, runs)

    def _keep_params(self, batch: LiveBatch) -> None:
        self._record(batch)
        networks = [(batch.epoch, run) for run in batch.live_runs.tolist()]
        if networks and networks[0] not in set(self.networks) and not self._is_sealed(batch.epoch):
            self.networks += networks
            self.params.append(batch.params())

    def _is_sealed(self, epoch: int) -> bool:
        """Whether the networks of an epoch are in a sealed step already: training resumed right there."""
        return self.saver.sealed is not None and epoch <= self.saver.sealed.epoch

    def _is_much(self, batch: LiveBatch) -> bool:
        """Whether there is enough since the last sealed step to seal the next one."""
        recorded = sum(leaf.nbytes for params in self.params for leaf in jax.tree.leaves(params))
        return recorded >= max(SEAL_BYTES, SEAL_STATES * batch.state_bytes)

    def _drop_ended_runs(self, batch: LiveBatch) -> None:
        """In a sweep until_settled, drop the runs that have settled or diverged."""
        if not self.plan.sweep.until_settled or batch.epoch == 0:
            return
        ended = [run for run in batch.live_runs.tolist() if self._has_ended(run)]
        if ended:
            self.curves.ended[self._rows(np.array(ended))] = True
            self.standing.ended[ended] = True
            batch.drop(ended)

    def _has_ended(self, run: int) -> bool:
        record = self.plan.records[run]
        curves = self.curves.of_run(self.members.index(run))
        timing = time_run(curves, record.task.criterion, unlimited=record.run.unlimited)
        return timing.settled or timing.outcome is Outcome.DIVERGED

    def _advance(self, batch: LiveBatch) -> None:
        """Dispatch the next intervals, as many as take SHORT_SECONDS together, and record all but the newest PENDING
        dispatches."""
        compiles, began = not batch.is_compiled, time.monotonic()
        if compiles:
            self.watch.compiling()
        dispatched = batch.advance(0 if compiles else SHORT_SECONDS / self.step_seconds)
        if compiles:
            jax.block_until_ready(dispatched.recorded)
            self.watch.compiled()
        self.pending.append((dispatched, None if compiles else began))
        self._record(batch, keep=PENDING)

    def _record(self, batch: LiveBatch, keep: int = 0) -> None:
        """Record the oldest dispatches in flight until only `keep` are left."""
        while len(self.pending) > keep:
            dispatched, began = self.pending.popleft()
            recorded = joined(dispatched.recorded)
            self._time(dispatched, began)
            for k, interval in enumerate(dispatched.intervals):
                here = jax.tree.map(lambda x, k=k: x[:, k], recorded)
                self._record_interval(batch, interval, here)

    def _time(self, dispatched: Dispatched, began: float | None) -> None:
        """Update how long a step takes, by a dispatch whose results have just come."""
        now = time.monotonic()
        if began is not None:
            steps = sum(interval.steps for interval in dispatched.intervals)
            seconds = max(now - max(began, self.recorded_at), TICK) / steps
            # What was computed while the host was busy seems to take no time, so that this falls by halves.
            self.step_seconds = max(seconds, self.step_seconds / 2) if self.step_seconds < math.inf else seconds
        self.recorded_at = now

    def _record_interval(self, batch: LiveBatch, interval: Interval, recorded: Any) -> None:
        """Record one interval. recorded: `Recorded` [row], on the host."""
        rows, steps = batch.live_rows, interval.steps
        # Of minibatches these are means over a cycle through the train set, if the interval is that long.
        cycle = min(steps, batch.cycle)
        accuracy, zero = (x[:, :cycle].mean(axis=1) for x in (recorded.train_acc, recorded.train_zero))
        scores = recorded.scores if interval.is_evaluated else None
        members = self._rows(batch.live_runs)
        self.curves.record(members, rows, interval.epoch, recorded.train_loss[:, :steps], accuracy, zero, scores)
        self.standing.last_epoch[batch.live_runs] = self.curves.last_epoch[members]
        self.watch.advanced(self.standing, self.plan, len(rows) * steps)

    def _save(self, batch: LiveBatch) -> None:
        """Write a step in the background: the state, and what was recorded since the last sealed step."""
        began = time.monotonic()
        self._record(batch)
        self.saver.wait()
        last, sealed = self.saver.last, self.saver.sealed
        is_sealed = batch.finished or self._is_much(batch)
        # A sealed step is never written again: it may be what training has just resumed from.
        is_saved = last is not None and last.epoch == batch.epoch and (last.sealed or not is_sealed)
        if not is_saved:
            self.saver.submit(self._step(batch, sealed, is_sealed))
        if is_sealed and not is_saved:
            self.networks, self.params = [], []
        now = time.monotonic()
        self.save_due = now + max(SAVE_SECONDS, SAVE_SHARE * (now - began))

    def _step(self, batch: LiveBatch, before: StepRecord | None, is_sealed: bool) -> Step:
        """What is saved now. before: the last sealed step."""
        start = 0 if before is None else before.epoch
        params = joined(self.params) if self.params else {}
        record = StepRecord(
            start=start,
            epoch=batch.epoch,
            parent="" if before is None else before.digest,
            sealed=is_sealed,
            members=self.members,
            identities=[self.plan.records[run].identity for run in self.members],
            split_hashes=batch.split_hashes,
            last_epoch=self.curves.last_epoch.tolist(),
            ended=self.curves.ended.tolist(),
            rows=batch.run.tolist(),
            devices=len(batch.devices),
            saved=list(self.networks),
            session=_session(self.plan),
            arrays={},
        )
        flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
        arrays = {STATE: batch.state(), CURVES: self.curves.between(start, batch.epoch), PARAMS: flat}
        return Step(record, arrays)


def _session(plan: Plan) -> dict[str, Any]:
    """What a step records of this session: versions, devices and the command."""
    versions = {"jaxgrok": jaxgrok.__version__, "python": platform.python_version()}
    return {
        "started": STARTED,
        "versions": versions | {name: version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in plan.devices],
        "platform": plan.devices[0].platform,
        "machine": f"{platform.machine()} {platform.system()}",
        "x64": x64_is_on(),
        "process": os.getpid(),
        "command": _command(sys.argv),
        "question": plan.sweep.question,
        "expect": plan.sweep.expect,
    }


def _command(argv: list[str]) -> list[str]:
    """The command line without the path of its program; empty in a notebook."""
    if not argv or not argv[0]:
        return []
    name = Path(argv[0]).name
    return ["jaxgrok" if name == "__main__.py" else name, *argv[1:]]  # `python -m jaxgrok`


__all__ = ["Interrupted", "Plan", "SaveFailed", "Silent", "Standing", "Watcher", "compiled", "prepare", "sweep"]
