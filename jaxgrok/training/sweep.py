"""Many runs at once: the grid laid into batches, each batch mapped over its runs and spread over the devices.

`prepare` decides everything and writes nothing; `sweep` trains what is left to train. Batches are trained one after
another, each from start to end, in compiled intervals of at most eval_every epochs. Only this module knows a run axis.
"""

import functools
import hashlib
import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxgrok
from jaxgrok.config import CONFIG_FIELDS, LATER, BadInput, Config
from jaxgrok.nets import interop
from jaxgrok.store import events as phases
from jaxgrok.store.schedule import default_checkpoint_every, default_eval_every, schedule
from jaxgrok.store.steps import VACANT, Metrics, SweepFiles, write_json
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import Run, Sweep
from jaxgrok.training.plan import Batch, block_of, make_batches
from jaxgrok.training.run import cycle_of, make_hyper, make_train

SAVE_SECONDS = 60  # between full saves: the most work that a killed process loses
PENDING = 2  # intervals in flight before the host waits for the oldest


class Interrupted(KeyboardInterrupt):
    """The sweep was asked to stop, has saved everything in `path`, and goes on when called again."""

    def __init__(self, path: Path):
        super().__init__(f"stopped with everything saved in {path}")
        self.path = path


@dataclass(frozen=True)
class Plan:
    """A sweep laid out against what its directory already holds.

    runs, epochs: every run of the directory, and the most epochs any command asked of it, by number.
    batches, layouts: the batches that have begun and those to begin, by number; todo: those this command asks for.
    trained: updates done by run, 0 left out; ended: the runs that settled or diverged.
    weights: config and seed -> the parameters a run starts from; None: drawn by the model.
    """

    sweep: Sweep
    files: SweepFiles
    runs: dict[int, Run]
    epochs: dict[int, int]
    batches: dict[int, Batch]
    layouts: dict[int, list]
    todo: tuple[int, ...]
    trained: dict[int, int]
    ended: frozenset[int]
    eval_every: int
    devices: tuple
    weights: Callable[[Config, int], dict] | None

    def checkpoints(self, batch: Batch) -> list[int]:
        """The epochs at which this batch's parameters are saved: denser early, then every 1 %, and the last."""
        every = self.sweep.checkpoint_every or default_checkpoint_every(batch.epochs, self.eval_every)
        return [*schedule(batch.epochs, every, self.eval_every), batch.epochs]


def _refuse_changes(sweep: Sweep, files: SweepFiles) -> None:
    """Raise BadInput where the directory holds a sweep that this one cannot extend."""
    old = files.read_config()
    unsaid = {"init": None, **{name: CONFIG_FIELDS[name].default for name in LATER}}
    for name, value in {**unsaid, **sweep.fixed(), "eval_every": sweep.eval_every}.items():
        before = old.get(name, unsaid.get(name))
        if value != before and not (name == "eval_every" and value is None):
            raise BadInput(name, value, f"{before!r}, the value of the sweep in {files.path}; or another --out")


def prepare(sweep: Sweep, out=None, batch_runs: int | None = None, devices=None) -> Plan:
    """Lay out a sweep. Nothing is written. Raises BadInput for what cannot be trained, or not in that directory."""
    devices = tuple(devices or jax.local_devices())
    files = SweepFiles(out or Path("runs") / sweep.default_name())
    wanted = {run: sweep.planned_epochs(run) for run in sweep.runs()}
    eval_every = sweep.eval_every or default_eval_every(min(wanted.values()))
    weights = None if sweep.init is None else interop.initial_weights(sweep.init)
    for config in sweep.configs:
        make_train(config, eval_every)  # refuses float64 without x64
        if weights is not None:
            weights(config, sweep.seeds[0])  # refuses weights that do not fit
    manifest = {"runs": {}, "batches": {}}
    if files.exists():
        _refuse_changes(sweep, files)
        eval_every, manifest = files.read_config()["eval_every"], files.read_manifest()
    elif files.holds_something_else():
        raise BadInput("out", str(files.path), "a new or empty directory, or one that a sweep made")
    records = {int(number): record for number, record in manifest["runs"].items()}
    runs = {number: Run.from_record(record) for number, record in records.items()}
    known = set(runs.values())
    for run in wanted:
        if run not in known:
            runs[len(runs)] = run
    goals = {number: wanted[run] for number, run in runs.items() if run in wanted}

    # A batch that has begun keeps its members: where one is wanted, all go on together.
    batches, layouts, todo = {}, {}, []
    for name, record in manifest["batches"].items():
        number, members = int(name), tuple(record["runs"])
        if files.batch_dir(number).exists():
            asked = [goals[run] for run in members if run in goals]
            length = max(asked, default=record["epochs"])
            batches[number] = Batch(members, runs[members[0]].config, runs[members[0]].n_train, length)
            layouts[number] = record["layouts"]
            todo += [number] if asked else []
    placed = {run for batch in batches.values() for run in batch.runs}
    first = max(batches, default=-1) + 1
    fresh = make_batches({number: runs[number] for number in goals if number not in placed}, goals, devices, batch_runs)
    batches |= dict(enumerate(fresh, first))
    todo += range(first, first + len(fresh))

    epochs = {number: record["epochs"] for number, record in records.items()}
    for number in todo:
        epochs |= {run: max(epochs.get(run, 0), batches[number].epochs) for run in batches[number].runs}
    trained = {number: record["last_epoch"] for number, record in records.items() if record["last_epoch"]}
    ended = frozenset(number for number, record in records.items() if record["status"] == "ended")
    return Plan(sweep, files, runs, epochs, batches, layouts, tuple(sorted(todo)), trained, ended, eval_every, devices, weights)


