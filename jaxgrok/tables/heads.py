"""The tables of what the heads of induction networks attend to, over training and at the end.

    tables/heads.csv   a row per run, checkpoint, layer and head: `heads.scores`, and the same of a head that attends
                       uniformly
    tables/heads.md    for people: the networks of each cell at their last checkpoints, as medians over seeds, by run,
                       and by head

A score that has a value per block or copy has a column for each: `induction_by_copy_0`. Copies count from 0, as in the
names of the task's parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float, Int

from jaxgrok import stats
from jaxgrok.measures import heads
from jaxgrok.measures.subjects import HEADS, kind_of, of_kind
from jaxgrok.stats import Arrival
from jaxgrok.store.events import Bracket, Outcome, Timing
from jaxgrok.store.results import Cell, Results, RunRecord
from jaxgrok.tables.circuits import Row, Table, columns_of, coordinates_of, summary
from jaxgrok.tables.write import markdown, write_csv, write_text

Scores = dict[str, Any]  # what `heads.scores` returns; with a leading axis T for all checkpoints of a run

PREVIOUS, INDUCTION = KINDS = ("previous_token", "induction")
NAMES = {PREVIOUS: "previous-token", INDUCTION: "induction"}
WITHOUT = ("loss_without", "induction_without")
BY_PLACE = ("previous_token_by_block", "induction_by_copy")
OF_KINDS = (*BY_PLACE, "induction_any_copy")  # the measures that `heads.kinds` needs, each with its `chance`


def head_name(layer: int, head: int) -> str:
    """`0.2`: head 2 of layer 0."""
    return f"{layer}.{head}"


@dataclass(frozen=True)
class RunHeads:
    """The heads of one run.

    Attributes:
        record: the run.
        epoch: its last analysed checkpoint.
        m: `heads.scores` at that checkpoint.
        timing: the events of the run.
        series: the measures OF_KINDS at all its analysed checkpoints, with their `epoch`.
    """

    record: RunRecord
    epoch: int
    m: Scores
    timing: Timing
    series: Scores

    @property
    def name(self) -> str:
        return f"seed {self.record.seed}, epoch {self.epoch:,}"

    def kind(self, kind: str) -> heads.Kind:
        """How far each head is of a kind."""
        return heads.kinds(self.m)[kind]

    def best(self, kind: str) -> tuple[int, int]:
        """(layer, head) with the largest share of a kind."""
        return heads.best_head(self.kind(kind).share)

    def of_best(self, kind: str, name: str) -> float:
        """A measure [L, H] of the best head of a kind."""
        return float(self.m[name][self.best(kind)])

    def rise(self, kind: str) -> Bracket | None:
        """The checkpoints between which the largest share of any head first passed half of its last value (`rise`)."""
        return rise(self.series["epoch"], best_share(self.series, kind))

    def risen_by(self, kind: str) -> int | None:
        """The upper end of `rise`; None if the share did not rise."""
        bracket = self.rise(kind)
        return None if bracket is None else bracket[1]

    def arrival(self, time: int | None) -> Arrival:
        """An event at this time; None means that the run did not reach it by its last epoch, or ever if it diverged."""
        if time is not None:
            return Arrival(time, True)
        return Arrival(self.timing.last_epoch, False, ruled_out=self.timing.outcome is Outcome.DIVERGED)


def best_share(series: Scores, kind: str) -> Float[np.ndarray, "T"]:
    """The largest share of any head (`heads.Kind`) at each checkpoint."""
    share = heads.kinds(series)[kind].share
    return np.fmax.reduce(share.reshape(len(share), -1), axis=1)


def rise(epochs: Int[np.ndarray, "T"], best: Float[np.ndarray, "T"]) -> Bracket | None:
    """The bracket (after, by] of the first checkpoint at which `best` is above half of its last value. None if that
    last value is not above THRESHOLD."""
    if not best[-1] > heads.THRESHOLD:
        return None
    at = int(np.argmax(best > best[-1] / 2))
    return int(epochs[max(at - 1, 0)]), int(epochs[at])


def heads_of(results: Results, cell: Cell) -> list[RunHeads]:
    """The analysed runs of a cell of induction networks."""
    last = {int(found["run"]): found for found in results.last_analysed(cell.records)}
    pairs = zip(cell.records, cell.timings, strict=True)
    analysed = [(record, timing) for record, timing in pairs if record.number in last]
    names = (*OF_KINDS, *(f"chance/{name}" for name in OF_KINDS))
    all_series = results.measured([record for record, _ in analysed], names)
    runs = []
    for (record, timing), series in zip(analysed, all_series, strict=True):
        m = unflatten_dict(last[record.number], sep="/")
        runs.append(RunHeads(record, int(m["epoch"]), m, timing, series))
    return runs


# --- heads.csv --------------------------------------------------------------------------------------------------------


def _columns_of_head(name: str, score: np.ndarray) -> Row:
    """The columns of one head's score. A NaN, where the layer does not compute it, is empty."""
    values = {f"{name}_{i}": x.item() for i, x in enumerate(score)} if np.ndim(score) else {name: score.item()}
    return {column: None if np.isnan(x) else x for column, x in values.items()}


