"""One batch of runs on the devices: a run's program mapped over the rows of the batch, which are spread over devices.

Only this module and `training/sweep.py` know of a run axis. A row holds one run. Rows that only fill the batch up, and
rows whose run has ended, are padding rows: they compute, and nobody reads what.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.store.schedule import schedule
from jaxgrok.store.steps import PADDING, SavedState
from jaxgrok.tasks import make_task
from jaxgrok.training.layout import Devices, Plan, RowLayout
from jaxgrok.training.plan import block_of
from jaxgrok.training.run import Scores, TrainState, cycle_of, make_program


@dataclass(frozen=True, eq=False)
class Compiled:
    """The functions of one config's `Program`, mapped over rows and compiled, and where the rows lie.

    shapes: what has been compiled for training in this process: (rows, train examples) of each batch.
    """

    init: Any
    start: Any
    advance: Any
    evaluate: Any
    sharding: NamedSharding
    shapes: set[tuple[int, int | None]] = field(default_factory=set)


@functools.cache
def compiled(config: Config, eval_every: int, devices: Devices) -> Compiled:
    """One run's functions mapped over rows, with a share of the rows on each device. They compile once per shape."""
    program = make_program(config, eval_every, block_of(config) if devices[0].platform == "cpu" else None)
    mesh = Mesh(np.array(devices), ("runs",))
    row, same = PartitionSpec("runs"), PartitionSpec()

    def over_rows(f: Callable, in_axes: tuple[int | None, ...], **options: Any) -> Any:
        specs = tuple(same if axis is None else row for axis in in_axes)
        mapped = jax.shard_map(jax.vmap(f, in_axes), mesh=mesh, in_specs=specs, out_specs=row, check_vma=False)
        return jax.jit(mapped, **options)

    return Compiled(
        over_rows(program.init, (0,)),
        over_rows(program.start, (0, 0)),
        over_rows(program.advance, (0, 0, 0, None), donate_argnums=0),
        over_rows(program.evaluate, (0, 0)),
        NamedSharding(mesh, row),
    )


class Interval(NamedTuple):
    """An interval of training that was dispatched; the arrays are on the devices, and may not be computed yet.

    epoch: the interval's first. train_loss, train_acc: entries past `steps` are NaN. evaluation: of the test examples
    before the interval, or None if none is due there.
    """

    epoch: int
    steps: int
    train_loss: Float[Array, "rows max_steps"]
    train_acc: Float[Array, "rows max_steps"]
    evaluation: Scores | None


def _padded(members: Sequence[int], size: int) -> Int[np.ndarray, "size"]:
    return np.array([*members, *[PADDING] * (size - len(members))])


