"""The tables of what the heads of induction networks attend to, over training and at the end.

    tables/heads.csv   a row per run, checkpoint, layer and head: `heads.scores`, and beside them what a uniform head would have
    tables/heads.md    a cell's networks at their last checkpoints: medians over seeds, the heads of each run, and every head

A score that has an entry for each block or copy has a column for each, `induction_by_copy_0`; copies count from 0, as in the
names of the task's parts.
"""

from dataclasses import dataclass

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxgrok.measures import heads
from jaxgrok.measures.checkpoints import HEADS, kind_of, of_kind
from jaxgrok.stats import survival as stats
from jaxgrok.store import events as phases
from jaxgrok.store.results import AXES, Results
from jaxgrok.store.steps import replace_text
from jaxgrok.tables.circuits import summary
from jaxgrok.tables.timing import Cell, csv_text, field_values, markdown

PREVIOUS, INDUCTION = KINDS = ("previous_token", "induction")
NAMES = {PREVIOUS: "previous-token", INDUCTION: "induction"}
WITHOUT = ("loss_without", "induction_without")
OF_KINDS = ("previous_token_by_block", "induction_by_copy", "induction_any_copy")  # what `heads.kinds` needs, and the chance of each


def head_name(layer: int, head: int) -> str:
    """`0.2`: head 2 of layer 0."""
    return f"{layer}.{head}"


@dataclass(frozen=True)
class RunHeads:
    """One run. m: `heads.scores` at its last analysed checkpoint, `epoch`; timing: its events; series: what `heads.kinds` needs at all
    its analysed checkpoints, and their `epoch` [T]."""

    record: dict
    epoch: int
    m: dict
    timing: phases.Timing
    series: dict

    @property
    def name(self) -> str:
        return f"seed {self.record['seed']}, epoch {self.epoch:,}"

    def kind(self, kind: str) -> heads.Kind:
        return heads.kinds(self.m)[kind]

    def best(self, kind: str) -> tuple[int, int]:
        """The head that is most of a kind."""
        return heads.best_head(self.kind(kind).share)

    def of_best(self, kind: str, name: str) -> float:
        """A measure [L, H] of the head that is most of a kind."""
        return float(self.m[name][self.best(kind)])

    def rise(self, kind: str) -> tuple[int, int] | None:
        """(after, by]: the checkpoints between which the largest share of any head first passed half of its last value."""
        return rise(self.series["epoch"], best_share(self.series, kind))


def best_share(series: dict, kind: str) -> np.ndarray:
    """[T] the largest share of any head (`heads.Kind`) at each checkpoint."""
    share = heads.kinds(series)[kind].share
    return np.fmax.reduce(share.reshape(len(share), -1), axis=1)


def rise(epochs, best) -> tuple[int, int] | None:
    """(after, by] of the first checkpoint at which best [T] is above half of its last value; None where that is no more than THRESHOLD."""
    if not best[-1] > heads.THRESHOLD:
        return None
    at = int(np.argmax(best > best[-1] / 2))
    return int(epochs[max(at - 1, 0)]), int(epochs[at])


def heads_of(results: Results, cell: Cell) -> list[RunHeads]:
    """The analysed runs of a cell of induction networks."""
    last = {int(found["run"]): found for found in results.last_analysed(cell.records)}
    analysed = [(record, timing) for record, timing in zip(cell.records, cell.timings) if record["run"] in last]
    series = results.measured([record for record, _ in analysed], (*OF_KINDS, *(f"chance/{name}" for name in OF_KINDS)))
    networks = [unflatten_dict(last[record["run"]], sep="/") for record, _ in analysed]
    return [RunHeads(record, int(m["epoch"]), m, timing, s) for (record, timing), m, s in zip(analysed, networks, series)]


# --- heads.csv --------------------------------------------------------------------------------------------------------------


def _columns_of(name: str, of_head) -> dict:
    """A score of one head: a number, or one for each block or copy; what the layer does not compute is empty."""
    values = {f"{name}_{i}": x.item() for i, x in enumerate(of_head)} if np.ndim(of_head) else {name: of_head.item()}
    return {column: None if np.isnan(x) else x for column, x in values.items()}


def head_rows(m: dict) -> list[dict]:
    """One network's heads, {column: value}, from `heads.scores`."""
    rows = []
    for layer, head in np.ndindex(*m["loss_without"].shape):
        row = {"layer": layer, "head": head}
        for name in heads.SCORES:
            row |= _columns_of(name, m[name][layer, head])
        for name in heads.SCORES:
            row |= _columns_of(f"chance_{name}", m["chance"][name][layer])
        row |= {"loss": m["loss"].item(), **{name: m[name][layer, head].item() for name in WITHOUT}}
        rows.append(row)
    return rows


def heads_table(results: Results) -> tuple[list[str], list[list]]:
    """(header, rows) of heads.csv."""
    fields = (*AXES, *(name for name in results.varying() if name not in AXES))
    runs = {record["run"] for record in results.runs if kind_of(results.config(record)) == HEADS}
    rows = []
    for record, epoch, found in results.analysed(runs):
        at = {"run": record["run"], "seed": record["seed"], **dict(zip(fields, field_values(record, fields))), "epoch": epoch}
        rows += [at | row for row in head_rows(unflatten_dict(found, sep="/"))]
    header = list(dict.fromkeys(column for row in rows for column in row))
    return header, [[row.get(column) for column in header] for row in rows]


# --- to read ----------------------------------------------------------------------------------------------------------------


