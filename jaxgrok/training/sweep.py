"""Many runs at once: `sweep` trains what a directory lacks of a grid, and keeps curves, checkpoints and states there.

Batches are trained one after another, each from start to end, in compiled intervals of at most eval_every epochs. The
host dispatches intervals ahead of what it records, so that the devices never wait for it.
"""

import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

import jaxgrok
from jaxgrok.store.atomic import write_json
from jaxgrok.store.curves import SweepCurves
from jaxgrok.store.events import Outcome, time_run
from jaxgrok.store.results import RunRecord, Status
from jaxgrok.tasks import make_task
from jaxgrok.training.batch import Interval, LiveBatch, compiled
from jaxgrok.training.grid import Sweep
from jaxgrok.training.layout import Plan, plan_in, prepare, with_split_hashes
from jaxgrok.training.plan import Batch
from jaxgrok.training.run import x64_is_on

SAVE_SECONDS = 60  # between full saves: the most work that a killed process loses
SAVE_SHARE = 20  # a save that takes long comes at most once in so many times its own duration
PENDING = 2  # intervals in flight before the host waits for the oldest
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # whose versions the manifest records


class Interrupted(KeyboardInterrupt):
    """The sweep was asked to stop and has saved everything in `path`. The same call resumes it."""

    def __init__(self, path: Path):
        super().__init__(f"stopped with everything saved in {path}")
        self.path = path


class Watcher(Protocol):
    """What a sweep calls while it trains, for instance to show a live line."""

    def started(self, curves: SweepCurves, plan: Plan) -> None:
        """Called once, when the sweep's files are open."""

    def compiling(self) -> None:
        """Called before an interval for which XLA compiles: the first of a shape that is new in this process."""

    def compiled(self) -> None:
        """Called once that interval is done."""

    def advanced(self, curves: SweepCurves, plan: Plan, run_epochs: int) -> None:
        """Called after each interval was recorded. run_epochs: how many epochs it trained, summed over its runs."""


class Silent:
    """A watcher that shows nothing."""

    def started(self, curves: SweepCurves, plan: Plan) -> None:
        pass

    def compiling(self) -> None:
        pass

    def compiled(self) -> None:
        pass

    def advanced(self, curves: SweepCurves, plan: Plan, run_epochs: int) -> None:
        pass


def sweep(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    batch_runs: int | None = None,
    devices: Sequence[Any] | None = None,
    watch: Watcher = Silent(),
) -> Path:
    """Train every run of a sweep, or what its directory lacks of it; returns the directory.

    out: the directory; None means `runs/` and a name made from the configuration.
    batch_runs: how many runs train at once; None means as many as suit the device.
    devices: None means all local ones.

    Raises BadInput before anything is written. Raises Interrupted after SIGINT or SIGTERM, once everything is saved.
    """
    # Bad input is refused while nothing is written.
    plan = prepare(sweep, out, batch_runs, devices)
    plan.check()
    with plan.files.locked() as files:
        # Planned again, now that no other process can be writing there.
        _carry_out(plan_in(files, sweep, batch_runs, devices), watch)
    return plan.files.path


def _carry_out(plan: Plan, watch: Watcher) -> None:
    """Train what a plan has left to train."""
    with _asked_to_stop() as stopping:
        training = _Training(plan, watch)
        if not plan.files.exists():
            write_json(plan.files.config_json, {**plan.sweep.fixed(), "eval_every": plan.eval_every})
        training.save()
        watch.started(training.curves, plan)
        for number in plan.todo:
            if not training.has_finished(plan.batches[number]) and not training.train(number, stopping):
                raise Interrupted(plan.files.path)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has arrived. A second signal stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    old = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)


