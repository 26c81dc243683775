"""The live line of sweeps and analyses: redrawn on a terminal; on a pipe, a plain line now and then."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO, cast

import numpy as np
from jaxtyping import Bool, Int
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from jaxgrok.cli.show import clock, count
from jaxgrok.config import Config
from jaxgrok.store.events import MEMORISED_ACCURACY, first_held
from jaxgrok.store.schedule import default_eval_every
from jaxgrok.tasks import Criterion, make_task
from jaxgrok.training.plan import Cost, byte_size, describe
from jaxgrok.training.sweep import Plan, Standing

TERMINAL_SECONDS, PIPE_SECONDS = 1.0, 10.0
LONG_SECONDS = 3600  # a sweep that takes longer says so before it starts


class _State(ProgressColumn):
    """What is going on; while the program compiles, for how long it has done so."""

    def render(self, task: Task) -> Text:
        since = task.fields["compiling_since"]
        return Text(task.fields["state"] if since is None else f"compiling, {time.monotonic() - since:.0f} s")


class _Heard:
    """A stream that may lose its reader, as when Ctrl-C ends a `tee` as well, or a terminal is closed. What is shown is
    lost then, but not the training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Live:
    """A bar with a state. On a terminal it is redrawn; on a pipe its states are printed as lines.

    every: seconds between two states. Those who make them ask `due` first.
    """

    def __init__(self, stream: TextIO | None = None):
        self.console = Console(file=cast(TextIO, _Heard(stream or sys.stderr)), highlight=False)
        self.every = TERMINAL_SECONDS if self.console.is_terminal else PIPE_SECONDS
        self._bar = Progress(BarColumn(10), TextColumn("{task.percentage:.0f} %"), _State())
        self._live = None
        if self.console.is_terminal:
            self._live = Live(self._bar, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, soft_wrap=True)

    def _begin(self, total: int, done: int = 0) -> None:
        self._started = self._shown = time.monotonic()
        self._task = self._bar.add_task("", total=total, completed=done, state="", compiling_since=None)
        if self._live is not None:
            self._live.start()

    def _due(self) -> bool:
        """Whether another state may be shown now. If so, the next one may be `every` seconds later."""
        now = time.monotonic()
        if now - self._shown < self.every:
            return False
        self._shown = now
        return True

    def _show(self, done: int, total: int, state: str) -> None:
        if self._live is not None:
            self._bar.update(self._task, completed=done, total=total, state=state)
        else:
            self.say(state)


class Watch(_Live):
    """Shows how a sweep comes along: run-epochs done, epochs/s over all runs, time left, and how many runs have
    memorised, grokked or learned.

    The rate leaves out the time of compilations. The time left counts every run to its planned end, so with
    until_settled it is an upper bound.
    """

    def started(self, standing: Standing, plan: Plan) -> None:
        """Say what will be trained."""
        self._progress = SweepProgress(standing, plan)
        self._trained = 0
        self._compiling_since, self._has_compiled = 0.0, False
        batches = [plan.batches[number] for number in plan.todo]
        done, left = self._progress.done(), self._progress.left()
        runs = count(sum(len(batch.runs) for batch in batches), "run")
        before = f", of which {done:,} are done" if done else ""
        self.say(f"{runs} in {count(len(batches), 'batch')}, {done + left:,} run-epochs{before}")
        costs = describe(plan)
        disk, files = sum(cost.disk for cost in costs), sum(cost.files for cost in costs)
        self.say(f"on disk: at most {byte_size(disk)}, in at most about {count(files, 'file')}, in {plan.files.path}")
        usual = default_eval_every(min((batch.epochs for batch in batches), default=1))
        if plan.sweep.eval_every is None and batches and plan.eval_every != usual:
            self.say(
                f"evaluates every {plan.eval_every} epochs, like the sweep that this directory began with "
                f"(the default for these runs would be {usual})"
            )
        if notice := _length_notice(plan, costs):
            self.say(notice)
        self._begin(done + left, done)

    def compiling(self) -> None:
        """Show `compiling` until `compiled` is called."""
        self._compiling_since = time.monotonic()
        if self._live is not None:
            self._bar.update(self._task, compiling_since=self._compiling_since)
        elif not self._trained:
            self.say("compiling")

    def compiled(self) -> None:
        """Leave the time since `compiling`, and the interval that was trained in it, out of the rate."""
        took = time.monotonic() - self._compiling_since
        self._started = self._started + took if self._trained else time.monotonic()
        self._has_compiled = True
        if self._live is not None:
            self._bar.update(self._task, compiling_since=None)
        elif not self._trained:
            self.say(f"compiled in {took:.0f} s")

    def warned(self, line: str) -> None:
        """Say what the user should know."""
        self.say(line)

    def advanced(self, standing: Standing, plan: Plan, run_epochs: int) -> None:
        """Show the state if it is time to. run_epochs: those trained since the last call."""
        if self._has_compiled:  # the first interval recorded after a compilation is the one that compiled
            self._has_compiled = False
            return
        self._trained += run_epochs
        elapsed = time.monotonic() - self._started
        if elapsed <= 0 or not self._due():
            return
        rate, done, left = self._trained / elapsed, self._progress.done(), self._progress.left()
        most = "<= " if plan.sweep.until_settled else ""
        state = f"{rate:,.1f} epochs/s, {most}{clock(left / rate)} left, {self._progress.arrived()}"
        if self._live is None:
            state = f"{done:,} of {done + left:,} run-epochs, {state}"
        self._show(done, done + left, state)