class Compiled(NamedTuple):
    """The functions of one config mapped over rows, and where their rows lie."""

    init: object
    start: object
    advance: object
    evaluate: object
    sharding: NamedSharding


@functools.cache
def compiled(config: Config, eval_every: int, devices: tuple) -> Compiled:
    """Map one run's functions over rows, a share of the rows on each device; compiled once per shape."""
    trainer = make_train(config, eval_every, block_of(config) if devices[0].platform == "cpu" else None)
    mesh = Mesh(np.array(devices), ("runs",))
    row, same = PartitionSpec("runs"), PartitionSpec()

    def over_rows(f, in_axes, **options):
        specs = tuple(same if axis is None else row for axis in in_axes)
        mapped = jax.shard_map(jax.vmap(f, in_axes), mesh=mesh, in_specs=specs, out_specs=row, check_vma=False)
        return jax.jit(mapped, **options)

    return Compiled(
        over_rows(trainer.init, (0,)),
        over_rows(trainer.start, (0, 0)),
        over_rows(trainer.advance, (0, 0, 0, None), donate_argnums=0),
        over_rows(trainer.evaluate, (0, 0)),
        NamedSharding(mesh, row),
    )


def _padded(members: list[int], size: int) -> np.ndarray:
    """Run numbers with VACANT rows appended up to a size."""
    return np.array([*members, *[VACANT] * (size - len(members))])


