"""What a running sweep shows: a live line on a terminal, a plain line now and then on a pipe."""

import sys
import time

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from jaxgrok.measures import checkpoints as analysis
from jaxgrok.store import events as phases
from jaxgrok.store.schedule import default_eval_every
from jaxgrok.tables import circuits as circuit_tables
from jaxgrok.tables import heads as head_tables
from jaxgrok.tables import parts as part_tables
from jaxgrok.tables import sizes as size_tables
from jaxgrok.tables import timing as report
from jaxgrok.tasks import make_task
from jaxgrok.training.plan import checkpoint_bytes

TERMINAL_SECONDS, PIPE_SECONDS = 1.0, 10.0


class _Live:
    """A live line on a terminal; on a pipe whoever shows something prints it, no more often than `every` seconds."""

    def __init__(self, stream=None):
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self.every = TERMINAL_SECONDS if self.console.is_terminal else PIPE_SECONDS
        self.bar = Progress(BarColumn(10), TextColumn("{task.percentage:.0f} %"), TextColumn("{task.fields[state]}"))
        self.live = Live(self.bar, console=self.console, refresh_per_second=2, transient=True) if self.console.is_terminal else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.live is not None:
            self.live.stop()


class Watch(_Live):
    """Shows run-epochs done, epochs/s over all runs, time left, and how many runs have memorised and grokked, or learned.

    Time left counts every run to its planned end: with until_settled it is the most that can be left.
    """

    def started(self, metrics, plan):
        """Called once, when the sweep's files are open."""
        left, done = self._left(metrics, plan), int(metrics.last_epoch.sum())
        self.start = self.shown = time.monotonic()
        self.trained = 0
        batches = [plan.batches[number] for number in plan.todo]
        self.task = self.bar.add_task("training", total=done + left, completed=done, state="")
        goes_on = f", of which {done:,} are done" if done else ""
        disk = sum(len(batch.runs) * len(plan.checkpoints(batch)) * checkpoint_bytes(batch.config) for batch in batches)
        counts = f"{_count(sum(len(batch.runs) for batch in batches), 'run')} in {_count(len(batches), 'batch')}"
        self.console.print(f"{counts}, {done + left:,} run-epochs{goes_on}", soft_wrap=True)
        self.console.print(f"checkpoints: at most {_bytes(disk)} in {plan.files.path}", soft_wrap=True)
        if not plan.sweep.eval_every and plan.eval_every != (usual := default_eval_every(min(batch.epochs for batch in batches))):
            notice = f"evaluates every {plan.eval_every} epochs, as the sweep in this directory began (by itself it would be {usual})"
            self.console.print(notice, soft_wrap=True)
        if self.live is not None:
            self.live.start()

    def advanced(self, metrics, plan, run_epochs: int):
        """Called after each recorded interval with the run-epochs it trained."""
        self.trained += run_epochs
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        rate = self.trained / (now - self.start)
        left, done = self._left(metrics, plan), int(metrics.last_epoch.sum())
        most = "<= " if plan.sweep.until_settled else ""
        state = f"{rate:,.1f} epochs/s, {most}{_clock(left / rate)} left, {self._arrived(metrics, plan)}"
        if self.live is not None:
            self.bar.update(self.task, total=done + left, completed=done, state=state)
        else:
            self.console.print(f"{done:,} of {done + left:,} run-epochs, {state}", soft_wrap=True)

    @staticmethod
    def _left(metrics, plan) -> int:
        return sum(
            max(0, plan.batches[number].epochs - int(metrics.last_epoch[run]))
            for number in plan.todo
            for run in plan.batches[number].runs
            if not metrics.ended[run]
        )

    @staticmethod
    def _arrived(metrics, plan) -> str:
        """How many runs have memorised and how many grokked; of those on unlimited data, which cannot, how many have learned."""
        found = {True: [], False: []}  # by whether a run can memorise
        for number, run in plan.runs.items():
            curves = metrics.of_run(number)
            learned = phases.has_learned(curves["test_acc"], curves["test_loss"], make_task(run.config).grokked_loss)
            grokked, memorised = (phases.first_held(x) is not None for x in (learned, curves["train_acc"] >= 0.99))
            found[run.n_train is not None].append((memorised, grokked))
        shown = []
        if limited := found[True]:
            memorised, grokked = map(sum, zip(*limited))
            shown.append(f"memorised {memorised}, grokked {grokked} of {len(limited)}")
        if unlimited := found[False]:
            shown.append(f"learned {sum(learned for _, learned in unlimited)} of {len(unlimited)}")
        return ", ".join(shown)