class SweepProgress:
    """How far the runs of a sweep have come, kept cheap for many thousands of runs.

    A run's curves are examined again only after it has trained on.
    """

    def __init__(self, standing: Standing, plan: Plan):
        self._standing = standing
        runs = len(standing.last_epoch)
        self._goal: Int[np.ndarray, "R"] = np.zeros(runs, np.int64)  # 0 for a run that is not asked for
        for number in plan.todo:
            self._goal[list(plan.batches[number].runs)] = plan.batches[number].epochs
        self._configs = [record.config for record in plan.records]
        self._unlimited: Bool[np.ndarray, "R"] = np.array([record.run.unlimited for record in plan.records], bool)
        self._criteria: dict[Config, Criterion] = {}
        self._seen: Int[np.ndarray, "R"] = np.zeros(runs, np.int64)
        self._memorised: Bool[np.ndarray, "R"] = np.zeros(runs, bool)
        self._grokked: Bool[np.ndarray, "R"] = np.zeros(runs, bool)

    def done(self) -> int:
        """Run-epochs trained, of the runs that are asked for."""
        return int(self._standing.last_epoch[self._goal > 0].sum())

    def left(self) -> int:
        """Run-epochs left, if every run trains to its planned end."""
        left = np.maximum(0, self._goal - self._standing.last_epoch)
        return int(left[~self._standing.ended].sum())

    def arrived(self) -> str:
        """How many runs have memorised and grokked, and on unlimited data how many have learned."""
        changed = np.flatnonzero(self._standing.last_epoch != self._seen)
        for number in changed:
            self._examine(int(number))
        self._seen[changed] = self._standing.last_epoch[changed]
        shown = []
        if (limited := ~self._unlimited).any():
            memorised, grokked = (int(reached[limited].sum()) for reached in (self._memorised, self._grokked))
            shown.append(f"memorised {memorised}, grokked {grokked} of {limited.sum()}")
        if self._unlimited.any():
            shown.append(f"learned {self._grokked[self._unlimited].sum()} of {self._unlimited.sum()}")
        return ", ".join(shown)

    def _examine(self, number: int) -> None:
        if (timing := self._standing.timing(number)) is not None:
            self._grokked[number], self._memorised[number] = (
                ("grokked" in timing.events),
                ("memorised" in timing.events),
            )
            return
        config, curves = self._configs[number], self._standing.of_run(number)
        if config not in self._criteria:
            self._criteria[config] = make_task(config).criterion
        holds = self._criteria[config].holds(curves.test_acc, curves.test_loss)
        self._grokked[number] = first_held(holds) is not None
        self._memorised[number] = first_held(curves.train_acc >= MEMORISED_ACCURACY) is not None


def _length_notice(plan: Plan, costs: Sequence[Cost]) -> str:
    """A line about a sweep that takes more than an hour; empty if it takes less."""
    seconds = sum(cost.seconds for cost in costs)
    if seconds <= LONG_SECONDS:
        return ""
    hours = f"{seconds / 3600:,.0f}" if seconds >= 10 * 3600 else f"{seconds / 3600:.1f}"
    if plan.sweep.until_settled:
        return f"this will take at most about {hours} hours on this machine; runs that settle sooner end sooner"
    return (
        f"this will take about {hours} hours on this machine. --until-settled, which ends each run once it has grokked "
        "and settled, is often 4 to 8 times cheaper"
    )


class AnalysisWatch(_Live):
    """Shows how an analysis comes along: networks measured, their rate, and the time left."""

    def started(self, total: int) -> None:
        """Say how many networks there are: the sum over runs of their checkpoints."""
        self._total, self._measured, self._found = total, 0, 0
        self._timed = -1  # networks measured after the first one, whose time is mostly that of compilation
        self.say(f"{count(total, 'network')} to measure: every checkpoint of every run")
        self._begin(total)
        if self._live is not None:
            self._bar.update(self._task, compiling_since=self._started)

    def advanced(self, measured: int, found: int) -> None:
        """Show the state if it is time to. measured: networks just measured; found: those that had been before."""
        self._measured, self._found = self._measured + measured, self._found + found
        if measured and self._timed < 0:
            self._started = time.monotonic()
            self._bar.update(self._task, compiling_since=None)
        self._timed += measured
        if self._timed <= 0 or not self._due():
            return
        rate, done = self._timed / (time.monotonic() - self._started), self._measured + self._found
        before = f" ({self._found:,} before)" if self._found else ""
        left = clock((self._total - done) / rate)
        state = f"{done:,} of {self._total:,} measured{before}, {rate:.1f} networks/s, {left} left"
        self._show(done, self._total, state)
