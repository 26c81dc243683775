"""Slingshots: the train loss under each way of computing it, and when every run spiked."""

import textwrap
from itertools import pairwise

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxgrok.config import CHOICES
from jaxgrok.figures.style import MOST_POINTS, THIN, make_figure, styled
from jaxgrok.tables.slingshots import FLOOR, Cell
from jaxgrok.tables.timing import name_of

COLOURS = dict(zip(CHOICES["loss"], ("#2f7d5b", "#3b6fb6", "#c8553d")))
LOWEST = 1e-14  # nats: an axis goes no lower
ROW = 0.08  # inches of a run in the raster


def envelope(epochs, values):
    """At most MOST_POINTS of a curve [T]: the smallest and the largest of each of as many stretches of equal length, in order,
    so that both spikes and the floor between them stay."""
    if len(epochs) <= MOST_POINTS:
        return epochs, values
    edges = np.linspace(0, len(epochs), MOST_POINTS // 2 + 1).astype(int)
    ends = [start + f(values[start:stop]) for start, stop in pairwise(edges) for f in (np.argmin, np.argmax)]
    kept = np.unique(ends)
    return epochs[kept], values[kept]


def _name(mode, setting) -> str:
    return name_of((("loss", mode), *setting))


def _draw_losses(axes, cell: Cell, bottom):
    """Every run of a cell, thin; the first on top, with its spikes marked."""
    for found in reversed(cell.found):
        look = {"color": COLOURS[cell.loss], "lw": 0.9} if found is cell.found[0] else {"color": "0.4", **THIN}
        axes.plot(*envelope(found.epochs, np.maximum(found.loss, bottom)), **look)
    spikes = cell.found[0].spikes
    axes.plot([spike.peak_epoch for spike in spikes], [spike.peak for spike in spikes], "v", color="k", ms=3.5, zorder=4)


def _draw_raster(axes, of_cells: list[Cell], end: int):
    """A row per run: a grey line as long as it trained, a tick at the peak of each spike."""
    row, names = 0, []
    for cell in of_cells:
        for found in cell.found:
            axes.plot([0, len(found.loss)], [row, row], color="0.88", lw=0.6, zorder=1)
            peaks = [spike.peak_epoch for spike in found.spikes]
            axes.eventplot(peaks, lineoffsets=row, linelengths=0.8, linewidths=1.1, colors=COLOURS[cell.loss], zorder=2)
            row += 1
        names.append((row - (len(cell.found) + 1) / 2, cell))
        row += 0.7
    axes.set_yticks([at for at, _ in names], labels=[_name(cell.loss, cell.setting) for _, cell in names], fontsize=7)
    for label, (_, cell) in zip(axes.get_yticklabels(), names):
        label.set_color(COLOURS[cell.loss])
    axes.set(xlim=(0, end), ylim=(row - 0.7, -1), xlabel="epoch of the spike's peak, a row per run")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


@styled
def slingshots_figure(of_cells: list[Cell]) -> Figure:
    """Train losses, a column per way of computing the loss and a row per setting, on one logarithmic axis with the float32 floor;
    below, every run's spikes. In each panel one run is drawn in colour, triangles at the peaks of its spikes, the others are grey."""
    modes = [mode for mode in CHOICES["loss"] if any(cell.loss == mode for cell in of_cells)]
    settings = list(dict.fromkeys(cell.setting for cell in of_cells))
    ordered = sorted(of_cells, key=lambda cell: (modes.index(cell.loss), settings.index(cell.setting)))
    runs = [found for cell in of_cells for found in cell.found]
    end = max(len(found.loss) for found in runs)
    lowest = min(float(found.loss[found.loss > 0].min(initial=FLOOR)) for found in runs)
    bottom = max(min(lowest, FLOOR) / 4, LOWEST)
    top = 3 * max(float(found.loss.max(initial=1)) for found in runs)

    raster = max(0.7, min(ROW * (len(runs) + len(of_cells)), 6), 0.15 * len(of_cells))
    heights = [2.1] * len(settings) + [raster]
    size = max(7, 1 + 2.7 * len(modes)), sum(heights) + 0.5 * len(heights) + 0.3
    figure, axes = make_figure(*size, rows=len(heights), columns=len(modes), height_ratios=heights, squeeze=False)
    for unused in axes[-1]:
        unused.remove()
    by_place = {(cell.setting, cell.loss): cell for cell in of_cells}
    for i, setting in enumerate(settings):
        for j, mode in enumerate(modes):
            panel, cell = axes[i, j], by_place.get((setting, mode))
            if cell is None:
                panel.text(0.5, 0.5, "no run has begun", transform=panel.transAxes, ha="center", color="0.35")
            else:
                _draw_losses(panel, cell, bottom)
            panel.axhline(FLOOR, color="k", lw=0.8, ls=(0, (4, 3)), zorder=3)
            panel.set(yscale="log", ylim=(bottom, top), xlim=(0, end))
            panel.set_title(textwrap.fill(_name(mode, setting), 36), loc="left", color=COLOURS[mode])
            panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.tick_params(labelleft=j == 0, labelbottom=i == len(settings) - 1)
        axes[i, 0].set_ylabel("train loss (nats)")
        # Beside the panel: curves lie along the line, and text on it could not be read.
        panel.text(1.02, FLOOR, "$2^{-23}$ =\n1.19e-7", transform=panel.get_yaxis_transform(), va="center", fontsize=7)
    seeds = "first run of each panel in colour, the others grey" if len(runs) > len(of_cells) else "one run a panel"
    zeros = "; losses of 0 at the foot" if any(found.at_most(0) for found in runs) else ""
    figure.suptitle(f"{seeds}; \N{BLACK DOWN-POINTING TRIANGLE} peaks of its spikes{zeros}", x=0.01, ha="left", fontsize=8)
    below = figure.add_subplot(axes[0, 0].get_gridspec()[-1, :])
    _draw_raster(below, ordered, end)
    below.xaxis.set_major_formatter("{x:,.0f}")
    return figure
