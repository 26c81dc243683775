"""What the page shows of a sweep, as plain values: every number is one of the tables', curves' or measures'.

Arrays are packed: their shape, and their values as base64 of little-endian float32, float16 (weights) or int16.
"""

import base64
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxgrok.config import Config
from jaxgrok.measures import fourier, subjects
from jaxgrok.stats import Arrival, survival_curve
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.events import Outcome
from jaxgrok.store.results import AXES, KEYS, Cell, Results, RunRecord, text_of
from jaxgrok.store.schedule import schedule
from jaxgrok.store.steps import Damaged
from jaxgrok.tables import circuits as circuit_tables
from jaxgrok.tables import heads as head_tables
from jaxgrok.tables import parts as part_tables
from jaxgrok.tables import phase_diagram
from jaxgrok.tables import timing as timing_tables
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


def page_data(results: Results) -> dict[str, Any]:
    """Everything that the page of a sweep shows."""
    cells = results.cells
    runs = [(record, number) for number, cell in enumerate(cells) for record in cell.records]
    epochs, curves = _curves_of(results, [record for record, _ in runs])
    circuits, left_out = _circuits(results, cells)
    data = {
        "title": results.path.absolute().name,
        "about": _about(results),
        "timing": _table(timing_tables.readable_table(cells), timing_tables.NOTE),
        "waiting": timing_tables.waiting_line(results),
        "planes": [_plane(plane) for plane in phase_diagram.planes(cells)],
        "cells": [_cell(cell) for cell in cells],
        "runs": [_run(record, cells[number], number) for record, number in runs],
        "epochs": packed(epochs),
        "curves": packed(curves),
        "circuits": circuits,
        "circuits_left_out": left_out,
        "advice": "" if circuits else _advice(results, cells),
        "networks": _networks(results, cells),
    }
    if results.has_circuit_events:
        data["stages"] = _table(timing_tables.stages_table(cells), timing_tables.STAGES_NOTE)
    data["seeds"] = _across_seeds(results, cells)
    data["damage"] = [damage.line for damage in results.damage]
    return data


def _table(table: tuple[Sequence[Any], Sequence[Sequence[Any]]], note: str = "", name: str = "") -> dict[str, Any]:
    header, rows = table
    return {"name": name, "header": list(map(str, header)), "rows": [list(map(str, row)) for row in rows], "note": note}


# --- what was run -----------------------------------------------------------------------------------------------------


def _about(results: Results) -> list[tuple[str, str]]:
    """(label, text) of what was run, how, and by which command."""
    first, sessions = results.runs[0], results.sessions
    varying = {
        name: list(dict.fromkeys(text_of(name, record.coordinates[name]) for record in results.runs))
        for name in ("seed", *results.varying)
    }
    grid = "; ".join(f"{name} {_listed(values)}" for name, values in varying.items())
    names = AXES if first.config.modular else (*AXES, "n_train")
    rows = [("runs", f"{len(results.runs):,}: {grid}")]
    if constants := timing_tables.constants_line(results, names):
        rows.append(("the same in all", constants.removesuffix(".")))
    rows.append(("epochs trained", f"{sum(record.last_epoch for record in results.runs):,} over all runs"))
    for session in sessions[-1:]:
        versions = ", ".join(f"{name} {number}" for name, number in session.get("versions", {}).items())
        devices = session.get("devices", ["?"])
        rows.append(("made with", f"{versions}, on {len(devices)} x {devices[0]}"))
        if command := session.get("command"):
            rows.append(("command", " ".join(map(str, command))))
    return rows


def _listed(values: Sequence[str]) -> str:
    return " ".join(values) if len(values) <= 8 else f"{values[0]} ... {values[-1]} ({len(values)})"


# --- when -------------------------------------------------------------------------------------------------------------


