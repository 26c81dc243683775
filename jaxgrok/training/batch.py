"""One batch of runs on the devices: a run's program mapped over the rows of the batch, which are spread over devices.

Only this module and `training/sweep.py` know of a run axis. A row holds one run. Rows that only fill the batch up, and
rows whose run has ended, are padding rows: they compute, and nobody reads what.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.store.batches import SavedBatch
from jaxgrok.store.schedule import schedule
from jaxgrok.store.steps import PADDING, StepRecord
from jaxgrok.tasks import make_task
from jaxgrok.training.layout import Devices, Plan, split_hash
from jaxgrok.training.plan import block_of
from jaxgrok.training.run import Recorded, TrainState, cycle_of, make_program

MOST_INTERVALS, MOST_STEPS = 32, 512  # that are dispatched together; a longer interval goes alone


@dataclass(frozen=True, eq=False)
class Compiled:
    """The functions of one config's `Program`, mapped over rows and compiled, and where the rows lie.

    shapes: what has been compiled for training in this process: (rows, train examples) of each batch.
    """

    init: Any
    start: Any
    advance: Any
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
        over_rows(program.advance_through, (0, 0, 0, 0, None, None), donate_argnums=0),
        NamedSharding(mesh, row),
    )


class Interval(NamedTuple):
    """An interval of training: from an evaluation or a checkpoint to the next. epoch: its first."""

    epoch: int
    steps: int
    is_evaluated: bool


def most_intervals(eval_every: int) -> int:
    """How many intervals are dispatched together at most. It follows from sizes, and so does what a dispatch needs for
    its curves."""
    return max(1, min(MOST_INTERVALS, MOST_STEPS // eval_every))


class Dispatched(NamedTuple):
    """Intervals that were dispatched together.

    recorded: of each group of rows, `Recorded` [row, interval], on the devices: it may not be computed yet.
    """

    intervals: list[Interval]
    recorded: list[Recorded]


@dataclass
class Group:
    """Rows that pass through the program at once: all rows of a batch, or a part of them where memory is short."""

    rows: slice
    train: Any
    test: Any
    hyper: Any
    state: Any = None


def _padded(members: Sequence[int], size: int) -> Int[np.ndarray, "size"]:
    return np.array([*members, *[PADDING] * (size - len(members))], np.int64)


def joined(groups: Sequence[Any]) -> Any:
    """One pytree of numpy arrays [row, ...], copied from those of the groups."""
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *groups)


class LiveBatch:
    """One batch on the devices: which run each row holds, the rows' data and numbers, and their state.

    It resumes from the last good step of what is saved, or starts over if there is none. groups: how many groups of
    rows train in turn; more than one where the memory does not hold them all.

    Raises BadInput, and names the step, if its state is not one of this batch.
    """

    def __init__(self, plan: Plan, number: int, saved: SavedBatch, groups: int = 1):
        self.plan, self.number, self.batch, self.n_groups = plan, number, plan.batches[number], groups
        self.task = make_task(self.batch.config)
        self.evaluations = set(schedule(self.batch.epochs, plan.eval_every))
        self.checkpoints = set(plan.checkpoints(self.batch))
        self._marks = np.array(sorted(self.evaluations | self.checkpoints))
        self.cycle = cycle_of(self.batch.config, self.batch.n_train)
        self.split_hashes = [split_hash(plan.records[run].run) for run in self.batch.runs]
        if saved.last is None:
            self._take_devices(len(self.batch.runs))
            self.epoch, self.run = 0, _padded(self.batch.runs, self._rows_for(len(self.batch.runs)))
            self._place()
            for group in self.groups:
                group.state = self._initial_state(group)
        else:
            self._resume(saved, saved.last)

    def _take_devices(self, count: int) -> None:
        """Use the devices that suit so many runs: all, or half of them for as long as half would hold a run each."""
        n = len(self.plan.devices)
        while n > 1 and count <= n // 2:
            n //= 2
        self.devices = self.plan.devices[:n]
        self.compiled = compiled(self.batch.config, self.plan.eval_every, self.devices)

    def _rows_for(self, count: int) -> int:
        """The fewest rows that hold so many runs and divide evenly over groups and devices."""
        even = len(self.devices) * self.n_groups
        return -(-count // even) * even

    def _resume(self, saved: SavedBatch, last: StepRecord) -> None:
        leaves = saved.state(last)
        self._check(saved, last, leaves)
        kept = np.arange(len(last.rows))
        live = kept[np.array(last.rows) != PADDING]
        self._take_devices(len(live))
        # The number of devices may have changed since the state was saved. Then the rows are laid anew, without those
        # of ended runs; otherwise they stay, so that the same numbers follow bit for bit.
        kept = live if len(self.devices) != last.devices and len(live) else kept
        rows = self._rows_for(len(kept))
        keep = np.r_[kept, np.full(rows - len(kept), kept[0])]
        self.epoch, self.run = last.epoch, _padded([last.rows[row] for row in kept], rows)
        self._place()
        self._put_state(jax.tree.unflatten(self._structure(), [leaf[keep] for leaf in leaves]))

    def _blank(self) -> TrainState:
        program = make_program(self.batch.config, self.plan.eval_every)
        return jax.eval_shape(program.init, Run(self.batch.config).hyper())

    def _structure(self) -> Any:
        return jax.tree.structure(self._blank())

    def _check(self, saved: SavedBatch, last: StepRecord, leaves: list[np.ndarray]) -> None:
        """Raise BadInput, and name the step, if its state is not one of this batch."""
        path, shapes = str(saved.steps.path(last.epoch)), jax.tree.leaves(self._blank())
        held = [run for run in last.rows if run != PADDING]
        if len(set(held)) != len(held) or not set(held) <= set(self.batch.runs):
            raise BadInput(
                "checkpoint", path, f"a state of runs among {' '.join(map(str, self.batch.runs))}, once each"
            )
        found = [(leaf.shape, leaf.dtype) for leaf in leaves]
        if found != [((len(last.rows), *one.shape), one.dtype) for one in shapes]:
            raise BadInput("checkpoint", path, "a state of this sweep's network; this one is of another")
        if last.split_hashes != self.split_hashes:
            raise BadInput("checkpoint", path, "a state that was trained on these runs' examples; this one was not")

    def _on_devices(self, rows: Any) -> Any:
        """A pytree [row, ...], spread over the devices."""
        return jax.device_put(rows, self.compiled.sharding)

    def _stacked(self, rows: Sequence[Any]) -> Any:
        """One pytree per row, stacked to [row, ...] on the devices."""
        return self._on_devices(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))

    def _runs(self, rows: slice) -> list[Run]:
        """The run of each of these rows. A padding row repeats the batch's first run."""
        first = self.batch.runs[0]
        return [self.plan.records[first if run == PADDING else run].run for run in self.run[rows].tolist()]

    def _place(self) -> None:
        """Put the rows' data and numbers on the devices."""
        size = len(self.run) // self.n_groups
        self.groups = []
        for start in range(0, len(self.run), size):
            runs = self._runs(slice(start, start + size))
            splits = [self.task.split(run.size, run.seed, run.split_seed) for run in runs]
            train, test = (self._stacked(part) for part in zip(*splits))
            hyper = self._stacked([run.hyper() for run in runs])
            self.groups.append(Group(slice(start, start + size), train, test, hyper))

    def _put_state(self, state: Any) -> None:
        """Put a state [row, ...] on the devices."""
        for group in self.groups:
            group.state = self._on_devices(jax.tree.map(lambda leaf, rows=group.rows: leaf[rows], state))

    def _initial_state(self, group: Group) -> TrainState:
        if self.plan.weights is None:
            return self.compiled.init(group.hyper)
        weights = [self.plan.weights(self.batch.config, run.seed) for run in self._runs(group.rows)]
        return self.compiled.start(self._stacked(weights), group.hyper)

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
    def _shape(self) -> tuple[int, int | None]:
        return len(self.run) // self.n_groups, self.batch.n_train

    @property
    def is_compiled(self) -> bool:
        """Whether this process has trained a batch of the same shape before."""
        return self._shape in self.compiled.shapes

    def advance(self, most_steps: float = 0) -> Dispatched:
        """Dispatch the next interval, and with it as many as have at most `most_steps` steps in all and do not pass a
        checkpoint."""
        intervals, most = self._next_intervals(most_steps), most_intervals(self.plan.eval_every)
        n_steps, is_evaluated = np.zeros(most, np.int32), np.zeros(most, bool)
        n_steps[: len(intervals)] = [interval.steps for interval in intervals]
        is_evaluated[: len(intervals)] = [interval.is_evaluated for interval in intervals]
        recorded = []
        for group in self.groups:
            of_group = (group.state, group.train, group.test, group.hyper)
            group.state, of_rows = self.compiled.advance(*of_group, n_steps, is_evaluated)
            recorded.append(of_rows)
        self.compiled.shapes.add(self._shape)
        self.epoch += int(n_steps.sum())
        return Dispatched(intervals, recorded)

    def _next_intervals(self, most_steps: float) -> list[Interval]:
        first = np.searchsorted(self._marks, self.epoch, side="right")
        bounds = [self.epoch]
        for end in self._marks[first : first + most_intervals(self.plan.eval_every)].tolist():
            if len(bounds) > 1 and end > self.epoch + most_steps:
                break
            bounds.append(end)
            if end in self.checkpoints:
                break
        return [Interval(start, end - start, start in self.evaluations) for start, end in pairwise(bounds)]

    def params(self) -> Any:
        """The parameters of the live rows, copied to the host."""
        live = self.live_rows
        return jax.tree.map(lambda leaf: leaf[live], joined([group.state.params for group in self.groups]))

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all rows."""
        return sum(leaf.nbytes for group in self.groups for leaf in jax.tree.leaves(group.state))

    def state(self) -> dict[str, np.ndarray]:
        """{name: leaf [row, ...]} of the state, copied to the host."""
        leaves = jax.tree.leaves(joined([group.state for group in self.groups]))
        return {f"{i:03d}": leaf for i, leaf in enumerate(leaves)}

    def drop(self, runs: Sequence[int]) -> None:
        """Turn the rows of ended runs into padding rows, and halve the batch for as long as half the rows would do."""
        self.run = np.where(np.isin(self.run, runs), PADDING, self.run)
        size, live = len(self.run), self.live_rows
        if len(live):
            self._take_devices(len(live))
        while len(live) and len(live) <= (half := self._rows_for(-(-size // 2))) < size:
            size = half
        if size < len(self.run):
            keep = np.r_[live, np.full(size - len(live), live[0])]
            state = jax.tree.map(lambda leaf: leaf[keep], joined([group.state for group in self.groups]))
            self.run = _padded(self.live_runs.tolist(), size)
            self._place()
            self._put_state(state)
