"""One function per figure; each takes data, returns a matplotlib Figure, and knows no files. `write_figures` alone writes.

`timing`: a sweep's curves and when runs grok. `circuits`: what one trained network computes with, or many side by side.
`progress`: how that grows over training.
"""

from pathlib import Path

from jaxgrok.figures.circuits import (
    attention_figure,
    clusters_figure,
    embedding_circles_figure,
    key_spectra_figure,
    logit_spectrum_figure,
    neuron_spectra_figure,
    neuron_waves_figure,
    spectra_figure,
)
from jaxgrok.figures.progress import (
    alpha_over_training_figure,
    excluded_per_key_figure,
    gini_figure,
    keys_of_runs_figure,
    losses_over_training_figure,
    spectra_over_training_figure,
    weights_figure,
)
from jaxgrok.figures.timing import curves_figure, survival_figure
from jaxgrok.report import Cell

__all__ = [
    "alpha_over_training_figure",
    "attention_figure",
    "clusters_figure",
    "curves_figure",
    "embedding_circles_figure",
    "excluded_per_key_figure",
    "gini_figure",
    "key_spectra_figure",
    "keys_of_runs_figure",
    "logit_spectrum_figure",
    "losses_over_training_figure",
    "neuron_spectra_figure",
    "neuron_waves_figure",
    "spectra_figure",
    "spectra_over_training_figure",
    "survival_figure",
    "weights_figure",
    "write_figures",
]


def write_figures(results, of_cells: list[Cell]) -> list[Path]:
    """Write figures/survival.png and a figures/curves*.png per cell; returns their paths."""
    folder = results.path / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {"survival": survival_figure(of_cells)} if of_cells else {}
    for cell in of_cells:
        name = "-".join(["curves", *cell.name.split()])
        drawn[name] = curves_figure(cell, [results.metrics.of_run(record["run"]) for record in cell.records])
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths
