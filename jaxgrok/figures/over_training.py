"""How the circuits of networks grow over training, from the measures at every checkpoint.

A series is one run: what `Results.measures` returns, which is each array of `measures.all` with a leading axis T over
checkpoints, and `epoch` [T]. A run's keys are those of its last checkpoint.

The figures share two arguments. stages: {name: (start, end)} in epochs, without the stages whose bounds are unknown;
None draws no stages. scale: of the axis of epochs, `log` or `linear`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxgrok.figures.style import (
    MEDIAN,
    MOST_COLOURS,
    OTHER,
    TEST,
    THIN,
    TRAIN,
    Curve,
    colours_of,
    count_runs,
    explain_colours,
    make_figure,
    median_over_runs,
    name_keys,
    name_median,
    note_on_ends,
    styled,
    words_figure,
)
from jaxgrok.measures.fourier import frequencies_of

STAGE_COLOURS = {
    "memorisation": "#4477aa",
    "interpolation": "#ccbb44",
    "generalisation": "#228833",
    "clean-up": "#ee6677",
    "stability": "#aa3377",
}
RESTRICTED, EXCLUDED, ONE_KEY = "#228833", "#8e5ea2", "#e39b2d"
EARLIEST = 1 / 3000  # of the run: a logarithmic axis of epochs starts there, since nothing moves before
LOSS_FLOOR = 1e-10  # nats: an axis goes no lower
NO_WAVES = "this task has no waves: nothing to exclude or restrict to"
WEIGHTS_FLOOR = 1e-4  # of the largest sum of squares: matrices that stay below it are left out

Series = dict[str, Any]
Stages = Mapping[str, tuple[float, float]]


def _over_training(
    series: Sequence[Series], stages: Stages | None, heights: list[float], scale: str
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel over epochs for each height in inches, one above another.

    Each stage is a bar in a strip above them, and a shade in every panel.
    """
    stages = {} if stages is None else stages
    strip = 0.14 * len(stages)
    height, ratios = 0.7 + strip + sum(heights), ([strip] if stages else []) + heights
    figure, panels = make_figure(8.5, height, rows=len(ratios), sharex=True, squeeze=False, height_ratios=ratios)
    panels = list(panels[:, 0])
    end = max(s["epoch"].max() for s in series) + 1
    start = max(1, end * EARLIEST) if scale == "log" else 1
    panels[-1].set(xscale=scale, xlabel="epoch + 1", xlim=(start, max(end, start + 1)))
    if scale == "linear":
        panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    if stages:
        _draw_stages(panels.pop(0), panels, stages)
    return figure, panels


def _draw_stages(strip: Axes, panels: Sequence[Axes], stages: Stages) -> None:
    limits = strip.get_xlim()
    on_paper = strip.xaxis.get_transform().transform
    for row, (name, (start, stop)) in enumerate(stages.items()):
        colour = STAGE_COLOURS.get(name, OTHER)
        left, right = np.clip((start + 1, stop + 1), *limits)
        strip.barh(row, right - left, left=left, color=colour, height=0.6)
        # The name stands on the side of the bar with more room.
        room_before, _, room_after = np.diff(on_paper(np.array([limits[0], left, right, limits[1]])))
        at, alignment, offset = (right, "left", 4) if room_after > room_before else (left, "right", -4)
        look = {"ha": alignment, "va": "center_baseline", "fontsize": 8}
        strip.annotate(name, (at, row), (offset, 0), textcoords="offset points", **look)
        for axes in panels:
            axes.axvspan(left, right, color=colour, alpha=0.08, lw=0)
    strip.set_ylim(len(stages) - 0.4, -0.6)
    strip.tick_params(left=False, labelleft=False, bottom=False, which="both")
    strip.spines[:].set_visible(False)


def _curves(series: Sequence[Series], *names: str) -> list[Curve]:
    """The curves of a measure, found under these names, of the runs in which it exists."""
    found = []
    for s in series:
        values: Any = s
        for name in names:
            values = values[name]
        if np.isfinite(values).any():
            found.append((s["epoch"], values))
    return found


def _draw(
    axes: Axes,
    curves: Sequence[Curve],
    colour: Any,
    label: str,
    log: bool = False,
    each: bool = True,
    **line: Any,
) -> None:
    """Draw the median of the curves (thick) and, if `each`, every curve (thin). One curve alone is drawn thick.

    log: whether the axis of values is logarithmic.
    """
    if len(curves) > 1 and each:
        for epoch, values in curves:
            axes.plot(epoch + 1, values, color=colour, **THIN)
    if curves:
        epoch, values = median_over_runs(curves, log) if len(curves) > 1 else curves[0]
        axes.plot(epoch + 1, values, color=colour, label=label, **(MEDIAN | line))


def _loss_axis(axes: Axes, name: str = "cross-entropy (nats)") -> None:
    axes.set(yscale="log", ylabel=name)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], LOSS_FLOOR))