def _rows_for(count: int, devices: int) -> int:
    """The fewest rows that hold a count of runs and divide over the devices."""
    return -(-count // devices) * devices


class _BatchInTraining:
    """One batch on the devices: which run each row holds, the rows' data and numbers, and their state."""

    def __init__(self, plan: Plan, number: int):
        self.plan, self.number, self.batch = plan, number, plan.batches[number]
        self.compiled = compiled(self.batch.config, plan.eval_every, plan.devices)
        saved = plan.files.load_state(number, jax.tree.structure(self._blank_state()))
        if saved is None:
            self.epoch, self.run = 0, _padded(list(self.batch.runs), _rows_for(len(self.batch.runs), len(plan.devices)))
            self._place()
            self.state = self._initial_state()
            plan.layouts[number] = []
        else:
            self.epoch, self.run, state = saved
            # More or fewer devices than when it was saved: lay the rows out anew.
            rows = _rows_for(len(self.run), len(plan.devices))
            keep = np.r_[np.arange(len(self.run)), np.zeros(rows - len(self.run), int)]
            self.run = _padded(list(self.run), rows)
            self._place()
            self.state = jax.device_put(jax.tree.map(lambda leaf: leaf[keep], state), self.compiled.sharding)
        # Parameters that a killed process saved past its last full state are of epochs that are trained again.
        plan.files.forget_params_after(number, self.epoch)
        self._note_layout()

    def _blank_state(self):
        config = self.batch.config
        return jax.eval_shape(make_train(config, self.plan.eval_every).init, make_hyper(config, 0, 0.0, 0.0))

    def _stacked(self, rows):
        """One pytree per row -> one on the devices, [row, ...]."""
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), self.compiled.sharding)

    def _runs(self) -> list[Run]:
        """The run of each row; a vacant row repeats the batch's first."""
        return [self.plan.runs[self.batch.runs[0] if run == VACANT else int(run)] for run in self.run]

    def _initial_state(self):
        if self.plan.weights is None:
            return self.compiled.init(self.hyper)
        weights = [self.plan.weights(self.batch.config, run.seed) for run in self._runs()]
        return self.compiled.start(self._stacked(weights), self.hyper)

    def _place(self):
        """Put the rows' data and numbers on the devices."""
        config, task, runs = self.batch.config, make_task(self.batch.config), self._runs()
        splits = [task.split(run.size, run.seed, run.split_seed) for run in runs]
        self.train, self.test = (self._stacked(part) for part in zip(*splits))
        self.hyper = self._stacked([make_hyper(config, run.seed, run.wd, run.lr, run.split_seed, run.init_scale) for run in runs])

    def _note_layout(self):
        layouts = self.plan.layouts[self.number]
        rows = [None if run == VACANT else int(run) for run in self.run]
        layout = {"rows": rows, "devices": len(self.plan.devices)}
        if not layouts or {name: layouts[-1][name] for name in layout} != layout:
            layouts.append({"from": self.epoch, **layout})

    @property
    def live(self) -> np.ndarray:
        """Rows that hold a run."""
        return np.flatnonzero(self.run != VACANT)

    def advance(self, steps: int, evaluate: bool):
        """Dispatch one interval; returns device arrays (train loss, train accuracy, evaluation or None)."""
        evaluation = self.compiled.evaluate(self.state.params, self.test) if evaluate else None
        self.state, loss, accuracy = self.compiled.advance(self.state, self.train, self.hyper, steps)
        self.epoch += steps
        return loss, accuracy, evaluation

    def leave(self, runs) -> None:
        """Vacate the rows of runs that have ended; halve the batch while half the rows would do."""
        self.run = np.where(np.isin(self.run, runs), VACANT, self.run)
        size, live = len(self.run), self.live
        while len(live) and len(live) <= (half := _rows_for(-(-size // 2), len(self.plan.devices))) < size:
            size = half
        if size < len(self.run):
            keep = np.r_[live, np.full(size - len(live), live[0])]
            self.run = _padded(list(self.run[live]), size)
            self._place()
            self.state = jax.device_put(jax.tree.map(lambda leaf: leaf[keep], self.state), self.compiled.sharding)
        self._note_layout()


def split_hash(run: Run) -> str:
    """Twelve hexadecimal digits of the run's train examples and their targets; with unlimited data, of its test examples."""
    train, test = make_task(run.config).split(run.size, run.seed, run.split_seed)
    listed = test if train is None else train
    return hashlib.sha256(listed.tokens.tobytes() + listed.targets.tobytes()).hexdigest()[:12]


def _session(plan: Plan) -> dict:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"jaxgrok": jaxgrok.__version__, "python": platform.python_version(), **{name: version(name) for name in packages}},
        "devices": [device.device_kind for device in plan.devices],
        "platform": plan.devices[0].platform,
        "machine": f"{platform.machine()} {platform.system()}",
        "x64": bool(jax.config.jax_enable_x64),
        "command": sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


class _Sweep:
    """A plan being carried out: its curves, its files, and the one place where they are saved."""

    def __init__(self, plan: Plan, watch):
        self.plan, self.watch = plan, watch
        dtype = "float64" if any(run.config.needs_x64 for run in plan.runs.values()) else "float32"
        n_parts = max(len(make_task(run.config).parts) for run in plan.runs.values())
        self.metrics = Metrics(len(plan.runs), max(plan.epochs.values()), plan.eval_every, plan.sweep.train_every, dtype, n_parts)
        self.hashes = {number: split_hash(run) for number, run in plan.runs.items()}
        self.sessions = []
        if plan.files.exists():
            self.sessions = plan.files.read_manifest()["sessions"]
            if plan.files.metrics_npz.exists():
                self.metrics.copy_from(plan.files.metrics_npz)
        self.sessions = [*self.sessions, _session(plan)]
        self.save_due = 0.0

    def finished(self, batch: Batch) -> bool:
        runs = list(batch.runs)
        return bool(np.all(self.metrics.ended[runs] | (self.metrics.last_epoch[runs] >= batch.epochs)))

    def write_manifest(self) -> None:
        plan, batch_of = self.plan, {run: number for number, batch in self.plan.batches.items() for run in batch.runs}
        runs = {}
        for number, run in plan.runs.items():
            last = int(self.metrics.last_epoch[number])
            status = "trained" if last >= plan.epochs[number] else "training" if last else "waiting"
            runs[number] = {
                **run.coordinates(),
                "split_hash": self.hashes[number],
                "epochs": plan.epochs[number],
                "batch": batch_of.get(number),
                "status": "ended" if self.metrics.ended[number] else status,
                "last_epoch": last,
            }
        batches = {
            number: {"runs": list(batch.runs), "epochs": batch.epochs, "layouts": plan.layouts.get(number, [])}
            for number, batch in sorted(plan.batches.items())
        }
        write_json(plan.files.manifest_json, {"sessions": self.sessions, "batches": batches, "runs": runs})

    def save(self, training: _BatchInTraining | None = None) -> None:
        """Everything an interruption must not lose, in an order that leaves each file readable beside the ones before it:
        the manifest never knows fewer runs than the metrics, and a state is never ahead of its curves."""
        files, start = self.plan.files, time.monotonic()
        files.wait()
        self.write_manifest()
        runs = [self.plan.runs[number] for number in sorted(self.plan.runs)]
        rows = [{**run.coordinates(), "d_mlp": run.config.mlp_width} for run in runs]
        # What a run has not, or has without limit, is NaN.
        rows = [{name: np.nan if value is None else value for name, value in row.items()} for row in rows]
        self.metrics.save(files.metrics_npz, {axis: np.array([row[axis] for row in rows]) for axis in rows[0] if axis != "split_seed"})
        if training is not None and len(training.live):
            files.save_state(training.number, training.epoch, training.run, training.state)
        # A large sweep takes long to save: never more than a twentieth of the time.
        now = time.monotonic()
        self.save_due = now + max(SAVE_SECONDS, 20 * (now - start))

    def train(self, number: int, stopping) -> bool:
        """Train one batch to its end, or until asked to stop; whether it reached its end."""
        plan, metrics, batch = self.plan, self.metrics, self.plan.batches[number]
        training = _BatchInTraining(plan, number)
        live = training.run[training.live]
        metrics.rewind(live, training.epoch)
        metrics.ended[live] = False
        evaluations, checkpoints = set(schedule(batch.epochs, plan.eval_every)), set(plan.checkpoints(batch))
        marks = np.array(sorted(evaluations | checkpoints))
        pending, cycle = deque(), cycle_of(batch.config, batch.n_train)

        def drain(keep: int = 0) -> None:
            while len(pending) > keep:
                epoch, steps, (loss, accuracy, evaluation) = pending.popleft()
                rows = training.live
                # Of minibatches the mean of a cycle through the train set, as far as the interval goes.
                loss, accuracy = np.asarray(loss)[:, :steps], np.asarray(accuracy)[:, : min(steps, cycle)].mean(axis=1)
                metrics.record(training.run[rows], rows, epoch, loss, accuracy, evaluation)
                self.watch.advanced(metrics, plan, len(rows) * steps)

        while True:
            epoch = training.epoch
            if epoch in checkpoints:
                drain()
                plan.files.save_params(number, epoch, training.run, training.state.params)
                if plan.sweep.until_settled and epoch:
                    limits = {"grokked_loss": make_task(batch.config).grokked_loss, "unlimited": batch.n_train is None}
                    timings = {run: phases.time_run(**metrics.of_run(run), **limits) for run in training.run[training.live]}
                    ended = [run for run, timing in timings.items() if timing.settled or timing.outcome == "diverged"]
                    if ended:
                        metrics.ended[ended] = True
                        training.leave(ended)
                        self.save(training)
            if epoch >= batch.epochs or not len(training.live):
                drain()
                self.save(training)
                return True
            if stopping() or time.monotonic() > self.save_due:
                drain()
                self.save(training)
                if stopping():
                    return False
            steps = int(marks[np.searchsorted(marks, epoch, side="right")]) - epoch
            pending.append((epoch, steps, training.advance(steps, evaluate=epoch in evaluations)))
            drain(PENDING)


@contextmanager
def _asked_to_stop():
    """A function that says whether SIGINT or SIGTERM has arrived; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(signum, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    old = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)


class Silent:
    """A watcher that shows nothing; `progress.Watch` shows it all."""

    def started(self, metrics, plan):
        pass

    def advanced(self, metrics, plan, run_epochs):
        pass


def _carry_out(plan: Plan, watch) -> None:
    """Train what a plan has left to train."""
    with _asked_to_stop() as stopping:
        if not plan.files.exists():
            write_json(plan.files.config_json, {**plan.sweep.fixed(), "eval_every": plan.eval_every})
        work = _Sweep(plan, watch)
        work.save()
        watch.started(work.metrics, plan)
        for number in plan.todo:
            if not work.finished(plan.batches[number]) and not work.train(number, stopping):
                raise Interrupted(plan.files.path)


def sweep(sweep: Sweep, out=None, *, batch_runs: int | None = None, devices=None, watch=Silent()) -> Path:
    """Train every run of a sweep, or what its directory lacks of it; returns the directory.

    out: default `runs/` and a name made from the configuration. batch_runs: runs that train at once; None: what suits
    the device. devices: default all local ones. Raises BadInput before anything is written, and Interrupted, once
    everything is saved, after SIGINT or SIGTERM.
    """
    plan = prepare(sweep, out, batch_runs, devices)
    with plan.files.locked():
        # Again, now that no other process can be writing there.
        _carry_out(prepare(sweep, out, batch_runs, devices), watch)
    return plan.files.path
