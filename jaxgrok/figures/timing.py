"""When the runs of a sweep memorise and grok: their curves, and the share that has not grokked yet."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxgrok.figures.style import (
    MEDIAN,
    TEST,
    THIN,
    TRAIN,
    Curve,
    make_figure,
    mark_at_foot,
    median_over_runs,
    name_median,
    sampled,
    styled,
    thinned,
    words_figure,
)
from jaxgrok.stats import Arrival, survival_curve
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.results import Cell
from jaxgrok.tables.released import LossCurves, shared
from jaxgrok.tables.timing import event_times

EVENT_COLOURS = {"memorised": TRAIN, "grokked": TEST}
MOST_LINES = 200  # runs that are drawn thin
MOST_LARGE = 12  # cells named in the usual size beside a survival figure; more are named in a smaller one
CENSORED, RULED_OUT = "x", "D"  # markers of runs that did not reach an event
FAR = 5  # largest / smallest ratio of two losses from which their axis is logarithmic


def _name_of(event: str, cells: Sequence[Cell]) -> str:
    """An event's name for people: on unlimited data, `grokked` is called learned."""
    return "learned" if event == "grokked" and all(cell.unlimited for cell in cells) else event


@styled
def curves_figure(cell: Cell, curves: Iterable[RunCurves]) -> Figure:
    """Loss and accuracy of every run of a cell (thin), their median (thick), and when the runs memorised and grokked.
    Where the train losses of half of the runs round to exactly zero, also the median share of such targets (dotted).

    Of more than MOST_LINES runs only every n-th is drawn thin. Ticks at the foot are runs. Dashed lines are the medians
    of the events, and shades their 95 % intervals.

    curves: one per run of the cell. They are gone through once and not kept.
    """
    figure, (loss, accuracy) = make_figure(7, 5.6, rows=2, sharex=True, height_ratios=(3, 2))
    panels = {"train_loss": loss, "test_loss": loss, "train_acc": accuracy, "test_acc": accuracy}
    samples: dict[str, list[Curve]] = {name: [] for name in panels}
    zeros: list[Curve] = []
    ends: list[int] = []
    shared_epochs: dict[tuple[str, int], np.ndarray] = {}  # runs of one length need not keep their own
    every = -(-len(cell.records) // MOST_LINES)
    for number, of_run in enumerate(curves):
        ends.append(of_run.last_epoch)
        for name, axes in panels.items():
            epochs = of_run.epoch_train if name == "train_loss" else of_run.epoch_eval
            values = getattr(of_run, name)
            at, sample = sampled(epochs, values)
            samples[name].append((shared_epochs.setdefault((name, of_run.last_epoch), at), sample))
            if number % every == 0:
                axes.plot(*thinned(epochs + 1, values), color=_colour_of(name), **THIN)
        if of_run.train_zero is not None:
            known = np.isfinite(of_run.train_zero)  # an earlier version did not record it
            zeros.append(sampled(of_run.epoch_eval[known], of_run.train_zero[known]))
    epochs, middle = median_over_runs(zeros)
    if (middle > 0).any():
        accuracy.plot(epochs + 1, middle, color="0.3", ls=":", lw=1.6, label="train losses that are exactly zero")
        accuracy.legend(loc="upper left")
    for name, axes in panels.items():
        epochs, middle = median_over_runs(samples[name])
        part = name.split("_")[0]
        label = f"{part}, median" if len(ends) > 1 else part
        axes.plot(epochs + 1, middle, color=_colour_of(name), **MEDIAN, label=label)
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    accuracy.set(xscale="log", xlabel="epoch + 1", ylabel="accuracy", ylim=(-0.04, 1.04))
    for event, colour in EVENT_COLOURS.items():
        for axes in (loss, accuracy):
            _draw_event(axes, cell, event, colour, labelled=axes is loss)
    loss.legend(loc="lower left")
    runs = name_median(ends, lines=-(-len(ends) // every))
    loss.set_title(f"{cell.name}: {runs}" if cell.name else runs, loc="left")
    return figure


def _colour_of(curve: str) -> str:
    return TRAIN if curve.startswith("train") else TEST


def _draw_event(axes: Axes, cell: Cell, event: str, colour: str, labelled: bool) -> None:
    """Draw when each run reached an event, the median, and its interval."""
    times = event_times(cell, event)
    m = times.median
    if reached := [arrival.time for arrival in times.arrivals.values() if arrival.reached]:
        mark_at_foot(axes, reached, colour)
    if m.value is None:
        return
    label = f"{_name_of(event, [cell])}, median {m.value:,.0f}" if labelled else None
    axes.axvline(m.value + 1, color=colour, ls="--", lw=1, label=label)
    if m.low is not None:
        high = m.longest if m.high is None else m.high
        axes.axvspan(m.low + 1, high + 1, color=colour, alpha=0.1, lw=0)


@styled
def survival_figure(cells: Sequence[Cell], event: str = "grokked") -> Figure:
    """The share of runs that have not reached an event yet, per cell, with its 95 % band.

    The share is the Kaplan-Meier estimate, or 1 minus the cumulative incidence if any run of the cell diverged. Crosses
    are censored runs, at their last epochs. Diamonds are runs that diverged and so never reach the event.
    """
    name = _name_of(event, cells)
    by_cell = [list(event_times(cell, event).arrivals.values()) for cell in cells]
    if not any(by_cell):
        return words_figure(f"no run for which it is known when it {name}")
    end = max(arrival.time for arrivals in by_cell for arrival in arrivals)
    figure, axes = make_figure(8, 3.8)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(cells)))
    # Lines below are wider, so that they show where curves coincide.
    widths = np.linspace(3, 1.4, len(cells)) if len(cells) > 1 else [1.6]
    for cell, arrivals, colour, width in zip(cells, by_cell, colours, widths):
        if arrivals:
            _draw_survival(axes, cell.name, arrivals, end, color=colour, lw=width)
    axes.set(xlabel="epoch", ylabel=f"share not yet {name}", ylim=(-0.03, 1.03), xlim=(0, max(end, 1) * 1.02))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if any(arrival.ruled_out for arrivals in by_cell for arrival in arrivals):
        look: dict[str, Any] = {"color": "0.3", "ls": "", "ms": 4}
        axes.plot([], [], CENSORED, label=f"end of a run not yet {name}", **look)
        axes.plot([], [], RULED_OUT, mfc="none", label="a run diverged", **look)
    size = 9 if len(cells) <= MOST_LARGE else 7
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=size, title=f"{name}:")
    return figure


