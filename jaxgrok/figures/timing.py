"""When the runs of a sweep memorise and grok: their curves, and the share that has not got there yet."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxgrok.figures.style import MEDIAN, TEST, THIN, TRAIN, make_figure, median_over_runs, styled, thinned
from jaxgrok.stats import survival as stats
from jaxgrok.tables.released import Curves, shared
from jaxgrok.tables.timing import Cell

EVENT_COLOURS = {"memorised": TRAIN, "grokked": TEST}


def _name_of(event: str, of_cells: list[Cell]) -> str:
    """An event's name for people: on unlimited data `grokked` is learned."""
    unlimited = all(record["n_train"] is None for cell in of_cells for record in cell.records)
    return "learned" if event == "grokked" and unlimited else event


@styled
def curves_figure(cell: Cell, curves: list[dict]) -> Figure:
    """Loss and accuracy of every run of a cell (thin) and their median (thick), and when runs memorised and grokked.

    curves: one `Metrics.of_run` per run. Ticks at the foot are runs, dashed lines the Kaplan-Meier medians, shades their
    95 % intervals.
    """
    figure, (loss, accuracy) = make_figure(7, 5.6, rows=2, sharex=True, height_ratios=(3, 2))
    lines = [(loss, "epoch_train", "train_loss", TRAIN, "train"), (loss, "epoch_eval", "test_loss", TEST, "test")]
    lines += [(accuracy, "epoch_eval", "train_acc", TRAIN, "train"), (accuracy, "epoch_eval", "test_acc", TEST, "test")]
    for axes, x, y, colour, label in lines:
        for curve in curves:
            axes.plot(*thinned(curve[x] + 1, curve[y]), color=colour, **THIN)
        epochs, middle = median_over_runs([(curve[x], curve[y]) for curve in curves])
        axes.plot(*thinned(epochs + 1, middle), color=colour, **MEDIAN, label=f"{label}, median" if len(curves) > 1 else label)
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    accuracy.set(xscale="log", xlabel="epoch + 1", ylabel="accuracy", ylim=(-0.04, 1.04))
    for event, colour in EVENT_COLOURS.items():
        times = cell.times(event)
        m = cell.median(event)
        reached = [time for time, arrived in times.values() if arrived]
        for axes in (loss, accuracy):
            if reached:
                foot = {"ms": 8, "clip_on": False, "transform": axes.get_xaxis_transform()}
                (ticks,) = axes.plot(np.array(reached) + 1, np.zeros(len(reached)), "|", color=colour, **foot)
                ticks.set_in_layout(False)  # they may hang over the axis; the layout must not make room for that
            if m.value is not None:
                label = f"{_name_of(event, [cell])}, median {m.value:,.0f}" if axes is loss else None
                axes.axvline(m.value + 1, color=colour, ls="--", lw=1, label=label)
                if m.low is not None:
                    axes.axvspan(m.low + 1, (m.high or max(time for time, _ in times.values())) + 1, color=colour, alpha=0.1, lw=0)
    loss.legend(loc="lower left")
    runs = f"{len(curves)} runs" if len(curves) > 1 else "1 run"
    loss.set_title(f"{cell.name}: {runs}" if cell.name else runs, loc="left")
    return figure


@styled
def survival_figure(of_cells: list[Cell], event: str = "grokked") -> Figure:
    """The share of runs that have not had an event yet, per cell (Kaplan-Meier), with its 95 % band; crosses are censored runs."""
    figure, axes = make_figure(7, 3.8)
    name = _name_of(event, of_cells)
    end = max(time for cell in of_cells for time, _ in cell.times(event).values())
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(of_cells)))
    widths = np.linspace(3, 1.4, len(of_cells)) if len(of_cells) > 1 else [1.6]  # what lies below shows where curves coincide
    for cell, colour, width in zip(of_cells, colours, widths):
        times, reached = (np.array(column) for column in zip(*cell.times(event).values()))
        label = f"{cell.name}: {reached.sum()} of {len(reached)}" if cell.name else f"{reached.sum()} of {len(reached)} runs"
        if reached.any():
            time, alive, low, high = stats.survival(times, reached)
            time, alive = np.r_[0, time, end], np.r_[1, alive, alive[-1]]
            # Where survival is 0 or 1 there is no band: it closes on the curve.
            low, high = (np.r_[1, band, band[-1]] for band in (low, high))
            low, high = (np.where(np.isnan(band), alive, band) for band in (low, high))
            axes.fill_between(time, low, high, step="post", color=colour, alpha=0.15, lw=0)
        else:
            time, alive = np.array([0, end]), np.ones(2)
        axes.step(time, alive, where="post", color=colour, lw=width, label=label)
        censored = times[~reached]
        axes.plot(censored, alive[np.searchsorted(time, censored, side="right") - 1], "x", color=colour, ms=4)
    axes.set(xlabel="epoch", ylabel=f"share not yet {name}", ylim=(-0.03, 1.03), xlim=(0, end * 1.02))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(of_cells) <= 12:
        axes.legend(loc="best", title=f"{name}:")
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, title=f"{name}:")
    return figure


@styled
def rerun_figure(ours: Curves, theirs: Curves) -> Figure:
    """Train and test loss of a run of ours beside a released one, whose samples are dots; below, how far they differ."""
    figure, (loss, ratio) = make_figure(7.5, 5.4, rows=2, sharex=True, height_ratios=(3, 1.2))
    for part, colour in (("train", TRAIN), ("test", TEST)):
        loss.plot(*thinned(ours.epochs(part) + 1, ours.losses(part)), color=colour, lw=1.6, label=f"{part}, ours")
        look = {"lw": 0.9, "ls": (0, (3, 2))} if theirs.whole else {"marker": ".", "ls": "", "zorder": 3}
        label = "released" if part == "test" else None
        loss.plot(*thinned(theirs.epochs(part) + 1, theirs.losses(part)), color="k", label=label, **look)
        epochs, a, b = shared(ours, theirs, part)
        ratio.plot(*thinned(epochs + 1, a / b), color=colour, **({"lw": 1} if theirs.whole else {"marker": ".", "ls": ""}))
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    loss.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    low, high = ratio.get_ylim()
    far = low <= 0 or high / low > 5 or not theirs.whole
    ratio.set(yscale="log" if far else "linear", xscale="log", ylabel="ours / released", xlabel="epoch + 1")
    ratio.axhline(1, color="k", lw=0.6)
    return figure
