"""What trained networks compute with: their frequencies, neurons, attention and embedding.

First come the figures of one network, then the figure of many. `m` is what `measures.all` returns, as numpy. Shapes:
P residue, F Fourier row, K frequency, M neurons.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from jaxgrok.config import Config
from jaxgrok.figures.style import (
    MOST_COLOURS,
    OTHER,
    TEST,
    colours_of,
    count_runs,
    make_figure,
    name_keys,
    styled,
    words_figure,
)
from jaxgrok.measures import fourier
from jaxgrok.measures.all_pairs import run_network
from jaxgrok.nets.model import Params
from jaxgrok.nets.precision import at_precision
from jaxgrok.tasks import modular_task

UPRIGHT: dict[str, Any] = {"rotation": 90, "ha": "center", "fontsize": 8}  # numbers above bars, so that none overlap
MOST_PANELS = 6  # with one key each. If there are more keys, those with the largest norms of W_L are shown
MOST_ROWS_NAMED = 20  # runs named beside the rows of a heat map
# How much room text takes in a panel of about two inches, as shares of the panel: for each character, and for a line.
CHARACTER, LINE = 0.022, 0.08

Measures = dict[str, Any]


@functools.partial(jax.jit, static_argnums=0)
@at_precision("highest")
def _compute(config: Config, params: Params) -> dict[str, Any]:
    """What the figures need of a network beside its measures.

    W_E, neurons, pattern: as in `run_network`. of_neurons: the neurons' components. magnitude: of the 2D Fourier
    components [F, F] of the neurons and of the logits, L2 over neurons or classes.
    """
    net = run_network(config, params)
    spectra = {"neurons": fourier.transform2(net.neurons), "logits": fourier.transform2(net.logits)}
    magnitude = {name: jnp.sqrt((components**2).sum(axis=2)) for name, components in spectra.items()}
    pattern = None if net.stream is None else net.stream.pattern
    found = {"W_E": net.W_E, "neurons": net.neurons, "of_neurons": net.of_neurons}
    return found | {"pattern": pattern, "magnitude": magnitude}


def _activations(config: Config, params: Params) -> dict[str, Any]:
    return jax.tree.map(np.asarray, _compute(config, params))


def _keys(m: Measures) -> list[int]:
    return fourier.frequencies_of(m["key_frequencies"]["keys"])


def _shown(m: Measures) -> tuple[list[int], str]:
    """The keys that get a panel each, in order, and what to call them."""
    keys, norms = _keys(m), m["W_L_frequency_norms"]
    if len(keys) <= MOST_PANELS:
        return keys, name_keys(keys)
    largest = sorted(sorted(keys, key=lambda k: -norms[k - 1])[:MOST_PANELS])
    return largest, f"{MOST_PANELS} of {len(keys)} keys, those with the largest norms of $W_L$"


def _best_neurons(m: Measures, keys: Sequence[int]) -> list[tuple[int, int, float]]:
    """(k, neuron, FVE) of the neuron that each key explains best, among the neurons whose best frequency it is.

    A key without such neurons is left out.
    """
    of_key = {k: np.where(m["neuron_frequency"] == k, m["neuron_fve"], 0) for k in keys}
    return [(k, int(fve.argmax()), float(fve.max())) for k, fve in of_key.items() if fve.any()]


def _bar_colours(keys: Sequence[int], K: int) -> list[Any]:
    colours = colours_of(keys)
    return [colours.get(k, OTHER) for k in range(1, K + 1)]


def _label_spread(axis: Axis, at: Sequence[float], names: Sequence[str], size: float) -> None:
    """Set ticks at ascending positions on an axis of this length.

    A name that is too close to the one before goes a line further out.
    """
    is_x = isinstance(axis, XAxis)
    axis.set_ticks(at, names)
    lines: list[tuple[float, str]] = []  # the last position and name on each line
    for x, name, tick in zip(at, names, axis.get_major_ticks()):
        room = [size * (CHARACTER * (len(name) + len(before)) if is_x else LINE) for _, before in lines]
        line = next((i for i, (last, _) in enumerate(lines) if x - last >= room[i]), len(lines))
        lines[line : line + 1] = [(x, name)]
        tick.set_pad((tick.get_pad() or 0) + line * (12 if is_x else 6 * max(map(len, names)) + 4))


# --- one network ------------------------------------------------------------------------------------------------------


@styled
def spectra_figure(config: Config, params: Params, m: Measures) -> Figure:
    """The norms of W_E and W_L at each frequency, with the keys coloured and labelled.

    Dashed: a quarter of the largest norm, which the rules for keys use (spec: MEASURES.md).
    """
    figure, panels = make_figure(7, 4.6, rows=2, sharex=True)
    keys = _keys(m)
    for axes, name in zip(panels, ("W_E", "W_L")):
        norms = m[f"{name}_frequency_norms"]
        axes.bar(range(1, len(norms) + 1), norms, color=_bar_colours(keys, len(norms)))
        label = f"max / {1 / fourier.RULE_SHARE:.0f}"
        axes.axhline(fourier.RULE_SHARE * norms.max(), color="0.3", ls="--", lw=0.8, label=label)
        axes.set(ylabel=f"norm of ${name}$", xlim=(0.3, len(norms) + 0.7))
        if len(keys) <= MOST_COLOURS:
            for k in keys:
                axes.annotate(str(k), (k, norms[k - 1]), (0, 2), textcoords="offset points", **UPRIGHT)
        axes.margins(y=0.16)
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    panels[0].set_title(name_keys(keys), loc="left")
    panels[1].set_xlabel("frequency k")
    panels[1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _of_number(config: Config, name: str) -> str:
    """What an axis over the task's group counts: a number, or its discrete logarithm."""
    return f"log {name}" if modular_task(config).is_multiplicative else name


