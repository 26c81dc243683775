"""What the commands print on standard output: tables, and the notes that explain them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jaxgrok.config import CONFIG_FIELDS, UNLIMITED, Config
from jaxgrok.measures import subjects
from jaxgrok.measures.checkpoints import Analysis
from jaxgrok.store.results import Cell, Results, text_of
from jaxgrok.tables import circuits as circuit_tables
from jaxgrok.tables import heads as head_tables
from jaxgrok.tables import parts as part_tables
from jaxgrok.tables import representations as representation_tables
from jaxgrok.tables import sizes as size_tables
from jaxgrok.tables import timing
from jaxgrok.training.layout import Plan
from jaxgrok.training.plan import Cost, byte_size, bytes_to_write, free_bytes

PIPE_WIDTH = 1000  # columns: on a pipe, a table is as wide as it needs to be


def clock(seconds: float) -> str:
    """`h:mm:ss`."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def count(n: int, thing: str) -> str:
    """`1 run`, `2 runs`, `2 batches`."""
    return f"{n:,} {thing}" + ("" if n == 1 else "es" if thing.endswith("h") else "s")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


# --- a sweep ----------------------------------------------------------------------------------------------------------


_COST_COLUMNS: dict[str, Callable[[Cost], str]] = {
    "task": lambda cost: cost.config.task,
    "p": lambda cost: str(cost.config.p) if cost.config.modular else "-",
    "arch": lambda cost: cost.config.arch,
    "train examples": lambda cost: UNLIMITED if cost.n_train is None else f"{cost.n_train:,}",
    "runs": lambda cost: str(cost.runs),
    "batches": lambda cost: str(cost.batches),
    "runs a batch": lambda cost: str(cost.batch),
    "epochs": lambda cost: f"{cost.epochs:,}",
    "TFLOP": lambda cost: f"{cost.flops / 1e12:,.1f}",
    "time": lambda cost: clock(cost.seconds),
    "memory a run": lambda cost: byte_size(cost.memory) + (" (does not fit)" if cost.fits is False else ""),
    "on disk": lambda cost: byte_size(cost.disk),
    "files": lambda cost: f"{cost.files:,}",
}


def print_plan(costs: Sequence[Cost], plan: Plan) -> None:
    """Print what each bucket of a sweep costs, and whether memory and disk suffice."""
    differ = [
        name
        for name in CONFIG_FIELDS
        if name not in _COST_COLUMNS and len({getattr(cost.config, name) for cost in costs}) > 1
    ]
    of_fields = {name: lambda cost, name=name: text_of(name, getattr(cost.config, name)) for name in differ}
    columns = {"task": _COST_COLUMNS["task"], **of_fields, **_COST_COLUMNS}
    print_table(list(columns), [[column(cost) for column in columns.values()] for cost in costs])
    runs, seconds, disk = (sum(getattr(cost, name) for cost in costs) for name in ("runs", "seconds", "disk"))
    files = sum(cost.files for cost in costs)
    print(f"{count(runs, 'run')}, about {clock(seconds)}, {byte_size(disk)} on disk in about {count(files, 'file')}")
    free = free_bytes(plan.files.path)
    if free is not None and bytes_to_write(plan) > free:
        print(f"the disk has {byte_size(free)} free")
    if any(cost.fits is False for cost in costs):
        print("a run does not fit into this machine's memory, so this sweep would be refused")


def print_summary(results: Results, of_parts: Sequence[part_tables.Parts] = ()) -> int:
    """Print when the runs of each cell, and the parts of their task, were learned, and where the files are; returns the
    exit status: 1 if anything is damaged."""
    cells = results.cells
    if cells:
        print_table(*timing.readable_table(cells))
        print(timing.NOTE)
        for parts in of_parts:
            print(f"\n{parts.cell.name or 'parts'}")
            print_table(*part_tables.readable_table(parts))
            print("\n".join(part_tables.order_lines(parts)))
        if of_parts:
            print(f"{part_tables.NOTE} {part_tables.ORDER_NOTE}")
        if results.has_circuit_events:
            _print_stages(cells)
    if line := timing.waiting_line(results):
        print(line)
    status = print_damage(results)
    print(f"page, tables, figures, checkpoints: {results.path}")
    return status


def _print_stages(cells: Sequence[Cell]) -> None:
    print_table(*timing.stages_table(cells))
    print(timing.STAGES_NOTE)


def print_damage(results: Results) -> int:
    """Print what is damaged in a directory; returns the exit status: 1 if anything is."""
    for damage in results.damage:
        print(damage.line)
    return 1 if results.damage else 0


