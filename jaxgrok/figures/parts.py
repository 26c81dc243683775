"""How the parts of a task are learned: each part's loss, when it is learned, and in which order across runs."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from jaxgrok.figures.style import (
    MEDIAN,
    OTHER,
    THIN,
    count_runs,
    make_figure,
    median_over_runs,
    note_on_ends,
    styled,
    thinned,
)
from jaxgrok.stats import order
from jaxgrok.tables.parts import Parts

MOST_NAMED = 12  # parts: more are named by a colour bar
BAR_TICKS = 7  # parts that the colour bar names
BEYOND = 1.5  # times the arrival of the last part, at which the upper panel ends
DARK = 0.35  # distance from a share of 1/2, beyond which a cell of the matrix is too dark for black text


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """{part: colour}, along a ramp in the order of the parts."""
    ramp = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(names))) if len(names) > 1 else ["C0"]
    return dict(zip(names, ramp))


def _named(parts: Parts, what: str) -> str:
    return f"{parts.cell.name}: {what}" if parts.cell.name else what


@styled
def part_losses_figure(parts: Parts, curves: Sequence[dict[str, Any]]) -> Figure:
    """The test loss of each part: every run (thin) and medians over runs (thick). The mean over parts is black.

    The upper panel has linear axes, as in the post, and ends at BEYOND times the arrival of the last part. If there are
    more than MOST_NAMED parts, it shows the first run alone, because medians would blur the drops of single parts. The
    lower panel shows the whole run on logarithmic axes.

    curves: for each run of the cell, `Results.part_curves`.
    """
    figure, panels = make_figure(8, 6.4, rows=2)
    many, n_runs = len(parts.names) > MOST_NAMED, len(curves)
    above = slice(1) if many else slice(None)
    times, reached = parts.times[above], parts.reached[above]
    last = times[reached].max() if reached.any() else np.inf
    ends = [int(of_run["epoch_eval"][-1]) for of_run in curves]
    for axes, of_runs in zip(panels, (curves[above], curves)):
        _draw_losses(axes, parts.names, of_runs)
        axes.set(xlabel="epoch + 1", ylabel="test loss (nats)")
    panels[0].set(xlim=(1, max(2, min(max(ends) + 1, BEYOND * last))), ylim=(0, None))
    panels[0].xaxis.set_major_formatter("{x:,.0f}")
    panels[1].set(xscale="log", yscale="log")
    of_all = count_runs(n_runs) + (f", medians{note_on_ends(ends)}" if n_runs > 1 else "")
    if many:
        panels[0].legend(handles=panels[0].lines[-1:], loc="upper right")
        _name_by_bar(figure, panels, parts)
    else:
        panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    if many and n_runs > 1:
        panels[1].set_title(of_all, loc="left")
        of_all = f"seed {parts.cell.records[0].seed}"
    panels[0].set_title(_named(parts, of_all), loc="left")
    return figure


def _draw_losses(axes: Axes, names: Sequence[str], curves: Sequence[dict[str, Any]]) -> None:
    many = len(names) > MOST_NAMED
    look: dict[str, Any] = {"lw": 0.8} if many else MEDIAN
    for part, colour in _colours(names).items():
        losses = [(of_run["epoch_eval"], of_run["test_part_loss"][part]) for of_run in curves]
        if len(curves) > 1 and not many:
            for epochs, loss in losses:
                axes.plot(*thinned(epochs + 1, loss), color=colour, **THIN)
        epochs, middle = median_over_runs(losses, log=True)
        axes.plot(*thinned(epochs + 1, middle), color=colour, **look, label=part)
    means = [
        (of_run["epoch_eval"], np.mean([of_run["test_part_loss"][part] for part in names], axis=0)) for of_run in curves
    ]
    epochs, middle = median_over_runs(means, log=True)
    axes.plot(*thinned(epochs + 1, middle), color="k", lw=1, ls="--", label="mean of the parts")


def _name_by_bar(figure: Figure, panels: Sequence[Axes], parts: Parts) -> None:
    """Name the parts by a colour bar beside the panels."""
    colours = ListedColormap(list(_colours(parts.names).values()))
    n = len(parts.names)
    bar = figure.colorbar(ScalarMappable(Normalize(-0.5, n - 0.5), colours), ax=list(panels), pad=0.01)
    ticks = np.unique(np.linspace(0, n - 1, BAR_TICKS).round().astype(int))
    bar.set_ticks(list(ticks), labels=[parts.names[i] for i in ticks], fontsize=7)


@styled
def part_order_figure(parts: Parts) -> Figure:
    """Left: when each part is learned in each run, and medians with 95 % intervals. Right: which part comes first.

    A dot is one part in one run. It is hollow, at the run's end, if the run did not learn the part. The colour on the
    right is the share of runs in which the part of the row came before the part of the column.
    """
    n = len(parts.names)
    figure, (arrivals, matrix) = make_figure(10, max(3.2, 0.9 + 0.2 * n), columns=2, width_ratios=(1.25, 1))
    labels = {"labels": parts.names, "fontsize": 8 if n <= MOST_NAMED else 6}
    _draw_arrivals(arrivals, parts)
    arrivals.set_yticks(range(n), **labels)
    c, runs = parts.concordance, len(parts.timings)
    of = f" of {c.runs}" if c.runs < runs else ""
    agreement = "" if np.isnan(c.W) else f"; Kendall's W{of} {c.W:.2f} (p {c.pvalue:.2g})"
    arrivals.set_title(_named(parts, f"{count_runs(runs)}{agreement}"), loc="left")
    drawn = _draw_order(matrix, parts)
    matrix.set_yticks(range(n), **labels)
    matrix.set_xticks(range(n), **labels, rotation=90)
    figure.colorbar(drawn, ax=matrix, label="share of runs", pad=0.02)
    return figure


def _draw_arrivals(axes: Axes, parts: Parts) -> None:
    """Draw a row per part: its runs, one slightly below the other, and the median with its interval."""
    rows, end = np.arange(len(parts.names)), parts.times.max()
    offsets = np.linspace(-0.25, 0.25, len(parts.timings)) if len(parts.timings) > 1 else [0]
    for offset, times, reached in zip(offsets, parts.times, parts.reached):
        axes.plot(times[reached], rows[reached] + offset, ".", color="C0", ms=4)
        axes.plot(times[~reached], rows[~reached] + offset, "o", mfc="none", color=OTHER, ms=3)
    for row, part in enumerate(parts.names):
        m = parts.learned(part)
        if m.value is not None:
            axes.plot(m.value, row, "|", color="k", ms=11, mew=1.6)
            if m.low is not None:
                axes.plot([m.low, end if m.high is None else m.high], [row, row], color="k", lw=0.8)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, max(end, 1) * 1.05), xlabel="learned at epoch")
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_order(axes: Axes, parts: Parts) -> Any:
    """Draw the share of runs in which the part of the row came before the part of the column."""
    before = order.before(parts.times, parts.reached)
    image = np.ma.masked_invalid(before.share)
    drawn = axes.imshow(image, cmap="RdBu", vmin=0, vmax=1)
    axes.set_facecolor("0.9")
    if len(parts.names) <= MOST_NAMED:
        for i, j in np.argwhere(before.decided > 0):
            colour = "w" if abs(image[i, j] - 0.5) > DARK else "k"
            look = {"ha": "center", "va": "center", "fontsize": 6, "color": colour}
            axes.text(j, i, f"{before.first[i, j]}/{before.decided[i, j]}", **look)
    axes.set_title("row before column\n(grey: no run decides)", loc="left")
    return drawn