def _over_pairs(axes: Axes, image: Float[np.ndarray, "P P"], **options: Any) -> AxesImage:
    """Draw a heat map over (a, b), with a downwards."""
    drawn = axes.imshow(image, interpolation="nearest", **options)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(3, integer=True))
    return drawn


@styled
def neuron_waves_figure(config: Config, params: Params, m: Measures) -> Figure:
    """The activation over (a, b) of the neuron that each key explains best, the waves that explain it, and the rest.

    The waves are the neuron's mean and its components in {const, cos_k, sin_k}^2. FVE, the fraction of variance
    explained, is their share of the variance.
    """
    keys, names = _shown(m)
    best = _best_neurons(m, keys)
    if not best:
        none = f"{names}: none is the best frequency of a neuron"
        return words_figure(none if keys else "no keys, so no neurons to show")
    net = _activations(config, params)
    shared = {"sharex": True, "sharey": True, "squeeze": False, "layout": "compressed"}
    figure, panels = make_figure(0.9 + 2.1 * len(best), 7.2, rows=3, columns=len(best), **shared)
    for column, (k, neuron, fve) in zip(panels.T, best):
        activation = net["neurons"][:, :, neuron]
        waves = fourier.block_waves(len(net["W_E"]))[k - 1]
        fit = waves.T @ net["of_neurons"].blocks[k - 1, :, :, neuron] @ waves + net["of_neurons"].mean[neuron]
        most = np.abs(activation).max()
        for axes, image in zip(column, (activation, fit, activation - fit)):
            drawn = _over_pairs(axes, image, cmap="RdBu_r", vmin=-most, vmax=most)
        column[0].set_title(f"neuron {neuron}, k = {k}\nFVE {fve:.3f}", fontsize=8.5)
        column[2].set_xlabel(_of_number(config, "b"))
        place = {"orientation": "horizontal", "fraction": 0.03, "pad": 0.02, "aspect": 12, "shrink": 0.8}
        bar = figure.colorbar(drawn, ax=column, **place)
        bar.ax.xaxis.set_major_locator(MaxNLocator(2, symmetric=True))
    for axes, name in zip(panels[:, 0], ("activation", "its waves", "residual")):
        axes.set_ylabel(f"{name}\n\n{_of_number(config, 'a')}")
    figure.suptitle(names, x=0.01, ha="left", fontsize=10)
    return figure


