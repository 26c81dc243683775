"""A sweep over dataset sizes: how many runs generalise at each size, and when."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jaxgrok.figures.style import TEST, TRAIN, make_figure, styled, words_figure
from jaxgrok.stats import Arrival, Median
from jaxgrok.tables.sizes import Sizes

ROOM = 1.1  # times the largest size, and 1 / ROOM times the smallest: the ends of the axis


@styled
def crossover_figure(sizes: Sizes) -> Figure:
    """Above: the share of runs that generalise at each size, with the crossover and its interval. Below: when they do.

    Below, dots are runs that memorised, or generalised, and crosses are runs that did not, at their last epochs. Lines
    join the medians.
    """
    if not sizes.of_sizes:
        return words_figure("no run has finished")
    figure, (share, times) = make_figure(7, 5.4, rows=2, sharex=True, height_ratios=(1, 1.5))
    tried = np.array([at.size for at in sizes.of_sizes])
    edges = (tried[0] / ROOM, tried[-1] * ROOM)
    share.plot(tried, [np.mean(at.generalised) for at in sizes.of_sizes], "o", color=TEST, ms=5)
    share.axhline(0.5, color="0.7", lw=0.6)
    share.set(ylabel="share that generalises", ylim=(-0.06, 1.06), xlim=edges, xscale="log")
    found = sizes.crossover
    if found.size is not None:
        low = edges[0] if found.low is None else found.low
        high = edges[1] if found.high is None else found.high
        for axes in (share, times):
            axes.axvline(found.size, color="k", lw=1, ls="--", label=f"crossover {found}" if axes is share else None)
            axes.axvspan(low, high, color="k", alpha=0.08, lw=0)
        share.legend(loc="lower right")
    memorised, grokked = zip(*(at.medians for at in sizes.of_sizes))
    _draw_times(times, tried, [at.memorised for at in sizes.of_sizes], memorised, "memorised", TRAIN)
    _draw_times(times, tried, [at.grokked for at in sizes.of_sizes], grokked, "generalised", TEST)
    times.set(yscale="log", xlabel="train examples", ylabel="epoch")
    for axis in (times.xaxis, times.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(NullFormatter())
    times.legend(loc="best")
    if sizes.part is not None:
        share.set_title(sizes.part, loc="left")
    return figure


def _draw_times(
    axes: Axes,
    tried: Int[np.ndarray, "sizes"],
    arrivals: Sequence[Sequence[Arrival]],
    medians: Sequence[Median],
    name: str,
    colour: str,
) -> None:
    """Draw the runs of each size, and a line through their medians."""
    for size, of_size in zip(tried, arrivals):
        for arrival in of_size:
            axes.plot(size, arrival.time, "." if arrival.reached else "x", color=colour, ms=5, alpha=0.7)
    middle = [np.nan if m.value is None else m.value for m in medians]
    axes.plot(tried, middle, color=colour, lw=1.6, label=f"{name}, median")
