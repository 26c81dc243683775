"""The tables of which irreducible representations the networks on a group use, over training and at the end.

tables/representations.csv   a row per run, checkpoint and representation
tables/representations.md    for people: each cell's networks at their last checkpoints, over seeds and by run
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxgrok.config import Config
from jaxgrok.measures.representations import SHARES, Irreps, irreps
from jaxgrok.measures.subjects import REPRESENTATIONS, kind_of, of_kind
from jaxgrok.store.results import Cell, Results, RunRecord
from jaxgrok.tables.circuits import Row, Table, columns_of, coordinates_of, summary
from jaxgrok.tables.write import markdown, write_csv, write_text
from jaxgrok.task_names import group_of

TITLES = {"W_E_share": "W_E", "W_U_share": "W_U", "W_L_share": "W_L", "logit_share": "logits"}


@dataclass(frozen=True)
class RunRepresentations:
    """The representations in one run's networks.

    record: the run. epoch: its last analysed checkpoint. m: `representations.scores` there. series: the shares at all
    its analysed checkpoints, with their `epoch`.
    """

    record: RunRecord
    epoch: int
    m: dict[str, Any]
    series: dict[str, Any]

    @property
    def name(self) -> str:
        return f"seed {self.record.seed}, epoch {self.epoch:,}"


def irreps_of(config: Config) -> Irreps:
    """The irreducible representations of the group of a config's task."""
    name = group_of(config.task)
    assert name is not None  # only such networks have these measures
    return irreps(name.family, name.n)


def representations_of(results: Results, cell: Cell) -> list[RunRepresentations]:
    """The analysed runs of a cell of networks on a group."""
    last = {int(found["run"]): found for found in results.last_analysed(cell.records)}
    analysed = [record for record in cell.records if record.number in last]
    names = [name for name in SHARES if analysed and name in last[analysed[0].number]]
    all_series = results.measured(analysed, names)
    measured = [unflatten_dict(last[record.number], sep="/") for record in analysed]
    return [
        RunRepresentations(r, int(m["epoch"]), m, s) for r, m, s in zip(analysed, measured, all_series, strict=True)
    ]


def _rows_of(config: Config, found: dict[str, Any]) -> list[Row]:
    """The representations of one network as rows of the CSV."""
    of, rows = irreps_of(config), []
    for i, name in enumerate(of.names):
        row: Row = {"representation": name, "dimension": int(of.dimension[i]), "size": float(of.size[i])}
        for share in SHARES:
            value = float(found[share][i]) if share in found else np.nan
            row[share] = value if np.isfinite(value) else None
        rows.append(row)
    return rows


def representations_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of representations.csv."""
    runs = {record.number for record in results.runs if kind_of(record.config) is REPRESENTATIONS}
    rows = []
    for record, epoch, found in results.analysed(runs):
        at = coordinates_of(results, record, epoch)
        rows += [at | row for row in _rows_of(record.config, found)]
    header = columns_of(rows)
    return header, [[row.get(column) for column in header] for row in rows]


def network_table(config: Config, found: dict[str, Any]) -> Table:
    """A row per representation of one network. found: `representations.scores`."""
    of, shown = irreps_of(config), [name for name in TITLES if name in found and np.isfinite(found[name]).any()]
    rows = [
        [name, f"{of.size[i]:.3f}", *(f"{found[share][i]:.3f}" for share in shown)] for i, name in enumerate(of.names)
    ]
    return ["representation", "size", *(TITLES[name] for name in shown)], rows


def medians_table(runs: Sequence[RunRepresentations]) -> Table:
    """A row per representation: its size, and the median and range of its shares over runs."""
    of, shown = irreps_of(runs[0].record.config), [name for name in TITLES if name in runs[0].m]
    rows = []
    for i, name in enumerate(of.names):
        values = [summary([np.atleast_1d(run.m[share][i]) for run in runs], "{:.3f}") for share in shown]
        rows.append([name, f"{of.size[i]:.3f}", *values])
    return ["representation", "size", *(TITLES[name] for name in shown)], rows


def runs_table(runs: Sequence[RunRepresentations]) -> Table:
    """A row per run: its loss, its accuracy, and which representations are more than twice their size in W_E."""
    of, rows = irreps_of(runs[0].record.config), []
    for run in runs:
        share = run.m["W_E_share"]
        used = [i for i in np.argsort(-share) if share[i] > 2 * of.size[i]]
        text = ", ".join(f"{of.names[i]}: {share[i]:.2f}" for i in used) or "none"
        explained = float(run.m["logit_share"].sum())
        logits = f"{explained:.3f}" if np.isfinite(explained) else "-"
        loss, accuracy = (run.m[name].get("test", run.m[name]["all"]) for name in ("loss", "accuracies"))
        rows.append([run.name, text, logits, f"{loss:.3g}", f"{accuracy:.4f}"])
    return ["", "more than twice its size in W_E", "logits explained", "test loss", "test accuracy"], rows


NOTE = (
    "Representations are named by their dimension; the first is the trivial one, and 1+1 is a pair of complex "
    "conjugates. Size: the share of all functions on the group that the representation spans, which is its share in "
    "random weights. W_E, W_U and W_L = W_out W_U: its share of the squares of these weights. Logits: the share of "
    "their variance that its characters of x y c^-1 explain, c the answer."
)


OVER_RUNS_NOTE = f"{NOTE} Medians over runs, with their range, at the last checkpoints."


def representations_markdown(results: Results, cells: Sequence[Cell]) -> str:
    """representations.md: a section per cell."""
    parts = [f"# {results.path.name}: which representations the networks use"]
    for cell in of_kind(REPRESENTATIONS, cells):
        if runs := representations_of(results, cell):
            parts += [f"## {cell.name}"] if cell.name else []
            parts += [markdown(*medians_table(runs)), markdown(*runs_table(runs))]
    return "\n\n".join([*parts, OVER_RUNS_NOTE]) + "\n"


def write_representation_tables(results: Results, folder: Path | None = None) -> None:
    """Write representations.csv and representations.md, if the sweep has networks on a group.

    folder: where to write them. None means the sweep's own `tables`.

    Raises BadInput if the folder cannot be written.
    """
    if of_kind(REPRESENTATIONS, results.cells):
        folder = results.path / "tables" if folder is None else folder
        write_csv(folder / "representations.csv", *representations_table(results))
        write_text(folder / "representations.md", representations_markdown(results, results.cells))