def _cell(cell: Cell) -> dict[str, Any]:
    """A cell's name, how its runs ended, and the share of its runs that have not grokked yet, over time."""
    arrivals = list(timing_tables.event_times(cell, "grokked").arrivals.values())
    outcomes = {str(outcome): n for outcome, n in cell.outcomes.items() if n}
    return {
        "name": cell.name or "all runs",
        "outcomes": outcomes,
        "event": "learned" if cell.unlimited else "grokked",
        "survival": _survival(arrivals) if arrivals else None,
    }


def _survival(arrivals: Sequence[Arrival]) -> dict[str, Any]:
    time, share, low, high = survival_curve(arrivals)
    low, high = (np.where(np.isnan(band), share, band) for band in (low, high))
    end = max(arrival.time for arrival in arrivals)
    at, steps = [0.0, *time.tolist(), end], [[1.0, *x.tolist(), (x[-1] if len(x) else 1.0)] for x in (share, low, high)]
    return {"time": at, "share": steps[0], "low": steps[1], "high": steps[2], "runs": len(arrivals)}


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


def _run(record: RunRecord, cell: Cell, number: int) -> dict[str, Any]:
    timing = cell.timings[cell.records.index(record)]
    return {
        "run": record.number,
        "seed": record.seed,
        "cell": number,
        "outcome": str(timing.outcome),
        "last_epoch": timing.last_epoch,
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
    for row, record in enumerate(records):
        of_run = results.curves_of(record)
        for column, name in enumerate(CURVES):
            values = _at(of_run, name, evaluated)
            curves[row, column, : len(values)] = values
    return evaluated, curves


def _at(curves: RunCurves, name: str, epochs: Int[np.ndarray, "T"]) -> Float[np.ndarray, "t"]:
    """A run's curve at the epochs up to its last one."""
    recorded = curves.epoch_train if name == "train_loss" else curves.epoch_eval
    values = getattr(curves, name)
    if not len(recorded):
        return np.empty(0)
    edges = np.searchsorted(recorded, epochs[epochs <= recorded[-1]])
    if not len(edges):
        return np.empty(0)
    return np.fmax.reduceat(values, edges) if name.endswith("loss") else values[edges]


# --- circuits over training -------------------------------------------------------------------------------------------


def _circuits(results: Results, cells: Sequence[Cell]) -> tuple[list[dict[str, Any]], str]:
    """The measures over training of the analysed runs, as many as the page has room for, and a line on the others."""
    records = [
        record
        for cell in subjects.of_kind(subjects.CIRCUITS, cells)
        for record, found in zip(cell.records, _analysed(results, cell.records), strict=True)
        if found
    ]
    if not records:
        return [], ""
    p = records[0].config.p
    checkpoints = max(len(results.checkpoint_epochs(record)) for record in records)
    most = max(1, MOST_MEASURES // (checkpoints * (4 * (p // 2) + 10)))
    chosen = records[:: -(-len(records) // most)]
    names = [KEYS, "neurons_unclustered", "neurons_always_active", *SPECTRA, *LOSSES]
    found = []
    for record, series in zip(chosen, results.measured(chosen, names), strict=True):
        flat = subjects.flatten(series)
        keys = np.flatnonzero(flat[KEYS][-1]) + 1
        shown = {name: packed(flat[name]) for name in (*SPECTRA, *LOSSES, *names[1:3]) if name in flat}
        found.append({"run": record.number, "keys": keys.tolist(), "epoch": flat["epoch"].tolist(), **shown})
    line = "" if len(chosen) == len(records) else f"{len(chosen)} of {len(records)} analysed runs, evenly chosen."
    return found, line


def _advice(results: Results, cells: Sequence[Cell]) -> str:
    """How to get the circuits of a sweep that has some and was not analysed; empty if it has none."""
    if not subjects.of_kind(subjects.CIRCUITS, cells):
        return ""
    command = f"python scripts/analyze.py {shlex.quote(str(results.path))}"
    return f"No checkpoint was analysed yet. This adds the circuit over training and the network at work: {command}"


def _analysed(results: Results, records: Sequence[RunRecord]) -> list[bool]:
    known = {int(found["run"]) for found in results.last_analysed(list(records))}
    return [record.number in known for record in records]


# --- networks at work -------------------------------------------------------------------------------------------------


def computes_in_page(config: Config) -> bool:
    """Whether the page can compute a network's forward pass: one block of the post's transformer on a modular task."""
    return config.modular and config.arch == "transformer" and config.n_layers == 1 and config.act == "relu"


def _networks(results: Results, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The weights of each cell's first analysed run at up to four checkpoints, from before it grokked to its end."""
    chosen = []
    for cell in subjects.of_kind(subjects.CIRCUITS, cells):
        timings = dict(zip((record.number for record in cell.records), cell.timings, strict=True))
        finite = [record for record in cell.records if timings[record.number].outcome is not Outcome.DIVERGED]
        analysed = [record for record, found in zip(finite, _analysed(results, finite), strict=True) if found]
        if analysed and computes_in_page(cell.config):
            record, timing = analysed[0], timings[analysed[0].number]
            wanted = [0, timing.by("memorised"), timing.by("grokked"), timing.last_epoch]
            chosen.append((record, _nearest(results.checkpoint_epochs(record), wanted)))
    found, room = [], MOST_WEIGHT_BYTES
    for record, epochs in chosen:
        for epoch in epochs:
            try:
                params = subjects.flatten(results.network(record, epoch))
            except Damaged:
                continue  # `results.damage` names it
            room -= sum(2 * x.size for x in params.values())
            if found and room < 0:
                return found
            found.append(_network(results, record, epoch, params))
    return found


def _network(results: Results, record: RunRecord, epoch: int, params: dict[str, Any]) -> dict[str, Any]:
    """What the page needs to compute one network's logits, and to tell them as a sum of waves."""
    config, task = record.config, modular_task(record.config)
    names = (KEYS, "alpha", "neuron_frequency", "neuron_fve")
    (series,) = results.measured([record], names)
    m = {name: x[list(series["epoch"]).index(epoch)] for name, x in subjects.flatten(series).items()}
    keys = np.flatnonzero(m[KEYS]) + 1
    found = {
        **{"run": record.number, "epoch": epoch, "p": config.p, "n_heads": config.n_heads},
        **{"residual_factor": config.residual_factor, "keys": keys.tolist()},
        "clusters": np.where(m["neuron_fve"] > fourier.CLUSTERED, m["neuron_frequency"], 0).tolist(),
        "labels": packed(task.labels(record.seed), "int16"),
        "weights": {name: packed(x, "float16") for name, x in params.items()},
    }
    if fourier.has_waves(task):
        found |= {"alpha": m["alpha"][keys - 1].tolist(), "s": packed(fourier.wave_argument(task), "int16")}
    return found


def _nearest(epochs: Sequence[int], wanted: Sequence[int | None]) -> list[int]:
    """The saved epochs nearest to the wanted ones, in order."""
    return sorted({min(epochs, key=lambda saved: abs(saved - at)) for at in wanted if at is not None})


# --- across seeds -----------------------------------------------------------------------------------------------------


def _across_seeds(results: Results, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The tables of what the runs of each cell have learned: the parts of their task, keys, heads."""
    tables = []
    for parts in part_tables.parts_of(results):
        note = " ".join([*part_tables.order_lines(parts), part_tables.NOTE, part_tables.ORDER_NOTE])
        tables.append(_table(part_tables.readable_table(parts), note, parts.cell.name))
    for cell in subjects.of_kind(subjects.CIRCUITS, cells):
        if networks := results.last_analysed(cell.records):
            keys = circuit_tables.keys_table(circuit_tables.by_seed(cell, networks))
            tables.append(_table(keys, name=cell.name))
            tables.append(_table(circuit_tables.networks_table(networks), circuit_tables.NETWORKS_NOTE, cell.name))
    for cell in subjects.of_kind(subjects.HEADS, cells):
        if runs := head_tables.heads_of(results, cell):
            tables.append(_table(head_tables.medians_table(runs), name=cell.name))
            tables.append(_table(head_tables.runs_table(runs), head_tables.NOTE, cell.name))
    return tables