def every_head_table(named: list[tuple[str, dict]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a row per head of each network, [(name, `heads.scores`)]."""
    shown = {"previous_token": "previous token", "induction_any_copy": "induction", "induction": "to the copy before"}
    shown |= {"same_token": "same token", "current_token": "current token"}
    rows = []
    for network, m in named:
        for at in np.ndindex(*m["loss_without"].shape):
            places = [" ".join(f"{x:.2f}" if np.isfinite(x) else "-" for x in m[name][at]) for name in OF_KINDS[:2]]
            scores = {name: f"{m[name][at]:.2f}" for name in shown}
            scores["previous_token"] += f" ({places[0]})"
            scores["induction_any_copy"] += f" ({places[1]})"
            rows.append([network, head_name(*at), *scores.values(), f"{m['loss_without'][at]:.3g}", f"{m['induction_without'][at]:.2f}"])
    header = ["", "head", *shown.values(), "loss without", "induction without"]
    return header, rows


def _of_kind(m: dict, kind: str) -> str:
    """The heads of one kind: `0.2: 0.84 in block 0`, from the best; where none is above THRESHOLD, the best and that it is not."""
    score, share, place = heads.kinds(m)[kind]

    def told(at):
        return f"{head_name(*at)}: {score[at]:.2f}{' in block' if kind == PREVIOUS else ', most to copy'} {place[at]}"

    found = sorted((at for at in np.ndindex(*share.shape) if share[at] > heads.THRESHOLD), key=lambda at: -share[at])
    return "; ".join(map(told, found)) if found else f"none ({told(heads.best_head(share))})"


def runs_table(runs: list[RunHeads]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a row per run."""
    rows = []
    for run in runs:
        loss = [f"{run.of_best(kind, 'loss_without'):.3g}" for kind in KINDS]
        kinds = [_of_kind(run.m, kind) for kind in KINDS]
        rows.append([run.name, *kinds, f"{run.m['loss']:.3g}", *loss, f"{run.of_best(PREVIOUS, 'induction_without'):.2f}"])
        rows[-1] += ["-" if time is None else f"{time:,}" for time in (_by(run, INDUCTION), run.timing.by("grokked"))]
    header = ["", "previous-token heads", "induction heads", "loss", "without previous", "without induction", "induction left"]
    return [*header, "induction by", "learned by"], rows


def _by(run: RunHeads, kind: str) -> int | None:
    bracket = run.rise(kind)
    return bracket and bracket[1]


def _time(runs: list[RunHeads], times: list) -> str:
    """The Kaplan-Meier median of times, None for what was not reached by a run's end."""
    ends = [run.timing.last_epoch if time is None else time for run, time in zip(runs, times)]
    return str(stats.median(ends, [time is not None for time in times]))


def medians_table(runs: list[RunHeads]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: what the networks of a cell have in common, as medians and ranges over seeds."""

    def over_runs(what, value, form="{:.2f}"):
        return [what, summary([np.atleast_1d(value(run)) for run in runs], form)]

    rows = []
    for kind, name in NAMES.items():
        rows += [
            over_runs(f"best {name} head: score", lambda run, kind=kind: run.kind(kind).score[run.best(kind)]),
            over_runs("its share above uniform attention", lambda run, kind=kind: run.kind(kind).share[run.best(kind)]),
            over_runs("loss without it", lambda run, kind=kind: run.of_best(kind, "loss_without"), "{:.3g}"),
            over_runs(f"{name} heads", lambda run, kind=kind: (run.kind(kind).share > heads.THRESHOLD).sum(), "{:g}"),
        ]
    rows += [
        over_runs("loss", lambda run: run.m["loss"], "{:.3g}"),
        over_runs("induction left without the best previous-token head", lambda run: run.of_best(PREVIOUS, "induction_without")),
        *([f"{name} by", _time(runs, [_by(run, kind) for run in runs])] for kind, name in NAMES.items()),
        ["learned by", _time(runs, [run.timing.by("grokked") for run in runs])],
    ]
    return ["quantity", "median (range)"], rows


NOTE = (
    f"Heads are LAYER.HEAD; scores are attention, averaged over {heads.N_SEQUENCES} drawn sequences, the same for every network. "
    "Previous token: to the position before, in the block in which that is most (in brackets: by block; the last layer does not "
    "compute the first). Induction: from a token of a later copy to what followed it in the earlier copies, summed (in brackets: by "
    "copy, from 0, over the copies after it). Same token: to that token itself in the earlier copies. Share: 0 for a head that attends "
    "to all that it sees alike, 1 for one whose every attention is there; a head is called one of a kind above "
    f"{heads.THRESHOLD}, and the best has the largest. Loss: over what the training loss counts; without: with a head's output zero, of "
    "the best of the kind; induction left: the best induction score without the best previous-token head. By: the first checkpoint at "
    "which the largest share was above half of its last value; learned by: as in summary.md. Times in epochs: Kaplan-Meier medians with "
    "95 % intervals."
)


def heads_markdown(results: Results, of_cells: list[Cell]) -> str:
    """heads.md: a section per cell."""
    parts = [f"# {results.path.name}: what the heads attend to"]
    for cell in of_kind(HEADS, of_cells):
        runs = heads_of(results, cell)
        if runs:
            parts += [f"## {cell.name}"] if cell.name else []
            parts += [markdown(*medians_table(runs)), markdown(*runs_table(runs))]
            parts.append(markdown(*every_head_table([(run.name, run.m) for run in runs])))
    return "\n\n".join([*parts, NOTE]) + "\n"


def write_head_tables(results: Results, of_cells: list[Cell]) -> None:
    """Write tables/heads.csv and heads.md, where a sweep has runs whose heads are measured."""
    if of_kind(HEADS, of_cells):
        folder = results.path / "tables"
        folder.mkdir(exist_ok=True)
        replace_text(folder / "heads.csv", csv_text(*heads_table(results)))
        replace_text(folder / "heads.md", heads_markdown(results, of_cells))