def _rows_for(count: int, devices: int) -> int:
    """The fewest rows that hold so many runs and divide evenly over the devices."""
    return -(-count // devices) * devices


class LiveBatch:
    """One batch on the devices: which run each row holds, the rows' data and numbers, and their state.

    It resumes from the newest saved state that is not past the epoch `newest`, or starts over if there is none. What
    was saved later than that is removed, because those epochs are trained again.

    Raises BadInput, and names the file, if the state is damaged or not one of this batch.
    """

    def __init__(self, plan: Plan, number: int, newest: int):
        self.plan, self.number, self.batch = plan, number, plan.batches[number]
        self.task = make_task(self.batch.config)
        self.compiled = compiled(self.batch.config, plan.eval_every, plan.devices)
        self.evaluations = set(schedule(self.batch.epochs, plan.eval_every))
        self.checkpoints = set(plan.checkpoints(self.batch))
        self._marks = np.array(sorted(self.evaluations | self.checkpoints))
        self.cycle = cycle_of(self.batch.config, self.batch.n_train)
        blank = jax.eval_shape(make_program(self.batch.config, plan.eval_every).init, Run(self.batch.config).hyper())
        saved = plan.files.load_state(number, jax.tree.structure(blank), newest)
        if saved is None:
            self.epoch, self.run = 0, _padded(self.batch.runs, self._rows_for(len(self.batch.runs)))
            self._place()
            self.state = self._initial_state()
        else:
            self._check(saved, blank)
            self._resume(saved)
        plan.files.forget_states_after(number, self.epoch)
        plan.files.forget_params_after(number, self.epoch)
        layouts = plan.planned[number].layouts
        layouts[:] = [layout for layout in layouts if layout.epoch < self.epoch]
        self._note_layout()

    def _rows_for(self, count: int) -> int:
        return _rows_for(count, len(self.plan.devices))

    def _check(self, saved: SavedState, blank: TrainState) -> None:
        """Raise BadInput, and name the state, if it is not one of this batch."""
        held = saved.run[saved.run != PADDING].tolist()
        if not held or len(set(held)) != len(held) or not set(held) <= set(self.batch.runs):
            self._refuse(saved, f"a state of runs among {' '.join(map(str, self.batch.runs))}, once each")
        for leaf, one in zip(jax.tree.leaves(saved.state), jax.tree.leaves(blank), strict=True):
            if leaf.shape != (len(saved.run), *one.shape) or leaf.dtype != one.dtype:
                self._refuse(saved, f"a state of this sweep's network, not with {leaf.dtype} {list(leaf.shape)}")

    def _refuse(self, saved: SavedState, accepted: str) -> None:
        path = self.plan.files.batch_dir(self.number) / f"state-{saved.epoch}-rows-{len(saved.run)}"
        raise BadInput("checkpoint", str(path), f"{accepted}. Remove it and run the same command again")

    def _resume(self, saved: SavedState) -> None:
        # The number of devices may have changed since the state was saved, and with it the number of rows.
        rows = self._rows_for(len(saved.run))
        keep = np.r_[np.arange(len(saved.run)), np.zeros(rows - len(saved.run), int)]
        self.epoch, self.run = saved.epoch, _padded(saved.run.tolist(), rows)
        self._place()
        self.state = self._on_devices(jax.tree.map(lambda leaf: leaf[keep], saved.state))

    def _on_devices(self, rows: Any) -> Any:
        """A pytree [row, ...], spread over the devices."""
        return jax.device_put(rows, self.compiled.sharding)

    def _stacked(self, rows: Sequence[Any]) -> Any:
        """One pytree per row, stacked to [row, ...] on the devices."""
        return self._on_devices(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))

    def _runs(self) -> list[Run]:
        """The run of each row. A padding row repeats the batch's first run."""
        first = self.batch.runs[0]
        return [self.plan.records[first if run == PADDING else run].run for run in self.run.tolist()]

    def _place(self) -> None:
        """Put the rows' data and numbers on the devices."""
        runs = self._runs()
        splits = [self.task.split(run.size, run.seed, run.split_seed) for run in runs]
        self.train, self.test = (self._stacked(part) for part in zip(*splits))
        self.hyper = self._stacked([run.hyper() for run in runs])

    def _initial_state(self) -> TrainState:
        if self.plan.weights is None:
            return self.compiled.init(self.hyper)
        weights = [self.plan.weights(self.batch.config, run.seed) for run in self._runs()]
        return self.compiled.start(self._stacked(weights), self.hyper)

    def _note_layout(self) -> None:
        layouts = self.plan.planned[self.number].layouts
        rows = tuple(None if run == PADDING else run for run in self.run.tolist())
        devices = len(self.plan.devices)
        if not layouts or (layouts[-1].rows, layouts[-1].devices) != (rows, devices):
            layouts.append(RowLayout(self.epoch, rows, devices))

    @property
    def live_rows(self) -> Int[np.ndarray, "live"]:
        """The rows that hold a run."""
        return np.flatnonzero(self.run != PADDING)

    @property
    def live_runs(self) -> Int[np.ndarray, "live"]:
        """The runs that train, in the order of their rows."""
        return self.run[self.live_rows]

    @property
    def at_checkpoint(self) -> bool:
        return self.epoch in self.checkpoints

    @property
    def finished(self) -> bool:
        """Whether the batch has trained to its end, or every run of it has ended."""
        return self.epoch >= self.batch.epochs or not len(self.live_rows)

    @property
    def is_compiled(self) -> bool:
        """Whether this process has trained a batch of the same shape before."""
        return (len(self.run), self.batch.n_train) in self.compiled.shapes

    def advance(self) -> Interval:
        """Dispatch the interval from here to the next evaluation or checkpoint."""
        epoch = self.epoch
        steps = int(self._marks[np.searchsorted(self._marks, epoch, side="right")]) - epoch
        evaluation = self.compiled.evaluate(self.state.params, self.test) if epoch in self.evaluations else None
        self.state, loss, accuracy = self.compiled.advance(self.state, self.train, self.hyper, steps)
        self.compiled.shapes.add((len(self.run), self.batch.n_train))
        self.epoch += steps
        return Interval(epoch, steps, loss, accuracy, evaluation)

    def drop(self, runs: Sequence[int]) -> None:
        """Turn the rows of ended runs into padding rows, and halve the batch for as long as half the rows would do."""
        self.run = np.where(np.isin(self.run, runs), PADDING, self.run)
        size, live = len(self.run), self.live_rows
        while len(live) and len(live) <= (half := self._rows_for(-(-size // 2))) < size:
            size = half
        if size < len(self.run):
            keep = np.r_[live, np.full(size - len(live), live[0])]
            self.run = _padded(self.live_runs.tolist(), size)
            self._place()
            self.state = self._on_devices(jax.tree.map(lambda leaf: leaf[keep], self.state))
        self._note_layout()
