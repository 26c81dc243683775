"""Which irreducible representations the networks on a group use: over training, and in many runs."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxgrok.config import Config
from jaxgrok.figures.style import TEST, TRAIN, make_figure, styled, thinned, words_figure
from jaxgrok.store.curves import RunCurves
from jaxgrok.tables.representations import TITLES, RunRepresentations, irreps_of

MOST_DRAWN = 12  # representations: of a group with more, those with the largest last shares


@styled
def representations_over_training_figure(run: RunRepresentations, curves: RunCurves) -> Figure:
    """The losses of one run, and below them the share of each representation in W_E and in the logits. Dotted lines are
    the shares in random weights."""
    of, s = irreps_of(run.record.config), run.series
    shown = [name for name in ("W_E_share", "logit_share") if name in s and np.isfinite(s[name]).any()]
    figure, (loss, *panels) = make_figure(
        8.5, 2.4 + 2.4 * len(shown), rows=1 + len(shown), sharex=True, height_ratios=(2, *[3] * len(shown))
    )
    loss.plot(*thinned(curves.epoch_train + 1, curves.train_loss), color=TRAIN, lw=1.2, label="train")
    loss.plot(*thinned(curves.epoch_eval + 1, curves.test_loss), color=TEST, lw=1.2, label="test")
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    loss.set_title(run.name, loc="left")
    largest = np.max([s[name][-1] for name in shown], axis=0)
    drawn = sorted(np.argsort(-largest)[:MOST_DRAWN].tolist())
    colours = mpl.colormaps["tab10" if len(drawn) <= 10 else "tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for axes, name in zip(panels, shown):
        for i, colour in zip(drawn, colours):
            axes.plot(s["epoch"] + 1, s[name][:, i], color=colour, lw=1.4, label=of.names[i])
            if name == "W_E_share":
                axes.axhline(of.size[i], color=colour, ls=":", lw=0.8)
        axes.set(ylabel=f"share of {TITLES[name]}", ylim=(-0.02, None))
    loss.legend(loc="upper left", bbox_to_anchor=(1, 1))
    panels[0].plot([], [], color="0.4", ls=":", lw=0.8, label="in random weights")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), title="representation")
    panels[-1].set(xlabel="epoch + 1", xlim=(1, max(2, int(s["epoch"].max()) + 1)))
    panels[-1].set_xscale("symlog", linthresh=max(10, int(s["epoch"].max()) // 300))
    return figure


@styled
def representations_figure(config: Config, measured: Sequence[dict[str, Any]], name: str = "") -> Figure:
    """The share of each representation in the weights and the logits of each network: a dot for each, a line at the
    median. Grey bars are the shares in random weights.

    measured: `representations.scores` of each network, as numpy; those that have diverged are left out. name: of the
    runs that they are from.
    """
    of, measured = irreps_of(config), [m for m in measured if np.isfinite(m["W_E_share"]).all()]
    if not measured:
        return words_figure("every network has diverged")
    shown = [share for share in TITLES if measured[0].get(share) is not None and np.isfinite(measured[0][share]).any()]
    largest = np.max([m[share] for m in measured for share in shown], axis=0)
    drawn = sorted(np.argsort(-largest)[:MOST_DRAWN].tolist())
    figure, panels = make_figure(max(5.0, 0.75 * len(drawn) + 2), 1.6 * len(shown) + 0.8, rows=len(shown), sharex=True)
    places = np.arange(len(drawn))
    for axes, share in zip(np.atleast_1d(panels), shown):
        values = np.array([m[share][drawn] for m in measured])
        if share != "logit_share":
            axes.bar(places, of.size[drawn], color="0.88", width=0.8, label="in random weights")
        spread = np.linspace(-0.22, 0.22, len(measured)) if len(measured) > 1 else np.zeros(1)
        axes.scatter((places + spread[:, None]).ravel(), values.ravel(), s=14, color=TRAIN, zorder=3, label="a network")
        axes.hlines(np.median(values, axis=0), places - 0.35, places + 0.35, color=TEST, lw=1.6, label="median")
        axes.set(ylabel=f"share of\n{TITLES[share]}", ylim=(0, None))
    first, last = np.atleast_1d(panels)[[0, -1]]
    first.legend(loc="upper left", bbox_to_anchor=(1, 1))
    last.set_xticks(places, [of.names[i] for i in drawn])
    last.set_xlabel("irreducible representation, by its dimension")
    first.set_title(name, loc="left")
    return figure
