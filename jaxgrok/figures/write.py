"""What the commands draw, and the names of the files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from matplotlib.figure import Figure

from jaxgrok.atomic import bad_place, replace_file
from jaxgrok.config import Config, fingerprint
from jaxgrok.figures import circuits, over_training
from jaxgrok.figures.heads import head_patterns_figure, heads_of_runs_figure, heads_over_training_figure
from jaxgrok.figures.parts import part_losses_figure, part_order_figure
from jaxgrok.figures.phase_diagram import phase_diagram_figure
from jaxgrok.figures.representations import representations_figure, representations_over_training_figure
from jaxgrok.figures.sizes import crossover_figure
from jaxgrok.figures.style import count_runs
from jaxgrok.figures.timing import curves_figure, survival_figure
from jaxgrok.measures import subjects
from jaxgrok.store.events import Outcome
from jaxgrok.store.results import Cell, Results, RunRecord
from jaxgrok.store.steps import Damaged
from jaxgrok.tables.heads import heads_of
from jaxgrok.tables.parts import Parts
from jaxgrok.tables.phase_diagram import planes
from jaxgrok.tables.representations import representations_of
from jaxgrok.tables.sizes import Sizes
from jaxgrok.tables.timing import stages as median_stages

OF_ONE_NETWORK = {
    "spectra": circuits.spectra_figure,
    "embedding-circles": circuits.embedding_circles_figure,
    "attention": circuits.attention_figure,
    "neuron-waves": circuits.neuron_waves_figure,
    "neuron-spectra": circuits.neuron_spectra_figure,
    "neuron-clusters": circuits.clusters_figure,
    "logit-spectrum": circuits.logit_spectrum_figure,
}
OF_ONE_INDUCTION_NETWORK = {"head-patterns": head_patterns_figure}
OF_ONE_NETWORK_ON_A_GROUP = {"representations": lambda config, params, m: representations_figure(config, [m])}
OF_ALL_RUNS = {
    "losses": over_training.losses_over_training_figure,
    "keys": over_training.keys_of_runs_figure,
    "gini": over_training.gini_figure,
    "weights": over_training.weights_figure,
}
OF_ONE_RUN = {
    "excluded-per-key": over_training.excluded_per_key_figure,
    "spectra-over-training": over_training.spectra_over_training_figure,
    "alpha-over-training": over_training.alpha_over_training_figure,
}
# What the names of the measures that figures over training need start with. A name is a path, see `Results.analysed`.
DRAWN = (
    *("loss/", "restricted_loss/", "excluded_loss", "alpha", "gini/", "sum_squared_weights/"),
    *("key_frequencies/", "W_E_", "W_L_freq"),
)


LONGEST = 120  # characters of a name, before its fingerprint


def _save(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    paths = [folder / f"{name}.png" for name in figures]
    with bad_place("figures", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path, figure in zip(paths, figures.values()):
            replace_file(path, figure.savefig)
    return paths


def _name(*parts: str) -> str:
    """The name of a file. A character that might lead out of the folder becomes `_`; then, and if the name is long, a
    fingerprint tells it from others."""
    whole = "-".join(word for part in parts for word in part.split())
    name = re.sub(r"[^\w.,=+-]", "_", whole)
    return name if name == whole and len(name) <= LONGEST else f"{name[:LONGEST]}-{fingerprint({'name': whole})}"


def _folder(results: Results, folder: Path | None) -> Path:
    return results.path / "figures" if folder is None else folder


def write_figures(results: Results, of_parts: Sequence[Parts] = (), folder: Path | None = None) -> list[Path]:
    """Write survival.png, a curves*.png per cell, parts*.png and order*.png per cell with parts, and phase-diagram.png
    where two axes vary.

    folder: None means the sweep's own `figures`, here and in the functions below. Returns the paths. Raises BadInput if
    the folder cannot be written.
    """
    drawn = {"survival": survival_figure(results.cells)} if results.cells else {}
    if found := planes(results.cells):
        drawn["phase-diagram"] = phase_diagram_figure(found)
    for cell in results.cells:
        curves = (results.curves_of(record) for record in cell.records)
        drawn[_name("curves", cell.name)] = curves_figure(cell, curves)
    for parts in of_parts:
        of_runs = [results.part_curves(run=record.number) for record in parts.cell.records]
        drawn[_name("parts", parts.cell.name)] = part_losses_figure(parts, of_runs)
        drawn[_name("order", parts.cell.name)] = part_order_figure(parts)
    return _save(_folder(results, folder), drawn)


def write_size_figures(results: Results, sizes: Sizes, folder: Path | None = None) -> list[Path]:
    """Write crossover.png and return its path."""
    return _save(_folder(results, folder), {"crossover": crossover_figure(sizes)})


def write_network_figures(config: Config, params: dict[str, Any], m: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write every figure of one network into a folder and return the paths.

    m: its measures, as `measures.all` or `heads.scores` returns them, as numpy.
    """
    kind = subjects.kind_of(config)
    of_kinds: dict[Any, dict[str, Any]] = {
        subjects.CIRCUITS: OF_ONE_NETWORK,
        subjects.HEADS: OF_ONE_INDUCTION_NETWORK,
        subjects.REPRESENTATIONS: OF_ONE_NETWORK_ON_A_GROUP,
    }
    draws = of_kinds.get(kind, {})
    return _save(Path(folder), {name: draw(config, params, m) for name, draw in draws.items()})