def print_sizes(sizes: size_tables.Sizes) -> None:
    """Print what a search over dataset sizes has found so far."""
    print_table(*size_tables.readable_table(sizes))
    print("\n".join(size_tables.size_lines(sizes)))


# --- networks ---------------------------------------------------------------------------------------------------------


def print_network(config: Config, found: dict[str, np.ndarray], remarks: Sequence[str]) -> None:
    """Print one network's measures, {name: array}, and remarks about them."""
    kind = subjects.kind_of(config)
    if kind is subjects.REPRESENTATIONS:
        print_table(*representation_tables.network_table(config, found))
        print(f"loss {found['loss/all']:.4g}, accuracy {found['accuracies/all']:.4f}, over all pairs")
        print("\n".join([representation_tables.NOTE, *remarks]))
        return
    if kind is subjects.HEADS:
        print_table(*head_tables.every_head_table([("", found)]))
        print("\n".join([f"loss {found['loss']:.4g}", head_tables.NOTE, *remarks]))
        return
    print_table(*circuit_tables.keys_table([("", found)]))
    print_table(*circuit_tables.networks_table([found]))
    print("\n".join([circuit_tables.NETWORK_NOTE, *remarks]))


OVER_TRAINING = (
    ("train loss", "loss/train"),
    ("test loss", "loss/test"),
    ("restricted loss", "restricted_loss/all"),
    ("excluded loss (train)", "excluded_loss/train"),
    ("Gini of W_E", "gini/W_E"),
    ("squared weights", "sum_squared_weights/total"),
)


def print_list(of_list: Sequence[subjects.Subject], measured: Sequence[subjects.Measures]) -> None:
    """Print the measures of the networks of a list, a row each, and the last one in full."""
    rows = []
    for subject, measures in zip(of_list, measured, strict=True):
        found, about = subjects.flatten(measures), subject.about
        numbers = [f"{float(found[name]):.4g}" if name in found else "-" for _, name in OVER_TRAINING]
        rows.append([about["entry"], f"{about['epoch']:,}" if "epoch" in about else "-", *numbers])
    print_table(["network", "epoch", *(label for label, _ in OVER_TRAINING)], rows)
    if subjects.all_the_same(of_list):
        print(f"all {len(of_list)} networks are the same: the program may have saved them without a copy")
    print_network(of_list[-1].config, subjects.flatten(measured[-1]), subjects.remarks(of_list[-1], measured[-1]))


def print_logits(found: subjects.MeasuredLogits) -> None:
    """Print what logits alone say of a network, and remarks about it."""
    header, rows = circuit_tables.networks_table([subjects.flatten(found.measured)])
    print_table(header, [row for row in rows if row[1] != "-"])
    keys = ", ".join(map(str, found.json["key_frequencies"]["keys"])) or "none"
    accuracies = found.measured["accuracies"]
    print(f"keys, by the size of alpha: {keys}")
    print(f"accuracy: train {accuracies['train']:.4f}, test {accuracies['test']:.4f}")
    print("\n".join([circuit_tables.NETWORK_NOTE, *found.remarks]))


def print_networks(found: Analysis) -> None:
    """Print what the networks of each cell learned, when their stages came, and what was not measured."""
    results = found.results
    circuits = subjects.of_kind(subjects.CIRCUITS, results.cells)
    for cell in circuits:
        networks = results.last_analysed(cell.records)
        if networks:
            print(cell.name or count(len(networks), "network"))
            print_table(*circuit_tables.keys_table(circuit_tables.by_seed(cell, networks)))
            print_table(*circuit_tables.networks_table(networks))
    if circuits:
        print(circuit_tables.networks_note(circuits))
        _print_stages(circuits)
    _print_heads(results, subjects.of_kind(subjects.HEADS, results.cells))
    _print_representations(results, subjects.of_kind(subjects.REPRESENTATIONS, results.cells))
    for line in (*subjects.left_out(results), *found.pending, *found.mended):
        print(line)


def _print_representations(results: Results, cells: Sequence[Cell]) -> None:
    for cell in cells:
        if runs := representation_tables.representations_of(results, cell):
            print(cell.name or count(len(runs), "network"))
            print_table(*representation_tables.medians_table(runs))
            print_table(*representation_tables.runs_table(runs))
    if cells:
        print(representation_tables.OVER_RUNS_NOTE)


def _print_heads(results: Results, cells: Sequence[Cell]) -> None:
    for cell in cells:
        runs: list[Any] = head_tables.heads_of(results, cell)
        if runs:
            print(cell.name or count(len(runs), "network"))
            print_table(*head_tables.medians_table(runs))
            print_table(*head_tables.runs_table(runs))
    if cells:
        print(head_tables.NOTE)