def head_rows(m: Scores) -> list[Row]:
    """The heads of one network as rows of heads.csv."""
    rows = []
    for layer, head in np.ndindex(*m["loss_without"].shape):
        row: Row = {"layer": layer, "head": head}
        for name in heads.SCORES:
            row |= _columns_of_head(name, m[name][layer, head])
        for name in heads.SCORES:
            row |= _columns_of_head(f"chance_{name}", m["chance"][name][layer])
        row |= {"loss": m["loss"].item(), **{name: m[name][layer, head].item() for name in WITHOUT}}
        rows.append(row)
    return rows


def heads_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of heads.csv."""
    runs = {record.number for record in results.runs if kind_of(record.config) is HEADS}
    rows = []
    for record, epoch, found in results.analysed(runs):
        at = coordinates_of(results, record, epoch)
        rows += [at | row for row in head_rows(unflatten_dict(found, sep="/"))]
    header = columns_of(rows)
    return header, [[row.get(column) for column in header] for row in rows]


# --- for people -------------------------------------------------------------------------------------------------------

SHOWN = {
    "previous_token": "previous token",
    "induction_any_copy": "induction",
    "induction": "to the copy before",
    "same_token": "same token",
    "current_token": "current token",
}


def every_head_table(named: Sequence[tuple[str, Scores]]) -> Table:
    """A row per head of each network. named: [(the network's name, `heads.scores`)]."""
    rows = []
    for network, m in named:
        for at in np.ndindex(*m["loss_without"].shape):
            by_block, by_copy = (
                " ".join(f"{x:.2f}" if np.isfinite(x) else "-" for x in m[name][at]) for name in BY_PLACE
            )
            scores = {name: f"{m[name][at]:.2f}" for name in SHOWN}
            scores["previous_token"] += f" ({by_block})"
            scores["induction_any_copy"] += f" ({by_copy})"
            without = f"{m['loss_without'][at]:.3g}", f"{m['induction_without'][at]:.2f}"
            rows.append([network, head_name(*at), *scores.values(), *without])
    return ["", "head", *SHOWN.values(), "loss without", "induction without"], rows


def heads_of_kind(m: Scores, kind: str) -> str:
    """The heads of one kind, from the best: `0.2: 0.84 in block 0`. If no share is above THRESHOLD: `none`, and the
    best one."""
    score, share, place = heads.kinds(m)[kind]
    where = "in block" if kind == PREVIOUS else "most to copy"
    comma = "" if kind == PREVIOUS else ","

    def text(at: tuple[int, ...]) -> str:
        return f"{head_name(at[0], at[1])}: {score[at]:.2f}{comma} {where} {place[at]}"

    found = sorted((at for at in np.ndindex(*share.shape) if share[at] > heads.THRESHOLD), key=lambda at: -share[at])
    return "; ".join(map(text, found)) if found else f"none ({text(heads.best_head(share))})"


def runs_table(runs: Sequence[RunHeads]) -> Table:
    """A row per run."""
    header = ["", "previous-token heads", "induction heads", "loss", "without previous", "without induction"]
    header += ["induction left", "induction by", "learned by"]
    rows = []
    for run in runs:
        losses = [f"{run.of_best(kind, 'loss_without'):.3g}" for kind in KINDS]
        left = f"{run.of_best(PREVIOUS, 'induction_without'):.2f}"
        times = ["-" if by is None else f"{by:,}" for by in (run.risen_by(INDUCTION), run.timing.by("grokked"))]
        kinds = [heads_of_kind(run.m, kind) for kind in KINDS]
        rows.append([run.name, *kinds, f"{run.m['loss']:.3g}", *losses, left, *times])
    return header, rows


def _median_time(runs: Sequence[RunHeads], time_of: Callable[[RunHeads], int | None]) -> str:
    """The median of a time, which is None in the runs that did not get there."""
    return str(stats.median([run.arrival(time_of(run)) for run in runs]))


def _rows_of_kind(runs: Sequence[RunHeads], kind: str) -> list[list[str]]:
    """The rows of `medians_table` on the heads of one kind."""
    name, kinds, best = NAMES[kind], [run.kind(kind) for run in runs], [run.best(kind) for run in runs]
    scores = [of_run.score[at] for of_run, at in zip(kinds, best, strict=True)]
    shares = [of_run.share[at] for of_run, at in zip(kinds, best, strict=True)]
    return [
        [f"best {name} head: score", _over_runs(scores)],
        ["its share above uniform attention", _over_runs(shares)],
        ["loss without it", _over_runs([run.of_best(kind, "loss_without") for run in runs], "{:.3g}")],
        [f"{name} heads", _over_runs([(of_run.share > heads.THRESHOLD).sum() for of_run in kinds], "{:g}")],
    ]


def _over_runs(values: Sequence[Any], form: str = "{:.2f}") -> str:
    return summary([np.atleast_1d(value) for value in values], form)


def medians_table(runs: Sequence[RunHeads]) -> Table:
    """What the networks of a cell have in common: medians and ranges over seeds."""
    rows = [row for kind in KINDS for row in _rows_of_kind(runs, kind)]
    left = _over_runs([run.of_best(PREVIOUS, "induction_without") for run in runs])
    rows += [
        ["loss", _over_runs([run.m["loss"] for run in runs], "{:.3g}")],
        ["induction left without the best previous-token head", left],
        *([f"{NAMES[kind]} by", _median_time(runs, lambda run, kind=kind: run.risen_by(kind))] for kind in KINDS),
        ["learned by", _median_time(runs, lambda run: run.timing.by("grokked"))],
    ]
    return ["quantity", "median (range)"], rows


NOTE = (
    f"Heads are LAYER.HEAD. Scores are attention, averaged over {heads.N_SEQUENCES} drawn sequences, which are the "
    "same for every network. Previous token: attention to the position before, in the block where it is largest. In "
    "brackets: by block; the last layer does not compute the first block. Induction: attention from a token of a "
    "later copy to what followed it in the earlier copies, summed. In brackets: by copy, from 0, averaged over the "
    "copies after it. Same token: attention to that token itself in the earlier copies. Share: 0 for a head that "
    "attends uniformly to everything it sees, and 1 for a head that attends to nothing else. A head counts as one of "
    f"a kind if its share is above {heads.THRESHOLD}; the best head has the largest share. Loss: over the tokens that "
    "the training loss counts. Without: with the output of the best head of the kind set to zero. Induction left: the"
    " best induction score without the best previous-token head. By: the first checkpoint at which the largest share "
    "was above half of its last value. Learned by: as in summary.md. Times are in epochs: Kaplan-Meier medians with "
    "95 % intervals."
)


def heads_markdown(results: Results, cells: Sequence[Cell]) -> str:
    """heads.md: a section per cell."""
    parts = [f"# {results.path.name}: what the heads attend to"]
    for cell in of_kind(HEADS, cells):
        runs = heads_of(results, cell)
        if runs:
            parts += [f"## {cell.name}"] if cell.name else []
            parts += [markdown(*medians_table(runs)), markdown(*runs_table(runs))]
            parts.append(markdown(*every_head_table([(run.name, run.m) for run in runs])))
    return "\n\n".join([*parts, NOTE]) + "\n"


def write_head_tables(results: Results, folder: Path | None = None) -> None:
    """Write heads.csv and heads.md, if heads are measured in any run of the sweep that has begun.

    folder: where to write them. None means the sweep's own `tables`.

    Raises BadInput if the folder cannot be written.
    """
    if of_kind(HEADS, results.cells):
        folder = results.path / "tables" if folder is None else folder
        write_csv(folder / "heads.csv", *heads_table(results))
        write_text(folder / "heads.md", heads_markdown(results, results.cells))