class Steps(_Live):
    """Shows networks measured, their rate, and the time left of an analysis."""

    def started(self, total: int):
        """Called once with the number of networks: runs times checkpoints."""
        self.total, self.measured, self.found = total, 0, 0
        self.start = self.shown = time.monotonic()
        self.task = self.bar.add_task("analysis", total=total, state="")
        self.console.print(f"{_count(total, 'network')} to measure: every checkpoint of every run", soft_wrap=True)
        if self.live is not None:
            self.live.start()

    def advanced(self, measured: int, found: int):
        """Called with networks just measured, and found measured before."""
        self.measured, self.found = self.measured + measured, self.found + found
        now = time.monotonic()
        if now - self.shown < self.every or not self.measured:
            return
        self.shown = now
        rate, done = self.measured / (now - self.start), self.measured + self.found
        before = f" ({self.found:,} before)" if self.found else ""
        state = f"{done:,} of {self.total:,} measured{before}, {rate:.1f} networks/s, {_clock((self.total - done) / rate)} left"
        if self.live is not None:
            self.bar.update(self.task, completed=done, state=state)
        else:
            self.console.print(state, soft_wrap=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" + ("" if n == 1 else "es" if thing.endswith("h") else "s")


def _bytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def print_table(header, rows) -> None:
    """A table on standard output; on a pipe it is as wide as it needs to be."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_plan(costs) -> None:
    """Print what each bucket of a sweep costs."""
    header = ["task", "p", "arch", "train examples", "runs", "batches", "runs a batch", "epochs", "TFLOP", "time", "checkpoints"]
    rows = []
    for c in costs:
        counts = ["unlimited" if c.n_train is None else f"{c.n_train:,}", str(c.runs), str(c.batches), str(c.batch), f"{c.epochs:,}"]
        modulus = str(c.config.p) if c.config.modular else "-"
        rows.append([c.config.task, modulus, c.config.arch, *counts, f"{c.flops / 1e12:,.1f}", _clock(c.seconds), _bytes(c.disk)])
    print_table(header, rows)
    runs, seconds, disk = (sum(getattr(c, name) for c in costs) for name in ("runs", "seconds", "disk"))
    print(f"{_count(runs, 'run')}, about {_clock(seconds)}, {_bytes(disk)} on disk")


def show_summary(results, cells, parts=()) -> None:
    """Print the summary table, those of the parts of cells that have any, and where everything lies."""
    if cells:
        print_table(*report.readable_table(cells))
        print(report.NOTE)
        for of_cell in parts:
            print(f"\n{of_cell.cell.name or 'parts'}")
            print_table(*part_tables.readable_table(of_cell))
            print("\n".join(part_tables.order_lines(of_cell)))
        if parts:
            print(f"{part_tables.NOTE} {part_tables.ORDER_NOTE}")
        if results.has_circuit_events:
            print_table(*report.stages_table(cells))
            print(report.STAGES_NOTE)
    if waiting := report.waiting(results, cells):
        print(waiting)
    print(f"tables, figures, checkpoints: {results.path}")


def show_sizes(sizes) -> None:
    """Print what a search over dataset sizes has found so far."""
    print_table(*size_tables.readable_table(sizes))
    print("\n".join(size_tables.lines(sizes)))


def show_network(found: dict, remarks: list[str]) -> None:
    """Print one network's measures, {name: array}, and remarks."""
    if "loss_without" in found:
        print_table(*head_tables.every_head_table([("", found)]))
        print("\n".join([f"loss {found['loss']:.4g}", head_tables.NOTE, *remarks]))
        return
    print_table(*circuit_tables.keys_table([("", found)]))
    print_table(*circuit_tables.networks_table([found]))
    print("\n".join([circuit_tables.NETWORKS_NOTE, *remarks]))


def show_networks(results, cells) -> None:
    """Print what the networks of each cell learned, when its stages came, and where everything lies."""
    circuits = analysis.of_kind(analysis.CIRCUITS, cells)
    for cell in circuits:
        networks = results.last_analysed(cell.records)
        if networks:
            print(cell.name or _count(len(networks), "network"))
            print_table(*circuit_tables.keys_table(circuit_tables.by_seed(cell, networks)))
            print_table(*circuit_tables.networks_table(networks))
    if circuits:
        print(circuit_tables.NETWORKS_NOTE)
        print_table(*report.stages_table(circuits))
        print(report.STAGES_NOTE)
    _show_heads(results, analysis.of_kind(analysis.HEADS, cells))
    for line in analysis.left_out(results):
        print(line)
    print(f"tables, figures: {results.path}")


def _show_heads(results, cells) -> None:
    for cell in cells:
        runs = head_tables.heads_of(results, cell)
        if runs:
            print(cell.name or _count(len(runs), "network"))
            print_table(*head_tables.medians_table(runs))
            print_table(*head_tables.runs_table(runs))
    if cells:
        print(head_tables.NOTE)