class _Training:
    """A plan being carried out: its curves, its files, and the one place where they are saved."""

    def __init__(self, plan: Plan, watch: Watcher):
        self.plan, self.files, self.watch = plan, plan.files, watch
        self.records = with_split_hashes(plan)
        self.curves = _curves_of(plan)
        before = self.files.read_manifest()["sessions"] if self.files.exists() else []
        self.sessions = [*before, _session(plan)]
        self.pending: deque[Interval] = deque()
        self.save_due = 0.0

    def has_finished(self, batch: Batch) -> bool:
        runs = list(batch.runs)
        return bool(np.all(self.curves.ended[runs] | (self.curves.last_epoch[runs] >= batch.epochs)))

    def train(self, number: int, stopping: Callable[[], bool]) -> bool:
        """Train one batch to its end, or until asked to stop. Returns whether it reached its end."""
        batch = self._resume(number)
        while True:
            if batch.at_checkpoint:
                self._save_params(batch)
                self._drop_ended_runs(batch)
            leave = batch.finished or stopping()
            if leave or time.monotonic() > self.save_due:
                self.save(batch)
            if leave:
                return batch.finished
            self._advance(batch)

    def _resume(self, number: int) -> LiveBatch:
        """The batch, from the newest epoch of which both a state and all curves are on disk."""
        runs, curves = np.array(self.plan.batches[number].runs), self.curves
        newest = int(curves.last_epoch[runs[~curves.ended[runs]]].min())
        batch = LiveBatch(self.plan, number, newest)
        live = batch.live_runs
        # A run that the state no longer holds had ended, though a crash may have kept its curves from saying so.
        curves.ended[runs] = ~np.isin(runs, live)
        curves.rewind(live, batch.epoch)
        return batch

    def _save_params(self, batch: LiveBatch) -> None:
        self._record(batch)
        self.files.save_params(batch.number, batch.epoch, batch.run, batch.state.params)

    def _drop_ended_runs(self, batch: LiveBatch) -> None:
        """In a sweep until_settled, drop the runs that have settled or diverged, and have everything saved."""
        if not self.plan.sweep.until_settled or batch.epoch == 0:
            return
        ended = [run for run in batch.live_runs.tolist() if self._has_ended(run)]
        if ended:
            self.curves.ended[ended] = True
            batch.drop(ended)
            self.save_due = 0.0

    def _has_ended(self, run: int) -> bool:
        record = self.plan.records[run]
        timing = time_run(self.curves.of_run(run), record.task.criterion, unlimited=record.run.unlimited)
        return timing.settled or timing.outcome is Outcome.DIVERGED

    def _advance(self, batch: LiveBatch) -> None:
        """Dispatch the next interval, and record all but the newest PENDING."""
        compiles = not batch.is_compiled
        if compiles:
            self.watch.compiling()
        interval = batch.advance()
        if compiles:
            jax.block_until_ready(interval)
            self.watch.compiled()
        self.pending.append(interval)
        self._record(batch, keep=PENDING)

    def _record(self, batch: LiveBatch, keep: int = 0) -> None:
        """Record the oldest intervals in flight until only `keep` are left."""
        while len(self.pending) > keep:
            interval = self.pending.popleft()
            rows, steps = batch.live_rows, interval.steps
            loss, accuracy = np.asarray(interval.train_loss)[:, :steps], np.asarray(interval.train_acc)
            # The accuracy of minibatches is the mean over a cycle through the train set, if the interval is that long.
            accuracy = accuracy[:, : min(steps, batch.cycle)].mean(axis=1)
            self.curves.record(batch.live_runs, rows, interval.epoch, loss, accuracy, interval.evaluation)
            self.watch.advanced(self.curves, self.plan, len(rows) * steps)

    def save(self, batch: LiveBatch | None = None) -> None:
        """Save everything that an interruption must not lose.

        The order leaves each file readable beside those before it: the manifest never knows fewer runs than the curves,
        and a state is never ahead of the curves.
        """
        start = time.monotonic()
        if batch is not None:
            self._record(batch)
        self.files.wait()
        self._write_manifest()
        self.curves.save(self.files.metrics_npz, _axes(self.records))
        if batch is not None and len(batch.live_rows):
            self.files.save_state(batch.number, batch.epoch, batch.run, batch.state)
        now = time.monotonic()
        self.save_due = now + max(SAVE_SECONDS, SAVE_SHARE * (now - start))

    def _write_manifest(self) -> None:
        runs = {record.number: self._as_trained(record).to_manifest() for record in self.records}
        batches = {number: planned.to_manifest() for number, planned in sorted(self.plan.planned.items())}
        write_json(self.files.manifest_json, {"sessions": self.sessions, "batches": batches, "runs": runs})

    def _as_trained(self, record: RunRecord) -> RunRecord:
        """A record with how far its run has come."""
        last = int(self.curves.last_epoch[record.number])
        if self.curves.ended[record.number]:
            status = Status.ENDED
        elif last >= record.epochs:
            status = Status.TRAINED
        else:
            status = Status.TRAINING if last else Status.WAITING
        return replace(record, status=status, last_epoch=last)


def _curves_of(plan: Plan) -> SweepCurves:
    """The curves of a plan's runs, with what the directory holds of them.

    Raises BadInput, and names the file, if it is damaged, or if it is missing although runs have trained.
    """
    configs, epochs = {record.config for record in plan.records}, [record.epochs for record in plan.records]
    dtype = "float64" if any(config.needs_x64 for config in configs) else "float32"
    n_parts = max(len(make_task(config).parts) for config in configs)
    curves = SweepCurves(len(plan.records), max(epochs), plan.eval_every, plan.sweep.train_every, dtype, n_parts)
    have_trained = any(record.last_epoch > 0 for record in plan.records)
    if have_trained or (plan.files.exists() and plan.files.metrics_npz.exists()):
        curves.copy_from(plan.files.metrics_npz)
    return curves


def _axes(records: Sequence[RunRecord]) -> dict[str, np.ndarray]:
    """The coordinates of the runs, {axis: [R]}. What a run has not, or has without limit, is NaN."""
    rows = [{**record.run.coordinates(), "d_mlp": record.config.mlp_width} for record in records]
    axes = [axis for axis in rows[0] if axis != "split_seed"]
    return {axis: np.array([np.nan if row[axis] is None else row[axis] for row in rows]) for axis in axes}


def _session(plan: Plan) -> dict[str, Any]:
    """What the manifest records of this session: versions, devices and the command."""
    versions = {"jaxgrok": jaxgrok.__version__, "python": platform.python_version()}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions | {name: version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in plan.devices],
        "platform": plan.devices[0].platform,
        "machine": f"{platform.machine()} {platform.system()}",
        "x64": x64_is_on(),
        "command": sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


__all__ = ["Interrupted", "Plan", "Silent", "Watcher", "compiled", "prepare", "sweep"]