def _keys(s: Series) -> list[int]:
    return frequencies_of(s["key_frequencies"]["keys"][-1])


def _why_undefined(s: Series) -> str | None:
    """Why the measures that need keys do not exist for a run; None if they do."""
    if not np.isfinite(s["alpha"]).any():
        return NO_WAVES
    return None if _keys(s) else "no keys"


def _ends(series: Sequence[Series]) -> list[int]:
    return [int(s["epoch"].max()) for s in series]


def _title_of(series: Sequence[Series]) -> str:
    """What is drawn: the keys of one run, or how many runs there are and how many of them lack keys."""
    if len(series) == 1:
        return _why_undefined(series[0]) or name_keys(_keys(series[0]))
    without = sum(_why_undefined(s) is not None for s in series)
    return name_median(_ends(series)) + (f"; {without} without keys" if without else "")


@styled
def losses_over_training_figure(series: Sequence[Series], stages: Stages | None = None, scale: str = "log") -> Figure:
    """The losses of the network, its restricted losses, and its excluded loss (all keys together, on train pairs)."""
    figure, (axes,) = _over_training(series, stages, [3.8], scale)
    _draw(axes, _curves(series, "loss", "train"), TRAIN, "train", log=True)
    _draw(axes, _curves(series, "loss", "test"), TEST, "test", log=True)
    # The three are nearly equal, so that the first is drawn wide and the others thin on top of it.
    restricted = {part: _curves(series, "restricted_loss", part) for part in ("train", "test", "all")}
    thin: dict[str, Any] = {"log": True, "each": False, "lw": 1.2}
    _draw(axes, restricted["all"], RESTRICTED, "restricted, all", log=True, lw=4, alpha=0.4)
    _draw(axes, restricted["train"], RESTRICTED, "restricted, train", **thin)
    _draw(axes, restricted["test"], "k", "restricted, test", ls=(0, (1, 3)), **thin)
    _draw(axes, _curves(series, "excluded_loss", "train"), EXCLUDED, "excluded, train", log=True)
    _loss_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(_title_of(series), loc="left")
    return figure


def _draw_keys(axes: Axes, s: Series, per_frequency: Float[np.ndarray, "T K"]) -> None:
    """Draw the lines of the keys, coloured and labelled."""
    keys = _keys(s)
    for k, colour in colours_of(keys).items():
        label = f"k = {k}" if len(keys) <= MOST_COLOURS else None
        axes.plot(s["epoch"] + 1, per_frequency[:, k - 1], color=colour, lw=1.2, label=label)


def _draw_others(axes: Axes, s: Series, per_frequency: Float[np.ndarray, "T K"]) -> None:
    """Draw the lines of all frequencies that are not keys, in grey."""
    others = ~s["key_frequencies"]["keys"][-1]
    if others.any():
        lines = axes.plot(s["epoch"] + 1, per_frequency[:, others], color=OTHER, lw=0.5, zorder=1)
        lines[0].set_label("other k")


@styled
def excluded_per_key_figure(s: Series, stages: Stages | None = None, scale: str = "log") -> Figure:
    """The train loss of one run with each key excluded, and with all of them.

    Dashed: the largest excluded loss of any one frequency, which exists without keys too.
    """
    why = _why_undefined(s)
    if why is not None and not np.isfinite(s["excluded_loss_per_key"]).any():
        return words_figure(why)
    figure, (axes,) = _over_training([s], stages, [3.6], scale)
    _draw(axes, _curves([s], "loss", "train"), TRAIN, "train loss")
    _draw(axes, _curves([s], "excluded_loss", "train"), "k", "all keys together")
    _draw_keys(axes, s, s["excluded_loss_per_key"])
    largest = _curves([s], "excluded_loss_max_over_frequencies")
    _draw(axes, largest, "0.35", "largest of any one k", ls=(0, (4, 3)), lw=1)
    _loss_axis(axes, "excluded train loss (nats)")
    axes.set_title(name_keys(_keys(s)) if why is None else why, loc="left")
    explain_colours(figure, axes, _keys(s))
    return figure


@styled
def spectra_over_training_figure(s: Series, stages: Stages | None = None, scale: str = "log") -> Figure:
    """The norms of W_E and W_L of one run at every frequency, with the keys coloured."""
    figure, panels = _over_training([s], stages, [2.4, 2.4], scale)
    for axes, name in zip(panels, ("W_E", "W_L")):
        _draw_others(axes, s, s[f"{name}_frequency_norms"])
        _draw_keys(axes, s, s[f"{name}_frequency_norms"])
        axes.set(ylabel=f"norm of ${name}$")
        axes.set_ylim(bottom=0)
    panels[0].set_title(name_keys(_keys(s)), loc="left")
    explain_colours(figure, panels[0], _keys(s))
    return figure


