"""What the page shows of a sweep, as plain values: every number is one of the tables', curves' or measures'.

Arrays are packed: their shape, and their values as base64 of little-endian float32, float16 (weights) or int16.
"""

import base64
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxgrok import scorecard
from jaxgrok.config import Config
from jaxgrok.measures import fourier, subjects
from jaxgrok.stats import Arrival, survival_curve
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.events import Outcome, Timing
from jaxgrok.store.results import AXES, KEYS, Cell, Results, RunRecord, text_of
from jaxgrok.store.schedule import schedule
from jaxgrok.store.steps import Damaged
from jaxgrok.tables import circuits as circuit_tables
from jaxgrok.tables import heads as head_tables
from jaxgrok.tables import parts as part_tables
from jaxgrok.tables import phase_diagram
from jaxgrok.tables import representations as representation_tables
from jaxgrok.tables import sizes as size_tables
from jaxgrok.tables import slingshots as slingshot_tables
from jaxgrok.tables import timing as timing_tables
from jaxgrok.task_names import is_operation
from jaxgrok.tasks import modular_task

MOST_POINTS = 800  # of a curve: more cannot be seen
MOST_CURVE_NUMBERS = 1_500_000  # of all curves: of more than 470 runs, each has fewer points
MOST_MEASURES = 1_500_000  # numbers of all circuits over training: those of about 60 runs of the mainline
MOST_WEIGHT_BYTES = 3_000_000  # of the networks at work, in half precision: six of the mainline
CURVES = ("train_loss", "test_loss", "train_acc", "test_acc")
# The measures of the circuit over training, by their paths in `measures.all`.
SPECTRA = ("W_E_frequency_norms", "W_L_frequency_norms", "neuron_clusters", "alpha")
LOSSES = ("loss/train", "loss/test", "restricted_loss/all", "excluded_loss/train")


def packed(array: Any, dtype: str = "float32") -> dict[str, Any]:
    """An array as plain values: its shape, dtype and base64 of its values."""
    values = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<"))
    return {"shape": list(values.shape), "dtype": dtype, "base64": base64.b64encode(values.tobytes()).decode()}


def page_data(results: Results, claims: Sequence[scorecard.Row] | None = None) -> dict[str, Any]:
    """Everything that the page of a sweep shows. claims: those that are measured on it; None means measure them."""
    cells = results.cells
    runs = [
        (record, timing, number)
        for number, cell in enumerate(cells)
        for record, timing in zip(cell.records, cell.timings, strict=True)
    ]
    epochs, curves = _curves_of(results, [record for record, _, _ in runs])
    analysed = _analysed(results, cells)
    circuits, circuits_left_out = _circuits(results, cells, analysed)
    networks, networks_left_out = _networks(results, cells, analysed)
    data = {
        "title": results.path.absolute().name,
        "about": _about(results),
        "timing": _table(timing_tables.readable_table(cells), timing_tables.NOTE),
        "waiting": timing_tables.waiting_line(results),
        "planes": [_plane(plane) for plane in phase_diagram.planes(cells)],
        "cells": [_cell(cell) for cell in cells],
        "runs": [_run(*run) for run in runs],
        "epochs": packed(epochs),
        "curves": packed(curves),
        "circuits": circuits,
        "circuits_left_out": circuits_left_out,
        "advice": "" if circuits else _advice(results, cells),
        "networks": networks,
        "networks_left_out": networks_left_out,
    }
    if results.has_circuit_events:
        data["stages"] = _table(timing_tables.stages_table(cells), timing_tables.STAGES_NOTE)
    data["seeds"] = _across_seeds(results, cells)
    claims = scorecard.rows_of(results) if claims is None else claims
    data["claims"] = _table(scorecard.table(claims), scorecard.NOTE) if claims else None
    data["damage"] = [damage.line for damage in results.damage]
    return data


def _table(table: tuple[Sequence[Any], Sequence[Sequence[Any]]], note: str = "", name: str = "") -> dict[str, Any]:
    header, rows = table
    return {"name": name, "header": list(map(str, header)), "rows": [list(map(str, row)) for row in rows], "note": note}


# --- what was run -----------------------------------------------------------------------------------------------------


