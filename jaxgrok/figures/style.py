"""The look of every figure, and what several figures need: thinned curves, medians over runs, colours of keys."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

TRAIN, TEST = "#3b6fb6", "#c8553d"
OTHER = "0.72"  # frequencies that are not keys
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
}
MOST_POINTS = 4000  # per thin line: more cannot be seen
MOST_SAMPLES = 1000  # epochs at which a median over runs is taken
THIN: dict[str, Any] = {"alpha": 0.35, "lw": 0.5}  # one run of several
MEDIAN: dict[str, Any] = {"lw": 1.8}
MOST_COLOURS = 9  # keys that colours can tell apart; more keys are coloured along a ramp
GREY = 7  # the index of grey in tab10
_DISTINCT = [colour for i, colour in enumerate(mpl.color_sequences["tab10"]) if i != GREY]
_RAMP = mpl.colormaps["viridis"]

P = ParamSpec("P")
Curve = tuple[Int[np.ndarray, "T"], Real[np.ndarray, "T"]]  # (epochs, values)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that makes a figure, so that it draws in the project's style."""

    @functools.wraps(draw)
    def figure(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return figure


def make_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    layout: Literal["constrained", "compressed"] = "constrained",
    **options: Any,
) -> tuple[Figure, Any]:
    """A Figure of this size in inches and its axes, as `Figure.subplots` returns them.

    layout: `compressed` suits panels that keep their aspect ratio.
    """
    figure = Figure(figsize=(width, height), layout=layout, dpi=150)
    return figure, figure.subplots(rows, columns, **options)


def words_figure(text: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    figure, axes = make_figure(6, 1)
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35")
    return figure


# --- curves of runs ---------------------------------------------------------------------------------------------------


def thinned(epochs: Int[np.ndarray, "T"], values: Real[np.ndarray, "T"]) -> Curve:
    """At most MOST_POINTS of a curve. Each stretch keeps its largest value, so that spikes stay."""
    if len(epochs) <= MOST_POINTS:
        return epochs, values
    edges = _spread(len(epochs), MOST_POINTS // 2)[:-1]
    return epochs[edges], np.fmax.reduceat(values, edges)


def sampled(epochs: Int[np.ndarray, "T"], values: Real[np.ndarray, "T"]) -> Curve:
    """At most MOST_SAMPLES values of a curve, copied, so that the curve itself need not stay in memory."""
    at = _spread(len(epochs), MOST_SAMPLES) if len(epochs) > MOST_SAMPLES else slice(None)
    return np.array(epochs[at]), np.array(values[at])


def _spread(n: int, count: int) -> Int[np.ndarray, "I"]:
    """At most `count` indices below n, among them the first and the last, equally far apart in log, as axes are."""
    return np.unique(np.geomspace(1, n, count).astype(int)) - 1


def median_over_runs(curves: Sequence[Curve], log: bool = False) -> tuple[Int[np.ndarray, "U"], Float[np.ndarray, "U"]]:
    """The union of the epochs of several runs, and the median over all of the runs at each of them.

    A run that has ended or diverged keeps its last finite value, so that the median is always over the same runs and
    makes no step where one leaves. Between its epochs, a run is interpolated linearly in log(epoch + 1). A run without
    a finite value is left out.

    log: whether the values are drawn on a logarithmic axis, and so are interpolated in their logarithm.
    """
    of_runs = []
    for epochs, values in curves:
        finite = np.logical_and.accumulate(np.isfinite(values))
        if finite.any():
            of_runs.append((np.asarray(epochs)[finite], np.asarray(values)[finite]))
    if not of_runs:
        return np.empty(0, int), np.empty(0)
    union = np.unique(np.concatenate([epochs for epochs, _ in curves]))
    smallest = min((values[values > 0].min() for _, values in of_runs if (values > 0).any()), default=np.inf)
    rows = []
    for epochs, values in of_runs:
        on_axis = np.log(np.maximum(values, np.finfo(float).tiny)) if log else values
        row = np.interp(np.log1p(union), np.log1p(epochs), on_axis)  # keeps the last value beyond the last epoch
        # A zero has no place on the axis. It stays a zero, and does not become a tiny number that stretches the axis.
        rows.append(np.where(np.exp(row) < smallest / 2, 0, np.exp(row)) if log else row)
    return union, np.median(rows, axis=0)


def count_runs(n: int) -> str:
    """`1 run`, `8 runs`, `2,000 runs`."""
    return "1 run" if n == 1 else f"{n:,} runs"


def note_on_ends(ends: Sequence[int]) -> str:
    """What `median_over_runs` does with runs that end at different epochs, to follow a title; empty if they do not."""
    return "; ended runs keep their last value" if len(set(ends)) > 1 else ""


def name_median(ends: Sequence[int], lines: int | None = None) -> str:
    """`8 runs (thin) and their median`, with the note on ends, or `1 run`.

    ends: the last epoch of each run. lines: how many of the runs are drawn; None means all.
    """
    if len(ends) == 1:
        return count_runs(1)
    thin = " (thin)" if lines in (None, len(ends)) else f" ({lines} of them thin)"
    return f"{count_runs(len(ends))}{thin} and their median{note_on_ends(ends)}"


def mark_at_foot(axes: Axes, times: Sequence[float], colour: str, label: str | None = None) -> None:
    """Draw a tick at the foot of the axes for each time, given in epochs."""
    foot: dict[str, Any] = {"ms": 8, "clip_on": False, "transform": axes.get_xaxis_transform()}
    (ticks,) = axes.plot(np.array(times, float) + 1, np.zeros(len(times)), "|", color=colour, label=label, **foot)
    ticks.set_in_layout(False)  # they may hang over the axis; the layout must not make room for that


# --- key frequencies --------------------------------------------------------------------------------------------------


def colours_of(keys: Sequence[int]) -> dict[int, Any]:
    """{k: colour} of key frequencies, given in order."""
    if len(keys) <= MOST_COLOURS:
        return dict(zip(keys, _DISTINCT))
    return {k: _RAMP((k - keys[0]) / (keys[-1] - keys[0])) for k in keys}


def name_keys(keys: Sequence[int]) -> str:
    """`keys 4, 15, 25`, or only how many there are if there are many."""
    if not keys:
        return "no keys"
    if len(keys) > MOST_COLOURS:
        return f"{len(keys)} keys"
    return f"{'key' if len(keys) == 1 else 'keys'} {', '.join(map(str, keys))}"


def explain_colours(figure: Figure, axes: Axes, keys: Sequence[int]) -> None:
    """Put a legend of the labelled lines beside the axes, and a colour bar if there are more keys than colours."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    if len(keys) > MOST_COLOURS:
        ramp = ScalarMappable(Normalize(keys[0], keys[-1]), _RAMP)
        figure.colorbar(ramp, ax=axes, label="key frequency k", pad=0.02)