@styled
def alpha_over_training_figure(s: Series, stages: Stages | None = None, scale: str = "log") -> Figure:
    """alpha_k of one run for every frequency k: the coefficient of cos(w_k (s - c)) in the logits.

    Here c is the output class, and s is what the task's waves are waves of (`fourier.wave_argument`), such as a + b.
    """
    if not np.isfinite(s["alpha"]).any():
        return words_figure(NO_WAVES)
    figure, (axes,) = _over_training([s], stages, [3.2], scale)
    _draw_others(axes, s, s["alpha"])
    _draw_keys(axes, s, s["alpha"])
    axes.set(ylabel=r"$\alpha_k$ (logits)")
    axes.set_title(name_keys(_keys(s)), loc="left")
    explain_colours(figure, axes, _keys(s))
    return figure


@styled
def gini_figure(series: Sequence[Series], stages: Stages | None = None, scale: str = "log") -> Figure:
    """Gini coefficients of the norms of the Fourier components of W_E and W_L.

    The coefficient is 0 if all components are equal, and near 1 if one has everything.
    """
    figure, (axes,) = _over_training(series, stages, [3], scale)
    for name, colour in (("W_E", TRAIN), ("W_L", TEST)):
        _draw(axes, _curves(series, "gini", name), colour, f"${name}$")
    axes.set(ylabel="Gini coefficient", ylim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(name_median(_ends(series)), loc="left")
    return figure


@styled
def weights_figure(series: Sequence[Series], stages: Stages | None = None, scale: str = "log") -> Figure:
    """The sum of squared weights of every matrix, and in total. A bias is dashed, in the colour of its matrix.

    Matrices that stay below WEIGHTS_FLOOR of the largest total are left out.
    """
    figure, (axes,) = _over_training(series, stages, [4], scale)
    squares = series[0]["sum_squared_weights"]
    totals = np.concatenate([s["sum_squared_weights"]["total"] for s in series])
    least = WEIGHTS_FLOOR * totals[np.isfinite(totals)].max(initial=np.finfo(np.float32).tiny)
    names = [name for name in squares if name != "total"]
    matrices = [name for name in names if not name.split(".")[-1].startswith("b_")]
    colours = dict(zip(matrices, mpl.color_sequences["tab20" if len(matrices) > 10 else "tab10"] * len(matrices)))
    one_layer = not any(name.startswith("blocks.1.") for name in names)
    for name in sorted(names, key=lambda name: -squares[name][-1]):
        curves = _curves(series, "sum_squared_weights", name)
        if not any((values >= least).any() for _, values in curves):
            continue
        colour = colours.get(name.replace("b_", "W_"), "0.4")
        label = name.split(".")[-1] if one_layer else name.replace("blocks.", "")
        line = {"lw": 1.2, "ls": "-" if name in colours else "--"}
        _draw(axes, curves, colour, label, log=True, **line)
    _draw(axes, _curves(series, "sum_squared_weights", "total"), "k", "total", log=True)
    axes.set(yscale="log", ylabel="sum of squared weights")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], least))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(name_median(_ends(series)), loc="left")
    return figure


@styled
def keys_of_runs_figure(series: Sequence[Series], stages: Stages | None = None, scale: str = "log") -> Figure:
    """The keys of all runs: alpha_k, and the train loss with one key excluded, or all.

    Thick lines are medians over keys, or over runs. Each grey line is a run's largest |alpha_k|, or largest excluded
    loss, among the frequencies that are not its keys.
    """
    known = [s for s in series if _why_undefined(s) is None]
    if not known:
        return words_figure(str(_why_undefined(series[0])))
    figure, (alpha, excluded) = _over_training(series, stages, [2.6, 2.6], scale)
    drawn = ((alpha, "alpha", TRAIN, False), (excluded, "excluded_loss_per_key", ONE_KEY, True))
    for axes, name, colour, log in drawn:
        keys, others = [], []
        for s in known:
            mask = s["key_frequencies"]["keys"][-1]
            keys += [(s["epoch"], values) for values in s[name].T[mask]]
            if not mask.all():
                others.append((s["epoch"], np.abs(s[name][:, ~mask]).max(axis=1)))
        _draw(axes, others, "0.45", "largest of the other k", log)
        _draw(axes, keys, colour, "one key", log)
    _draw(excluded, _curves(known, "excluded_loss", "train"), EXCLUDED, "all keys of a run", log=True)
    _loss_axis(excluded, "excluded train loss (nats)")
    alpha.set(ylabel=r"$\alpha_k$ (logits)")
    for axes in (alpha, excluded):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    without = f", {len(series) - len(known)} more without keys" if len(known) < len(series) else ""
    what = f"thin: each key of each run, thick: medians{note_on_ends(_ends(known))}"
    alpha.set_title(f"{count_runs(len(known))}{without}; {what}", loc="left")
    return figure