def _about(results: Results) -> list[tuple[str, str]]:
    """(label, text) of what was run, how, and by which command."""
    first, session = results.runs[0], results.sessions[-1] if results.sessions else {}
    varying = {
        name: list(dict.fromkeys(text_of(name, record.coordinates[name]) for record in results.runs))
        for name in ("seed", *results.varying)
    }
    grid = "; ".join(f"{name} {_listed(values)}" for name, values in varying.items())
    names = AXES if first.config.listed else (*AXES, "n_train")
    notes = [(label, session.get(name)) for label, name in (("question", "question"), ("expected", "expect"))]
    rows = [(label, text) for label, text in notes if isinstance(text, str) and text]
    rows.append(("runs", f"{len(results.runs):,}: {grid}"))
    if constants := timing_tables.constants_line(results, names):
        rows.append(("the same in all", constants.removesuffix(".")))
    rows.append(("epochs trained", f"{sum(record.last_epoch for record in results.runs):,} over all runs"))
    if session:
        rows.append(("made with", timing_tables.made_with(results)))
        if command := session.get("command"):
            rows.append(("command", shlex.join(map(str, command))))
    return rows


def _listed(values: Sequence[str]) -> str:
    return " ".join(values) if len(values) <= 8 else f"{values[0]} ... {values[-1]} ({len(values)})"


# --- when -------------------------------------------------------------------------------------------------------------


def _cell(cell: Cell) -> dict[str, Any]:
    """A cell's name, and the share of its runs that have not grokked yet, over time."""
    arrivals = list(timing_tables.event_times(cell, "grokked").arrivals.values())
    return {
        "name": cell.name or "all runs",
        "event": "learned" if cell.unlimited else "grokked",
        "survival": _survival(arrivals) if arrivals else None,
    }


def _survival(arrivals: Sequence[Arrival]) -> dict[str, Any]:
    time, share, low, high = survival_curve(arrivals)
    low, high = (np.where(np.isnan(band), share, band) for band in (low, high))
    end = max(arrival.time for arrival in arrivals)
    at, steps = [0.0, *time.tolist(), end], [[1.0, *x.tolist(), (x[-1] if len(x) else 1.0)] for x in (share, low, high)]
    return {"time": at, "share": steps[0], "low": steps[1], "high": steps[2]}


def _plane(plane: phase_diagram.Plane) -> dict[str, Any]:
    """A plane with, in each field, what stands there, its median and how its runs ended; None where nothing was run."""
    header, rows = phase_diagram.readable_table(plane)
    fields = [[_field(plane.cells.get((y, x))) for x in plane.columns] for y in plane.rows]
    return {"name": plane.name, "header": header, "rows": [row[0] for row in rows], "fields": fields}


def _field(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "share": phase_diagram.share_text(cell),
        "time": phase_diagram.time_text(cell),
        "median": phase_diagram.arrived(cell).value,
        "others": {str(outcome): n for outcome, n in phase_diagram.others(cell).items()},
    }


def _run(record: RunRecord, timing: Timing, cell: int) -> dict[str, Any]:
    return {
        "run": record.number,
        "seed": record.seed,
        "cell": cell,
        "outcome": str(timing.outcome),
        "last_epoch": record.last_epoch,
        "memorised": timing.by("memorised"),
        "grokked": timing.by("grokked"),
    }


