"""A sweep over dataset sizes: how many runs generalise at each, and when."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxgrok.figures.style import TEST, TRAIN, make_figure, styled
from jaxgrok.tables.sizes import Sizes


@styled
def crossover_figure(sizes: Sizes) -> Figure:
    """Above, the share of runs that generalise at each size, with the crossover and its interval; below, when runs memorise and
    when they generalise (dots; crosses at the last epoch of those that did not), joined at the medians."""
    figure, (share, times) = make_figure(7, 5.4, rows=2, sharex=True, height_ratios=(1, 1.5))
    tried = np.array([at.size for at in sizes.of_sizes])
    share.plot(tried, [np.mean(at.generalised) for at in sizes.of_sizes], "o", color=TEST, ms=5)
    found = sizes.crossover
    edges = (tried[0] / 1.1, tried[-1] * 1.1)
    for axes in (share, times):
        if found.size is not None:
            axes.axvline(found.size, color="k", lw=1, ls="--", label=f"crossover {found}" if axes is share else None)
            axes.axvspan(found.low or edges[0], found.high or edges[1], color="k", alpha=0.08, lw=0)
    share.axhline(0.5, color="0.7", lw=0.6)
    share.set(ylabel="share that generalises", ylim=(-0.06, 1.06), xlim=edges, xscale="log")
    if found.size is not None:
        share.legend(loc="lower right")
    for index, (name, colour) in enumerate((("memorised", TRAIN), ("generalised", TEST))):
        medians = []
        for at in sizes.of_sizes:
            points = at.memorised if index == 0 else at.grokked
            for time, reached in points:
                times.plot(at.size, time, "." if reached else "x", color=colour, ms=5, alpha=0.7)
            medians.append(at.medians[index].value)
        middle = np.array([np.nan if value is None else value for value in medians])
        times.plot(tried, middle, color=colour, lw=1.6, label=f"{name}, median")
    times.set(yscale="log", xlabel="train examples", ylabel="epoch")
    for axis in (times.xaxis, times.yaxis):
        axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(mpl.ticker.NullFormatter())
    times.legend(loc="best")
    if sizes.part:
        share.set_title(sizes.part, loc="left")
    return figure
