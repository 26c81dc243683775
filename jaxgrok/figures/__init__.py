"""One function per figure; each takes data, returns a matplotlib Figure, and knows no files. `write_figures` alone writes."""

from pathlib import Path

from jaxgrok.figures.timing import curves_figure, survival_figure
from jaxgrok.report import Cell

__all__ = ["curves_figure", "survival_figure", "write_figures"]


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
