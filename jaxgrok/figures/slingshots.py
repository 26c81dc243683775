"""Slingshots: the train loss under each way of computing it, and when every run spiked."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxgrok.config import CHOICES
from jaxgrok.figures.style import MOST_POINTS, THIN, make_figure, styled
from jaxgrok.store.results import name_of
from jaxgrok.tables.slingshots import FLOOR, CellSlingshots

COLOURS = dict(zip(CHOICES["loss"], ("#2f7d5b", "#3b6fb6", "#c8553d", "#8a6bb1"), strict=True))
LOWEST = 1e-14  # nats: an axis goes no lower
ROW = 0.08  # inches of a run in the raster
GAP = 0.7  # rows between the cells of the raster
MOST_RASTER = 6  # inches
TITLE_WIDTH = 36  # characters in a line of a panel's title


def envelope(
    epochs: Int[np.ndarray, "T"], values: Float[np.ndarray, "T"]
) -> tuple[Int[np.ndarray, "drawn"], Float[np.ndarray, "drawn"]]:
    """At most MOST_POINTS of a curve: the smallest and the largest value of each of equally long stretches, in order.

    So both the spikes and the floor between them stay.
    """
    if len(epochs) <= MOST_POINTS:
        return epochs, values
    edges = np.linspace(0, len(epochs), MOST_POINTS // 2 + 1).astype(int)
    ends = [start + f(values[start:stop]) for start, stop in pairwise(edges) for f in (np.argmin, np.argmax)]
    kept = np.unique(ends)
    return epochs[kept], values[kept]


def _name(loss: str, setting: tuple) -> str:
    return name_of((("loss", loss), *setting))


@styled
def slingshots_figure(cells: Sequence[CellSlingshots]) -> Figure:
    """Train losses, with one column per way of computing the loss and one row per setting; below, every run's spikes.

    All panels share one logarithmic axis, with the floor of log_softmax in float32. In each panel one run is coloured,
    with triangles at the peaks of its spikes, and the others are grey.
    """
    modes = [mode for mode in CHOICES["loss"] if any(cell.loss == mode for cell in cells)]
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    ordered = sorted(cells, key=lambda cell: (modes.index(cell.loss), settings.index(cell.setting)))
    runs = [found for cell in cells for found in cell.found]
    end = max(len(found.loss) for found in runs)

    raster = max(0.7, min(ROW * (len(runs) + len(cells)), MOST_RASTER), 0.15 * len(cells))
    heights = [2.1] * len(settings) + [raster]
    size = max(7, 1 + 2.7 * len(modes)), sum(heights) + 0.5 * len(heights) + 0.3
    options: dict[str, Any] = {"rows": len(heights), "columns": len(modes), "height_ratios": heights, "squeeze": False}
    figure, axes = make_figure(*size, **options)
    for unused in axes[-1]:
        unused.remove()
    by_place = {(cell.setting, cell.loss): cell for cell in cells}
    limits = _loss_limits(cells)
    for i, setting in enumerate(settings):
        for j, mode in enumerate(modes):
            panel = axes[i, j]
            _draw_panel(panel, by_place.get((setting, mode)), limits, end)
            panel.set_title(textwrap.fill(_name(mode, setting), TITLE_WIDTH), loc="left", color=COLOURS[mode])
            panel.tick_params(labelleft=j == 0, labelbottom=i == len(settings) - 1)
        axes[i, 0].set_ylabel("train loss (nats)")
        # Beside the panel: curves lie along the line, and text on it could not be read.
        last = axes[i, -1]
        last.text(1.02, FLOOR, "$2^{-23}$ =\n1.19e-7", transform=last.get_yaxis_transform(), va="center", fontsize=7)
    figure.suptitle(_explanation(cells), x=0.01, ha="left", fontsize=8)
    _draw_raster(figure.add_subplot(axes[0, 0].get_gridspec()[-1, :]), ordered, end)
    return figure


def _loss_limits(cells: Sequence[CellSlingshots]) -> tuple[float, float]:
    """The ends of the axis that all panels share."""
    runs = [found for cell in cells for found in cell.found]
    lowest = min(float(found.loss[found.loss > 0].min(initial=FLOOR)) for found in runs)
    return max(lowest / 4, LOWEST), 3 * max(float(found.loss.max(initial=1)) for found in runs)


def _explanation(cells: Sequence[CellSlingshots]) -> str:
    runs = [found for cell in cells for found in cell.found]
    seeds = "first run of each panel in colour, the others grey" if len(runs) > len(cells) else "one run a panel"
    zeros = "; losses of 0 at the foot" if any(found.at_most(0) for found in runs) else ""
    return f"{seeds}; \N{BLACK DOWN-POINTING TRIANGLE} peaks of its spikes{zeros}"


def _draw_panel(axes: Axes, cell: CellSlingshots | None, limits: tuple[float, float], end: int) -> None:
    if cell is None:
        axes.text(0.5, 0.5, "no run has begun", transform=axes.transAxes, ha="center", color="0.35")
    else:
        _draw_losses(axes, cell, limits[0])
    axes.axhline(FLOOR, color="k", lw=0.8, ls=(0, (4, 3)), zorder=3)
    axes.set(yscale="log", ylim=limits, xlim=(0, end))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_losses(axes: Axes, cell: CellSlingshots, bottom: float) -> None:
    """Draw every run of a cell: the first in colour on top, with its spikes marked, and the others thin."""
    for found in reversed(cell.found):
        look = {"color": COLOURS[cell.loss], "lw": 0.9} if found is cell.found[0] else {"color": "0.4", **THIN}
        axes.plot(*envelope(found.epochs, np.maximum(found.loss, bottom)), **look)
    spikes = cell.found[0].spikes
    axes.plot(
        [spike.peak_epoch for spike in spikes], [spike.peak for spike in spikes], "v", color="k", ms=3.5, zorder=4
    )


def _draw_raster(axes: Axes, cells: Sequence[CellSlingshots], end: int) -> None:
    """Draw a row per run: a grey line as long as it trained, with a tick at the peak of each spike."""
    row, middles = 0.0, []
    for cell in cells:
        for found in cell.found:
            axes.plot([0, len(found.loss)], [row, row], color="0.88", lw=0.6, zorder=1)
            peaks = [spike.peak_epoch for spike in found.spikes]
            axes.eventplot(peaks, lineoffsets=row, linelengths=0.8, linewidths=1.1, colors=COLOURS[cell.loss], zorder=2)
            row += 1
        middles.append(row - (len(cell.found) + 1) / 2)
        row += GAP
    axes.set_yticks(middles, labels=[_name(cell.loss, cell.setting) for cell in cells], fontsize=7)
    for label, cell in zip(axes.get_yticklabels(), cells):
        label.set_color(COLOURS[cell.loss])
    axes.set(xlim=(0, end), ylim=(row - GAP, -1), xlabel="epoch of the spike's peak, a row per run")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