def _spectrum2d(axes: Axes, magnitude: Float[np.ndarray, "F F"], keys: Sequence[int], p: int) -> AxesImage:
    """Draw all components, except const x const. Ticks name the frequencies of the keys, and 0 for the constant."""
    image = np.array(magnitude)
    image[0, 0] = np.nan
    drawn = axes.imshow(image, cmap="magma_r", vmin=0, interpolation="nearest")
    rows = [np.flatnonzero(fourier.frequency_of_row(p) == k).mean() for k in keys]
    for axis in (axes.xaxis, axes.yaxis):
        _label_spread(axis, [0, *rows], ["0", *map(str, keys)], p)
    return drawn


def _spectrum2d_of_keys(axes: Axes, magnitude: Float[np.ndarray, "F F"], keys: Sequence[int], p: int) -> AxesImage:
    """Draw only the components at the constant and the keys. Ticks name every row."""
    rows = np.flatnonzero(np.isin(fourier.frequency_of_row(p), [0, *keys]))
    image = np.array(magnitude[np.ix_(rows, rows)])
    image[0, 0] = np.nan
    drawn = axes.imshow(image, cmap="magma_r", vmin=0, interpolation="nearest")
    names = [fourier.row_names(p)[row] for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    return drawn


@styled
def neuron_spectra_figure(config: Config, params: Params, m: Measures) -> Figure:
    """Magnitudes of the 2D Fourier components of the neurons.

    First L2 over all neurons, then the same at the keys alone, then one neuron per key: the one it explains best.
    """
    keys, names = _shown(m)
    net = _activations(config, params)
    p = len(net["W_E"])
    best = _best_neurons(m, keys)
    drawings: list[tuple[str, Callable, np.ndarray, list[int]]]
    drawings = [("all neurons, L2", _spectrum2d, net["magnitude"]["neurons"], keys)]
    if keys:
        drawings.append(("all neurons, the keys alone", _spectrum2d_of_keys, net["magnitude"]["neurons"], keys))
    F = fourier.basis(p)
    for k, neuron, fve in best:
        magnitude = np.abs(F @ net["neurons"][:, :, neuron] @ F.T)
        drawings.append((f"neuron {neuron}, FVE {fve:.3f}", _spectrum2d, magnitude, [k]))
    figure, panels = _grid(len(drawings), 3)
    for axes, (title, draw, magnitude, marked) in zip(panels, drawings):
        figure.colorbar(draw(axes, magnitude, marked, p), ax=axes, shrink=0.8)
        axes.set_title(title, fontsize=8.5)
    figure.supxlabel("component in b: frequency (cos and sin), 0 for the constant", fontsize=9)
    figure.supylabel("component in a", fontsize=9)
    figure.suptitle(names, x=0.01, ha="left", fontsize=10)
    return figure


@styled
def logit_spectrum_figure(config: Config, params: Params, m: Measures) -> Figure:
    """Magnitudes of the 2D Fourier components of the logits, L2 over output classes: all, and only the keys."""
    keys, names = _shown(m)
    magnitude = _activations(config, params)["magnitude"]["logits"]
    p = len(magnitude)
    width, columns = (8.4, 2) if keys else (4.4, 1)
    figure, panels = make_figure(width, 4.5, columns=columns, layout="compressed", squeeze=False)
    drawings = ((_spectrum2d, "all components"), (_spectrum2d_of_keys, "the keys alone"))
    for axes, (draw, title) in zip(panels[0], drawings):
        figure.colorbar(draw(axes, magnitude, keys, p), ax=axes, shrink=0.8)
        axes.set(title=title, xlabel="component in b")
    panels[0, 0].set_ylabel("component in a")
    figure.suptitle(f"logits, L2 over output classes; {names}", x=0.01, ha="left", fontsize=10)
    return figure


@styled
def clusters_figure(config: Config, params: Params, m: Measures) -> Figure:
    """The share of each neuron's variance that its best frequency explains (FVE); below, the sizes of the clusters.

    Neurons are in order of frequency and FVE. Dashed: the FVE above which a neuron is in its frequency's cluster.
    """
    figure, (shares, sizes) = make_figure(7, 5, rows=2, height_ratios=(3, 2))
    _draw_shares(shares, m)
    _draw_cluster_sizes(sizes, m)
    return figure


def _draw_shares(shares: Axes, m: Measures) -> None:
    keys, fve = _keys(m), m["neuron_fve"]
    frequency = np.where(fve > 0, m["neuron_frequency"], 0)  # a constant neuron has none
    colours = colours_of(keys)
    order = np.lexsort((-fve, frequency))
    shares.scatter(np.arange(len(order)), fve[order], s=6, c=[colours.get(k, OTHER) for k in frequency[order]], lw=0)
    shares.axhline(fourier.CLUSTERED, color="0.3", ls="--", lw=0.8)
    groups = [k for k in keys if (frequency == k).any()]
    if len(keys) <= MOST_COLOURS:
        middles = [float(np.flatnonzero(frequency[order] == k).mean()) for k in groups]
        # This panel is 2.5 times as wide as the ones that CHARACTER is measured in.
        _label_spread(shares.xaxis, middles, [f"k={k}" for k in groups], 0.4 * len(order))
    shares.set(ylabel="FVE by the best frequency", ylim=(-0.03, 1.03), xlabel="neuron, in order of frequency and FVE")
    out_of = f"{m['neurons_unclustered']} of {len(fve)} neurons in no cluster, {m['neurons_never_active']} never active"
    shares.set_title(f"{name_keys(keys)}; {out_of}", loc="left")


def _draw_cluster_sizes(sizes: Axes, m: Measures) -> None:
    keys, counts = _keys(m), m["neuron_clusters"]
    sizes.bar(range(1, len(counts) + 1), counts, color=_bar_colours(keys, len(counts)))
    for i in np.flatnonzero(counts) if (counts > 0).sum() <= MOST_COLOURS else []:
        sizes.annotate(f"{counts[i]}", (i + 1, counts[i]), (0, 2), textcoords="offset points", **UPRIGHT)
    sizes.set(xlabel="frequency k", ylabel=f"neurons above {fourier.CLUSTERED}", xlim=(0.3, len(counts) + 0.7))
    sizes.margins(y=0.16)
    sizes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if not counts.any():
        sizes.set(ylim=(0, 1), yticks=[0])
        sizes.text(0.5, 0.5, "no clusters", transform=sizes.transAxes, ha="center", color="0.35")


@styled
def attention_figure(config: Config, params: Params, m: Measures) -> Figure:
    """The attention of each head of the last block from "=", or from b where there is no "=", to a, over (a, b).

    Titles name the best frequency of the head's attention score, and the share of its variance that this frequency
    explains (FVE).
    """
    if m.get("attention_score_frequency") is None:
        return words_figure("no attention: the network is an MLP")
    pattern = _activations(config, params)["pattern"][..., 0]
    by_head = m["attention_score_frequency"]
    figure, panels = _grid(pattern.shape[2], 4, size=2.3)
    for head, (axes, k, fve) in enumerate(zip(panels, by_head["frequency"], by_head["fve"])):
        drawn = _over_pairs(axes, pattern[..., head], cmap="viridis", vmin=0, vmax=1)
        axes.set_title(f"head {head}: k = {k}, FVE {fve:.2f}", fontsize=8.5)
        axes.set(xlabel=_of_number(config, "b"), ylabel=_of_number(config, "a"))
    read_at = '"="' if config.sequence == "xy=" else "b"
    figure.colorbar(drawn, ax=list(panels), label=f"attention from {read_at} to a", shrink=0.8)
    return figure


@styled
def embedding_circles_figure(config: Config, params: Params, m: Measures) -> Figure:
    """The embedding along its cos and sin directions at each key, and along its first two principal components.

    Numbers x are joined in order of k x modulo p, so that a circle shows. For the principal components, k is the best
    frequency of the first one.
    """
    keys, names = _shown(m)
    W_E = np.asarray(_activations(config, params)["W_E"], float)
    p = len(W_E)
    if not np.isfinite(W_E).all():
        return words_figure("no circles: the weights are not finite")
    if min(W_E.shape) < 2:
        return words_figure("no circles: the embedding has one dimension")
    components = fourier.block_waves(p)[:, 1:] @ W_E
    lengths = np.linalg.norm(components, axis=2, keepdims=True)
    directions = np.divide(components, lengths, out=np.zeros_like(components), where=lengths > 0)
    figure, panels = _grid(len(keys) + 1, 3, size=2.4)
    for axes, k in zip(panels, keys):
        _circle(axes, W_E @ directions[k - 1].T, k, p)
        axes.set(xlabel=f"along cos {k}", ylabel=f"along sin {k}" if 2 * k != p else "(no sine)", title=f"k = {k}")
    left, sizes, _ = np.linalg.svd(W_E - W_E.mean(axis=0), full_matrices=False)
    of = m["principal_components"]
    drawn = _circle(panels[-1], (left * sizes)[:, :2], of["frequency"][0], p)
    first, second = (
        f"PC {i + 1}: {of['variance'][i]:.0%} of variance\n{of['share'][i]:.0%} of it at k = {of['frequency'][i]}"
        for i in (0, 1)
    )
    panels[-1].set(xlabel=first, ylabel=second, title="principal components")
    figure.colorbar(drawn, ax=list(panels), label=_of_number(config, "number"), shrink=0.6)
    drawn_of = "embedding" if config.arch == "transformer" else "input weights"
    figure.suptitle(f"{drawn_of}; {names}", x=0.01, ha="left", fontsize=10)
    return figure


def _circle(axes: Axes, points: Float[np.ndarray, "P 2"], k: int, p: int) -> PathCollection:
    """Draw points coloured by number x and joined in order of k x modulo p: neighbours on a circle of frequency k."""
    order = np.argsort(k * np.arange(p) % p, kind="stable")
    closed = points[np.append(order, order[0])]
    axes.plot(*closed.T, color=OTHER, lw=0.6, zorder=0)
    axes.set_aspect("equal", "datalim")
    return axes.scatter(*points.T, c=np.arange(p), cmap="viridis", s=10)


def _grid(panels: int, most_columns: int, size: float = 2.6) -> tuple[Figure, Any]:
    """A figure with this many square panels, `size` inches each, and the list of its axes."""
    columns = min(most_columns, panels)
    rows = math.ceil(panels / columns)
    width, height = 0.9 + (size + 0.35) * columns, 0.4 + (size + 0.5) * rows
    figure, axes = make_figure(width, height, rows, columns, layout="compressed", squeeze=False)
    for empty in axes.flat[panels:]:
        empty.remove()
    return figure, axes.flat[:panels]


# --- many networks ----------------------------------------------------------------------------------------------------


@styled
def key_spectra_figure(runs: dict[str, Measures]) -> Figure:
    """Heat maps with a row per run and a column per frequency. Dots are the run's keys.

    They show the norms of W_E and W_L, each divided by the run's largest, and the number of neurons in each cluster.
    runs: {name: measures} of networks with one p, from top to bottom.
    """
    height = np.clip(0.17 * len(runs), 1.3, 3.2)
    figure, panels = make_figure(7.5, 1 + 3 * (height + 0.3), rows=3, sharex=True, sharey=True)
    measured = list(runs.values())
    masks = np.stack([m["key_frequencies"]["keys"] for m in measured])
    of = {name: np.stack([m[f"{name}_frequency_norms"] for m in measured]) for name in ("W_E", "W_L")}
    images = [(f"norm of ${name}$ / max", norms / norms.max(axis=1, keepdims=True)) for name, norms in of.items()]
    images.append(("neurons per cluster", np.stack([m["neuron_clusters"] for m in measured])))
    for axes, (label, image) in zip(panels, images):
        extent = (0.5, image.shape[1] + 0.5, len(runs) - 0.5, -0.5)
        look = {"cmap": "Blues", "vmin": 0, "vmax": max(1, np.nanmax(image, initial=0)), "interpolation": "nearest"}
        drawn = axes.imshow(image, aspect="auto", extent=extent, **look)
        figure.colorbar(drawn, ax=axes, label=label, pad=0.01)
        row, k = np.nonzero(masks)
        axes.tick_params(axis="y", labelsize=7)
        axes.plot(k + 1, row, ".", color=TEST, ms=4)
    every = math.ceil(len(runs) / MOST_ROWS_NAMED)
    panels[0].set_yticks(range(0, len(runs), every), list(runs)[::every])
    panels[2].set_xlabel("frequency k")
    panels[2].xaxis.get_major_locator().set_params(integer=True)
    without = (~masks.any(axis=1)).sum()
    lacking = f", {without} without keys" if without else ""
    panels[0].set_title(f"{count_runs(len(runs))}{lacking}; dots: key frequencies", loc="left")
    return figure