def _curves_of(
    results: Results, records: Sequence[RunRecord]
) -> tuple[Int[np.ndarray, "T"], Float[np.ndarray, "R 4 T"]]:
    """Epochs, equally far apart in their logarithm, and every run's curves there, NaN beyond its end.

    A loss is the largest from its epoch to the next one, so that spikes stay.
    """
    longest = max((record.last_epoch for record in records), default=0)
    evaluated = np.array(schedule(longest, results.eval_every), int)
    points = max(50, min(MOST_POINTS, MOST_CURVE_NUMBERS // max(1, 4 * len(records))))
    if len(evaluated) > points:
        at = np.unique(np.geomspace(1, len(evaluated), points).astype(int)) - 1
        evaluated = evaluated[at]
    curves = np.full((len(records), len(CURVES), len(evaluated)), np.nan, np.float32)
    # Batch by batch: the curves of many do not stay in memory together.
    for row, record in sorted(enumerate(records), key=lambda item: item[1].batch or 0):
        of_run = results.curves_of(record)
        for column, name in enumerate(CURVES):
            values = _at(of_run, name, evaluated)
            curves[row, column, : len(values)] = values
    return evaluated, curves


def _at(curves: RunCurves, name: str, epochs: Int[np.ndarray, "T"]) -> Float[np.ndarray, "t"]:
    """A run's curve at the epochs up to its last one; NaN where nothing was recorded from one to before the next."""
    recorded = curves.epoch_train if name == "train_loss" else curves.epoch_eval
    values = getattr(curves, name)
    if not len(recorded) or not len(epochs):
        return np.empty(0)
    edges = np.searchsorted(recorded, epochs[epochs <= recorded[-1]])
    found = np.fmax.reduceat(values, edges) if name.endswith("loss") else values[edges]
    return np.where(np.diff(edges, append=len(recorded)) > 0, found, np.nan)


# --- circuits over training -------------------------------------------------------------------------------------------


def _analysed(results: Results, cells: Sequence[Cell]) -> set[int]:
    """The numbers of the runs with circuits that were analysed."""
    records = [record for cell in subjects.of_kind(subjects.CIRCUITS, cells) for record in cell.records]
    return {record.number for record, _, _ in results.analysed({record.number for record in records}, (KEYS,))}


def _circuits(results: Results, cells: Sequence[Cell], analysed: set[int]) -> tuple[list[dict[str, Any]], str]:
    """The measures over training of the analysed runs, as many as the page has room for, and a line on the others."""
    records = [record for cell in cells for record in cell.records if record.number in analysed]
    if not records:
        return [], ""
    K = max(len(modular_task(record.config).group) for record in records) // 2
    checkpoints = max(len(results.checkpoint_epochs(record)) for record in records)
    most = max(1, MOST_MEASURES // (checkpoints * (4 * K + 10)))
    chosen = records[:: -(-len(records) // most)]
    names = ("neurons_unclustered", "neurons_always_active", *SPECTRA, *LOSSES)
    found = []
    for record, series in zip(chosen, results.measured(chosen, (KEYS, *names)), strict=True):
        flat = subjects.flatten(series)
        keys = np.flatnonzero(flat[KEYS][-1]) + 1
        # What a task or a network has not is NaN everywhere.
        shown = {name: packed(flat[name]) for name in names if name in flat and np.isfinite(flat[name]).any()}
        found.append({"run": record.number, "keys": keys.tolist(), "epoch": flat["epoch"].tolist(), **shown})
    line = "" if len(chosen) == len(records) else f"{len(chosen)} of {len(records)} analysed runs, evenly chosen."
    return found, line


def _advice(results: Results, cells: Sequence[Cell]) -> str:
    """How to get the circuits of a sweep that has some and was not analysed; empty if it has none."""
    if not subjects.of_kind(subjects.CIRCUITS, cells):
        return ""
    command = f"python scripts/analyze.py {shlex.quote(str(results.path))}"
    return f"No checkpoint was analysed yet. This adds the circuit over training and the network at work: {command}"


# --- networks at work -------------------------------------------------------------------------------------------------


class _AtWork(NamedTuple):
    """A network that the page can compute: of a run, at an epoch, with its measures by path. age: how many of the
    run's other networks are later."""

    cell: int
    record: RunRecord
    epoch: int
    measures: dict[str, np.ndarray]
    age: int


# Fields that must be the post's in a network that the page computes.
COMPUTED = ("n_layers", "act", "sequence", "attention", "attn_coeff", "tied", "norm")


def computes_in_page(config: Config) -> bool:
    """Whether the page can compute a network's forward pass: one block of the post's transformer on a modular task."""
    usual = Config(p=config.p, n_heads=config.n_heads, d_model=config.d_model)
    same = all(getattr(config, name) == getattr(usual, name) for name in COMPUTED)
    return (
        is_operation(config.task)
        and config.arch == "transformer"
        and same
        and not modular_task(config).is_multiplicative
    )


def _networks(results: Results, cells: Sequence[Cell], analysed: set[int]) -> tuple[list[dict[str, Any]], str]:
    """The weights of each cell's first analysed run at up to four of its analysed checkpoints, from before it grokked
    to its end, and a line on what is not there. If there is no room for all, the last ones come first."""
    first: list[tuple[int, RunRecord, Timing]] = []  # of each cell
    others = False
    for number, cell in enumerate(cells):
        runs = zip(cell.records, cell.timings, strict=True)
        runs = [(record, of) for record, of in runs if record.number in analysed and of.outcome is not Outcome.DIVERGED]
        others |= bool(runs) and not computes_in_page(cell.config)
        if runs and computes_in_page(cell.config):
            first.append((number, *runs[0]))
    all_series = results.measured([record for _, record, _ in first], (KEYS, "alpha", "neuron_frequency", "neuron_fve"))
    of_runs = zip(first, all_series, strict=True)
    wanted = [network for run, series in of_runs for network in _moments(*run, subjects.flatten(series))]
    wanted.sort(key=lambda network: (network.age, network.cell))
    found, room = [], MOST_WEIGHT_BYTES
    for network in wanted:
        try:
            params = subjects.flatten(results.network(network.record, network.epoch))
        except Damaged:
            continue  # `results.damage` names it
        room -= sum(2 * x.size for x in params.values())
        if found and room < 0:
            break
        found.append((network, params))
    found.sort(key=lambda entry: (entry[0].cell, entry[0].epoch))
    lines = [f"There is room for {len(found)} of {len(wanted)} networks."] if len(found) < len(wanted) else []
    lines += ["Only networks of one block with ReLU are computed here."] if others and wanted else []
    return [_network(network, params) for network, params in found], " ".join(lines)


def _moments(cell: int, record: RunRecord, timing: Timing, measures: dict[str, np.ndarray]) -> list[_AtWork]:
    """A run's networks at the analysed checkpoints nearest to its start, its two transitions, and its end."""
    epochs = measures["epoch"].tolist()
    wanted = [at for at in (0, timing.by("memorised"), timing.by("grokked"), record.last_epoch) if at is not None]
    rows = sorted({min(range(len(epochs)), key=lambda row: abs(epochs[row] - at)) for at in wanted}, reverse=True)
    return [
        _AtWork(cell, record, epochs[row], {name: x[row] for name, x in measures.items()}, age)
        for age, row in enumerate(rows)
    ]


def _network(network: _AtWork, params: dict[str, Any]) -> dict[str, Any]:
    """What the page needs to compute one network's logits, and to approximate them by a sum of waves."""
    config, m = network.record.config, network.measures
    task, keys = modular_task(config), np.flatnonzero(m[KEYS]) + 1
    found = {
        **{"run": network.record.number, "cell": network.cell, "epoch": network.epoch},
        **{"p": config.p, "n_heads": config.n_heads, "residual_factor": config.residual_factor},
        "keys": keys.tolist(),
        "clusters": np.where(m["neuron_fve"] > fourier.CLUSTERED, m["neuron_frequency"], 0).tolist(),
        "labels": packed(task.labels(network.record.seed), "int16"),
        "weights": {name: packed(x, "float16") for name, x in params.items()},
    }
    if fourier.has_waves(task):
        found |= {"alpha": m["alpha"][keys - 1].tolist(), "s": packed(fourier.wave_argument(task), "int16")}
    return found


# --- across seeds -----------------------------------------------------------------------------------------------------


def _sizes(results: Results) -> list[dict[str, Any]]:
    """Outcomes by the number of train examples, and the crossover, of a sweep over this number alone."""
    if results.varying != ["n_train"] or any(record.run.unlimited for record in results.runs):
        return []
    sizes = size_tables.sizes_of(results)
    if not sizes.of_sizes:
        return []
    note = " ".join([*size_tables.size_lines(sizes), size_tables.NOTE])
    return [_table(size_tables.readable_table(sizes), note, "By the number of train examples")]


def _slingshots(results: Results) -> list[dict[str, Any]]:
    """The spikes of the train loss, if any run has another loss than the exact one, which is asked for to see them."""
    if results.train_every > 1 or all(cell.config.loss in ("exact", "stablemax") for cell in results.cells):
        return []
    table = slingshot_tables.readable_table(slingshot_tables.slingshots_of_cells(results))
    return [_table(table, f"{slingshot_tables.NOTE} {slingshot_tables.FLOOR_NOTE}", "Slingshots")]


def _across_seeds(results: Results, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The tables of what the runs of each cell have learned: the parts of their task, keys, heads; of a sweep over the
    number of examples its crossover, and of one over the precision of the loss its slingshots."""
    tables = [*_sizes(results), *_slingshots(results)]
    for parts in part_tables.parts_of(results):
        note = " ".join([*part_tables.order_lines(parts), part_tables.NOTE, part_tables.ORDER_NOTE])
        tables.append(_table(part_tables.readable_table(parts), note, parts.cell.name))
    for cell in subjects.of_kind(subjects.CIRCUITS, cells):
        if networks := results.last_analysed(cell.records):
            keys = circuit_tables.keys_table(circuit_tables.by_seed(cell, networks))
            tables.append(_table(keys, name=cell.name))
            note = circuit_tables.networks_note([cell])
            tables.append(_table(circuit_tables.networks_table(networks), note, cell.name))
    for cell in subjects.of_kind(subjects.REPRESENTATIONS, cells):
        if runs := representation_tables.representations_of(results, cell):
            note = representation_tables.OVER_RUNS_NOTE
            tables.append(_table(representation_tables.medians_table(runs), note, cell.name))
            tables.append(_table(representation_tables.runs_table(runs), name=cell.name))
    for cell in subjects.of_kind(subjects.HEADS, cells):
        if runs := head_tables.heads_of(results, cell):
            tables.append(_table(head_tables.medians_table(runs), name=cell.name))
            tables.append(_table(head_tables.runs_table(runs), head_tables.NOTE, cell.name))
    return tables
