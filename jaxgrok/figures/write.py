"""What commands draw, and under which names."""

from pathlib import Path

from flax.traverse_util import unflatten_dict

from jaxgrok.config import BadInput, Config
from jaxgrok.figures import circuits
from jaxgrok.figures import over_training as progress
from jaxgrok.figures.heads import head_patterns_figure, heads_of_runs_figure, heads_over_training_figure
from jaxgrok.figures.parts import part_losses_figure, part_order_figure
from jaxgrok.figures.sizes import crossover_figure
from jaxgrok.figures.timing import curves_figure, survival_figure
from jaxgrok.measures import checkpoints as analysis
from jaxgrok.tables.heads import heads_of
from jaxgrok.tables.parts import Parts
from jaxgrok.tables.sizes import Sizes
from jaxgrok.tables.timing import Cell

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
OF_ALL_RUNS = {
    "losses": progress.losses_over_training_figure,
    "keys": progress.keys_of_runs_figure,
    "gini": progress.gini_figure,
    "weights": progress.weights_figure,
}
OF_ONE_RUN = {
    "excluded-per-key": progress.excluded_per_key_figure,
    "spectra-over-training": progress.spectra_over_training_figure,
    "alpha-over-training": progress.alpha_over_training_figure,
}
# What the figures over training are drawn from; a measure's name is its path, see `Results.analysed`.
DRAWN = ("loss/", "restricted_loss/", "excluded_loss", "alpha", "gini/", "sum_squared_weights/", "key_frequencies/", "W_E_", "W_L_freq")


def _save(folder: Path, figures: dict) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.png" for name in figures]
        for path, figure in zip(paths, figures.values()):
            figure.savefig(path)
    except OSError as error:
        raise BadInput("figures", str(folder), f"a directory that can be written ({error.strerror})") from None
    return paths


def _name(*parts: str) -> str:
    return "-".join(word for part in parts for word in part.split())


def write_figures(results, of_cells: list[Cell], of_parts: list[Parts] = ()) -> list[Path]:
    """Write figures/survival.png, a figures/curves*.png per cell, and parts*.png and order*.png where it has parts; returns the paths."""
    drawn = {"survival": survival_figure(of_cells)} if of_cells else {}
    for cell in of_cells:
        drawn[_name("curves", cell.name)] = curves_figure(cell, [results.metrics.of_run(record["run"]) for record in cell.records])
    for parts in of_parts:
        drawn[_name("parts", parts.cell.name)] = part_losses_figure(parts)
        drawn[_name("order", parts.cell.name)] = part_order_figure(parts)
    return _save(results.path / "figures", drawn)


def write_size_figures(results, sizes: Sizes) -> list[Path]:
    """Write figures/crossover.png; returns its path."""
    return _save(results.path / "figures", {"crossover": crossover_figure(sizes)})


def write_network_figures(config: Config, params, m: dict, folder) -> list[Path]:
    """Write every figure of one network, m as `measures.all` or `heads.scores` returns it, into a folder; returns their paths."""
    draws = OF_ONE_INDUCTION_NETWORK if analysis.kind_of(config) == analysis.HEADS else OF_ONE_NETWORK
    return _save(Path(folder), {name: draw(config, params, m) for name, draw in draws.items()})


def write_circuit_figures(results, of_cells: list[Cell]) -> list[Path]:
    """Write what an analysed sweep shows of its circuits; returns the paths.

    For each cell, all runs over training (stages at their medians) and side by side; and of its first run that has not
    diverged, the keys over training and, in figures/circuits*/, the network at its last checkpoint. Holds one cell's
    curves at a time, a few kilobytes per checkpoint.
    """
    folder, paths = results.path / "figures", []
    for cell in analysis.of_kind(analysis.CIRCUITS, of_cells):
        last = {int(found["run"]): found for found in results.last_analysed(cell.records)}
        records = [record for record in cell.records if record["run"] in last]
        if not records:
            continue
        names = [name for name in last[records[0]["run"]] if name.startswith(DRAWN)]
        series = results.measured(records, names)
        drawn = {_name(name, cell.name): draw(series, cell.stages(), scale="linear") for name, draw in OF_ALL_RUNS.items()}
        measured = {run: unflatten_dict(found, sep="/") for run, found in last.items()}
        runs = {f"seed {record['seed']}": measured[record["run"]] for record in records}
        drawn[_name("key-spectra", cell.name)] = circuits.key_spectra_figure(runs)
        first = _first_finite(results, records)
        seed, of_first = f"seed={first['seed']}", series[records.index(first)]
        stages = results.timing(first).stages()
        drawn |= {_name(name, cell.name, seed): draw(of_first, stages, scale="linear") for name, draw in OF_ONE_RUN.items()}
        paths += _save(folder, drawn)
        paths += _write_network_of(results, first, measured[first["run"]], folder / _name("circuits", cell.name, seed))
    return paths


def _first_finite(results, records: list[dict]) -> dict:
    """The first run that has not diverged; the first of all where each has."""
    return next((record for record in records if results.timing(record).outcome != "diverged"), records[0])


def _write_network_of(results, record: dict, m: dict, folder) -> list[Path]:
    """Write the figures of a run's network, m its measures at one checkpoint, `epoch` and `dtype` among them."""
    dtype = str(m["dtype"])
    config, params = analysis.config_for_analysis(results.config(record), dtype), results.params(int(m["epoch"]), run=record["run"])
    return write_network_figures(config, analysis.cast(params, dtype), m, folder)


def write_head_figures(results, of_cells: list[Cell]) -> list[Path]:
    """Write what an analysed sweep shows of its induction heads; returns the paths.

    For each cell, all runs over training; and of its first run that has not diverged, every head over training and, in
    figures/circuits*/, the best heads' patterns at its last checkpoint.
    """
    folder, paths = results.path / "figures", []
    for cell in analysis.of_kind(analysis.HEADS, of_cells):
        runs = {run.record["run"]: run for run in heads_of(results, cell)}
        if not runs:
            continue
        first = runs[_first_finite(results, [run.record for run in runs.values()])["run"]]
        seed = f"seed={first.record['seed']}"
        drawn = {_name("heads", cell.name): heads_of_runs_figure(list(runs.values()), cell.name)}
        curves = results.metrics.of_run(first.record["run"])
        drawn[_name("heads-over-training", cell.name, seed)] = heads_over_training_figure(first, curves)
        paths += _save(folder, drawn)
        paths += _write_network_of(results, first.record, first.m, folder / _name("circuits", cell.name, seed))
    return paths