def write_list_figures(
    config: Config,
    params: dict[str, Any],
    measured: Sequence[dict[str, Any]],
    epochs: Sequence[int],
    folder: str | Path,
) -> list[Path]:
    """Write every figure of the last of several networks of one run, and of its circuits how they grew; returns the
    paths.

    params: of the last. measured: the measures of each, as numpy. epochs: of each.
    """
    paths = write_network_figures(config, params, measured[-1], folder)
    if subjects.kind_of(config) is not subjects.CIRCUITS:
        return paths
    flat = [subjects.flatten(of_one) for of_one in measured]
    stacked = {name: np.stack([of_one[name] for of_one in flat]) for name in flat[0] if name.startswith(DRAWN)}
    series = unflatten_dict(stacked, sep="/") | {"epoch": np.array(epochs)}
    drawn = {name: draw([series], None, scale="linear") for name, draw in OF_ALL_RUNS.items()}
    drawn |= {name: draw(series, None, scale="linear") for name, draw in OF_ONE_RUN.items()}
    return paths + _save(Path(folder), drawn)


def write_circuit_figures(results: Results, folder: Path | None = None) -> list[Path]:
    """Write what an analysed sweep shows of its circuits, and return the paths.

    For each cell: all runs over training, with the stages at their medians, and all runs side by side. For its first
    run that has not diverged: the keys over training and, in circuits*/, the network at its last checkpoint. Only one
    cell's measures are held at a time, a few kilobytes per checkpoint.
    """
    folder, paths = _folder(results, folder), []
    for cell in subjects.of_kind(subjects.CIRCUITS, results.cells):
        last = {int(found["run"]): found for found in results.last_analysed(cell.records)}
        if records := [record for record in cell.records if record.number in last]:
            paths += _write_circuits_of(results, cell, records, last, folder)
    return paths


def _write_circuits_of(
    results: Results, cell: Cell, records: list[RunRecord], last: dict[int, dict[str, Any]], folder: Path
) -> list[Path]:
    """Write the figures of one cell. records: its analysed runs. last: {run: its last measures, by path}."""
    names = [name for name in last[records[0].number] if name.startswith(DRAWN)]
    series, stages = results.measured(records, names), median_stages(cell)
    drawn = {_name(name, cell.name): draw(series, stages, scale="linear") for name, draw in OF_ALL_RUNS.items()}
    measured = {number: unflatten_dict(found, sep="/") for number, found in last.items()}
    runs = {f"seed {record.seed}": measured[record.number] for record in records}
    drawn[_name("key-spectra", cell.name)] = circuits.key_spectra_figure(runs)
    first = _first_finite(results, records)
    seed, of_first, stages = f"seed={first.seed}", series[records.index(first)], results.timing(first).stages()
    for name, draw in OF_ONE_RUN.items():
        drawn[_name(name, cell.name, seed)] = draw(of_first, stages, scale="linear")
    paths = _save(folder, drawn)
    return paths + _write_network_of(
        results, first, measured[first.number], folder / _name("circuits", cell.name, seed)
    )


def _first_finite(results: Results, records: Sequence[RunRecord]) -> RunRecord:
    """The first run that has not diverged, or the first of all if each has."""
    finite = (record for record in records if results.timing(record).outcome is not Outcome.DIVERGED)
    return next(finite, records[0])


def _write_network_of(results: Results, record: RunRecord, m: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures of a run's network. m: its measures at one checkpoint, with their `epoch` and `dtype`.

    If the network is damaged, nothing is drawn of it, and `results.damage` names it.
    """
    dtype = str(m["dtype"])
    config = subjects.config_for_analysis(record.config, dtype)
    try:
        params = results.params(int(m["epoch"]), run=record.number)
    except Damaged:
        return []
    return write_network_figures(config, subjects.cast(params, dtype), m, folder)


def write_head_figures(results: Results, folder: Path | None = None) -> list[Path]:
    """Write what an analysed sweep shows of its induction heads, and return the paths.

    For each cell: all runs over training. For its first run that has not diverged: every head over training and, in
    circuits*/, the best heads' patterns at its last checkpoint.
    """
    folder, paths = _folder(results, folder), []
    for cell in subjects.of_kind(subjects.HEADS, results.cells):
        runs = {run.record.number: run for run in heads_of(results, cell)}
        if not runs:
            continue
        first = runs[_first_finite(results, [run.record for run in runs.values()]).number]
        seed = f"seed={first.record.seed}"
        drawn = {_name("heads", cell.name): heads_of_runs_figure(list(runs.values()), cell.name)}
        curves = results.curves_of(first.record)
        drawn[_name("heads-over-training", cell.name, seed)] = heads_over_training_figure(first, curves)
        paths += _save(folder, drawn)
        paths += _write_network_of(results, first.record, first.m, folder / _name("circuits", cell.name, seed))
    return paths


def write_representation_figures(results: Results, folder: Path | None = None) -> list[Path]:
    """Write what an analysed sweep shows of its networks on groups, and return the paths: for each cell all runs at
    their last checkpoints, and its first run that has not diverged over training."""
    drawn = {}
    for cell in subjects.of_kind(subjects.REPRESENTATIONS, results.cells):
        runs = {run.record.number: run for run in representations_of(results, cell)}
        if runs:
            first = runs[_first_finite(results, [run.record for run in runs.values()]).number]
            several = count_runs(len(runs))
            title = f"{cell.name}: {several}" if cell.name else several
            of_all = representations_figure(first.record.config, [run.m for run in runs.values()], title)
            over_time = representations_over_training_figure(first, results.curves_of(first.record))
            drawn[_name("representations", cell.name)] = of_all
            drawn[_name("representations-over-training", cell.name, f"seed={first.record.seed}")] = over_time
    return _save(_folder(results, folder), drawn) if drawn else []