def _draw_survival(axes: Axes, cell: str, arrivals: Sequence[Arrival], end: float, color: Any, lw: float) -> None:
    """Draw one cell's curve from 0 to `end`, its band, and a marker for each run that did not arrive."""
    time, surviving, low, high = survival_curve(arrivals)
    # Where the share is 0 or 1 there is no band: it closes on the curve.
    low, high = (np.where(np.isnan(band), surviving, band) for band in (low, high))
    surviving, low, high = (np.r_[1, share, share[-1]] for share in (surviving, low, high))
    time = np.r_[0, time, end]
    axes.fill_between(time, low, high, step="post", color=color, alpha=0.15, lw=0)
    arrived = sum(arrival.reached for arrival in arrivals)
    count = f"{arrived} of {len(arrivals)}"
    axes.step(time, surviving, where="post", color=color, lw=lw, label=f"{cell}: {count}" if cell else f"{count} runs")

    def mark(times: list[float], marker: str, **look: Any) -> None:
        at = surviving[np.searchsorted(time, times, side="right") - 1]
        axes.plot(times, at, marker, color=color, ms=4, **look)

    waiting = [arrival for arrival in arrivals if not arrival.reached]
    mark([arrival.time for arrival in waiting if not arrival.ruled_out], CENSORED)
    mark([arrival.time for arrival in waiting if arrival.ruled_out], RULED_OUT, mfc="none")


@styled
def rerun_figure(ours: LossCurves, theirs: LossCurves) -> Figure:
    """Train and test loss of one of our runs beside a released one; below, the ratio of the two.

    If the released run gives only samples of its curves, they are dots.
    """
    figure, (loss, ratio) = make_figure(7.5, 5.4, rows=2, sharex=True, height_ratios=(3, 1.2))
    dots: dict[str, Any] = {"marker": ".", "ls": ""}
    look: dict[str, Any] = {"lw": 0.9, "ls": (0, (3, 2))} if theirs.whole else dots | {"zorder": 3}
    for part, colour in (("train", TRAIN), ("test", TEST)):
        loss.plot(*thinned(ours.epochs(part) + 1, ours.losses(part)), color=colour, lw=1.6, label=f"{part}, ours")
        label = "released" if part == "test" else None
        loss.plot(*thinned(theirs.epochs(part) + 1, theirs.losses(part)), color="k", label=label, **look)
        epochs, a, b = shared(ours, theirs, part)
        ratio.plot(*thinned(epochs + 1, _ratio(a, b)), color=colour, **({"lw": 1} if theirs.whole else dots))
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    loss.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    low, high = ratio.get_ylim()
    far = low <= 0 or high / low > FAR or not theirs.whole
    ratio.set(yscale="log" if far else "linear", xscale="log", ylabel="ours / released", xlabel="epoch + 1")
    ratio.axhline(1, color="k", lw=0.6)
    return figure


def _ratio(a: Float[np.ndarray, "T"], b: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T"]:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(len(b), np.nan), where=b != 0)
