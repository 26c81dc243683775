"""The look of every figure, and what several of them need: curves for drawing, medians over runs, colours of key frequencies."""

import functools

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

TRAIN, TEST = "#3b6fb6", "#c8553d"
OTHER = "0.72"  # what is not a key
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10, "legend.frameon": False}
MOST_POINTS = 4000  # per thin line: more cannot be seen
THIN = {"alpha": 0.35, "lw": 0.5}  # one run of several
MEDIAN = {"lw": 1.8}
MOST_COLOURS = 9  # keys that colours can tell apart; more are coloured along a ramp
_DISTINCT = [colour for i, colour in enumerate(mpl.colormaps["tab10"].colors) if i != 7]  # 7 is grey
_RAMP = mpl.colormaps["viridis"]


def styled(draw):
    """Draw in the project's style: matplotlib reads it while a figure is made."""

    @functools.wraps(draw)
    def figure(*args, **kwargs):
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return figure


def make_figure(width, height, rows=1, columns=1, layout="constrained", **options):
    """A Figure (inches) and its axes, as `Figure.subplots` gives them. layout: `compressed` where the panels keep their shape."""
    figure = Figure(figsize=(width, height), layout=layout, dpi=150)
    return figure, figure.subplots(rows, columns, **options)


def words_figure(text) -> Figure:
    """What to say where there is nothing to draw."""
    figure, axes = make_figure(6, 1)
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35")
    return figure


def thinned(epochs, values):
    """At most MOST_POINTS of a curve, keeping the largest value of each stretch, so that spikes stay."""
    if len(epochs) <= MOST_POINTS:
        return epochs, values
    # Stretches of equal width in log epoch, as the axis shows them.
    edges = np.unique(np.geomspace(1, len(epochs), MOST_POINTS // 2).astype(int))[:-1] - 1
    return epochs[edges], np.fmax.reduceat(values, edges)


def median_over_runs(curves, log=False):
    """Epochs and the median over runs, curves [(epochs, values)]; at the union of their epochs, interpolated as the axes are.

    A run that has ended or diverged keeps its last finite value, so that its leaving makes no step. log: values are drawn
    on a logarithmic axis; epochs always are.
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
        row = np.interp(np.log1p(union), np.log1p(epochs), on_axis)
        # A zero, which has no place on the axis, stays one.
        rows.append(np.where(np.exp(row) < smallest / 2, 0, np.exp(row)) if log else row)
    return union, np.median(rows, axis=0)


def count_runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"


# --- key frequencies --------------------------------------------------------------------------------------------------------


def colours_of(keys) -> dict:
    """{k: colour} of key frequencies."""
    if len(keys) <= MOST_COLOURS:
        return dict(zip(keys, _DISTINCT))
    return {k: _RAMP((k - keys[0]) / (keys[-1] - keys[0])) for k in keys}


def name_keys(keys) -> str:
    """`keys 4, 15, 25`; the number alone where there are many."""
    if not keys:
        return "no keys"
    return f"{'key' if len(keys) == 1 else 'keys'} {', '.join(map(str, keys))}" if len(keys) <= MOST_COLOURS else f"{len(keys)} keys"


def explain_colours(figure, axes, keys):
    """A legend of the labelled lines beside axes; with more keys than colours, a bar of the ramp as well."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    if len(keys) > MOST_COLOURS:
        ramp = mpl.cm.ScalarMappable(mpl.colors.Normalize(keys[0], keys[-1]), _RAMP)
        figure.colorbar(ramp, ax=axes, label="key frequency k", pad=0.02)
