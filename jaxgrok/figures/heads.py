"""What the heads of induction networks attend to: over training, in many runs, and on one sequence.

The kinds of heads and their shares are those of `heads.Kind`. Shapes: L layers, H heads.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxgrok.config import Config
from jaxgrok.figures.style import (
    MEDIAN,
    TEST,
    THIN,
    TRAIN,
    make_figure,
    mark_at_foot,
    median_over_runs,
    name_median,
    styled,
    thinned,
)
from jaxgrok.measures import heads
from jaxgrok.store.curves import RunCurves
from jaxgrok.tables.heads import KINDS, NAMES, PREVIOUS, RunHeads, best_share, head_name
from jaxgrok.tasks import induction_task

RAMPS = ("Blues", "Oranges", "Greens", "Purples")  # one for the heads of each layer
MOST_NAMED = 12  # heads: if there are more, those with the largest last scores in a panel are named
LEARNED = "0.35"
EARLIEST = 1 / 300  # of the run: axes of epochs start there, since nothing moves before


def _colours(n_layers: int, n_heads: int) -> dict[tuple[int, int], Any]:
    """{(layer, head): colour}, with a hue for each layer and a shade for each head."""

    def shade(layer: int, head: int) -> Any:
        return mpl.colormaps[RAMPS[layer % len(RAMPS)]](0.95 - 0.55 * head / max(n_heads - 1, 1))

    return {(layer, head): shade(layer, head) for layer in range(n_layers) for head in range(n_heads)}


def _set_epochs(axes: Axes, end: int) -> None:
    axes.set(xscale="log", xlabel="epoch + 1", xlim=(max(1, end * EARLIEST), max(end, 1) + 1))


@styled
def heads_over_training_figure(run: RunHeads, curves: RunCurves) -> Figure:
    """The losses of one run, and below them the scores of every head.

    The middle panel shows the attention to the token before, in the block in which the last checkpoint's best
    previous-token head attends to it most. The lower panel shows the attention from a repeated token to what followed
    it in the earlier copies.
    """
    figure, (loss, previous, induction) = make_figure(8.5, 7.4, rows=3, sharex=True, height_ratios=(2, 3, 3))
    loss.plot(*thinned(curves.epoch_train + 1, curves.train_loss), color=TRAIN, lw=1.2, label="train")
    loss.plot(*thinned(curves.epoch_eval + 1, curves.test_loss), color=TEST, lw=1.2, label="test")
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    loss.set_title(run.name, loc="left")
    s, block = run.series, run.kind(PREVIOUS).place[run.best(PREVIOUS)]
    _draw_scores(
        previous,
        s["epoch"],
        s["previous_token_by_block"][..., block],
        s["chance"]["previous_token_by_block"][-1, 0, block],
    )
    _draw_scores(induction, s["epoch"], s["induction_any_copy"], s["chance"]["induction_any_copy"][-1, 0])
    previous.set_ylabel(f"attention to the token before,\nin block {block}")
    induction.set_ylabel("attention to what followed\nin the earlier copies")
    panels = (loss, previous, induction)
    _mark_learned(panels, run.timing.by("grokked"))
    for axes in panels:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _set_epochs(induction, max(s["epoch"].max(), curves.epoch_eval.max(initial=1)))
    return figure


def _draw_scores(axes: Axes, epochs: Int[np.ndarray, "T"], scores: Float[np.ndarray, "T L H"], uniform: float) -> None:
    """Draw a line per head that its layer computes, and the score of a head that attends to everything equally."""
    colours = _colours(*scores.shape[1:])
    computed = [head for head in colours if np.isfinite(scores[(-1, *head)])]
    named = sorted(computed, key=lambda head: -scores[(-1, *head)])[:MOST_NAMED]
    for layer, head in computed:
        label = f"head {head_name(layer, head)}" if (layer, head) in named else None
        axes.plot(epochs + 1, scores[:, layer, head], color=colours[layer, head], lw=1.3, label=label)
    if np.isfinite(uniform):
        axes.axhline(uniform, color="0.6", ls=":", lw=1, label="uniform attention")
    axes.set_ylim(-0.03, 1.03)


def _mark_learned(panels: Sequence[Axes], learned: int | None) -> None:
    if learned is None:
        return
    for axes in panels:
        label = f"learned by {learned:,}" if axes is panels[0] else None
        axes.axvline(learned + 1, color=LEARNED, ls="--", lw=1, label=label)


@styled
def heads_of_runs_figure(runs: Sequence[RunHeads], name: str = "") -> Figure:
    """For each kind of head, the largest share of any head: of every run (thin), and the median (thick).

    Ticks at the foot show when each run learned.
    """
    figure, panels = make_figure(7.5, 5.4, rows=2, sharex=True)
    learned = [at for run in runs if (at := run.timing.by("grokked")) is not None]
    for axes, kind, colour in zip(panels, KINDS, (TRAIN, TEST)):
        curves = [(run.series["epoch"], best_share(run.series, kind)) for run in runs]
        for epochs, best in curves if len(runs) > 1 else ():
            axes.plot(epochs + 1, best, color=colour, **THIN)
        epochs, middle = median_over_runs(curves) if len(runs) > 1 else curves[0]
        axes.plot(epochs + 1, middle, color=colour, **MEDIAN)
        bound = f"{heads.THRESHOLD}: above it, the head counts as one"
        axes.axhline(heads.THRESHOLD, color="0.3", ls="--", lw=0.8, label=bound)
        axes.set(ylabel=f"share of the best\n{NAMES[kind]} head", ylim=(-0.05, 1.03))
        mark_at_foot(axes, learned, LEARNED, "a run learned")
    panels[0].legend(loc="upper left")
    ends = [int(run.series["epoch"].max()) for run in runs]
    several = name_median(ends)
    panels[0].set_title(f"{name}: {several}" if name else several, loc="left")
    _set_epochs(panels[-1], max(ends))
    return figure


@styled
def head_patterns_figure(config: Config, params: dict[str, Any], m: dict[str, Any]) -> Figure:
    """The attention of the best previous-token head and the best induction head on one sequence, from query to key.

    The sequence is the first of `heads.sequences`; START and its copies are named on both axes. Boxes lead from a copy
    to an earlier one: an induction head has a diagonal there. Grey rows are queries that the layer does not compute,
    because nothing is read there. m: the result of `heads.scores`.
    """
    task, (tokens, copies) = induction_task(config), heads.sequences(config, heads.N_SEQUENCES)
    patterns = heads.patterns(config, params, tokens[:1])
    figure, panels = make_figure(10.4, 5.3, columns=2, layout="compressed", sharey=True)
    found = heads.kinds(m)
    for axes, kind in zip(panels, KINDS):
        layer, head = heads.best_head(found[kind].share)
        image = np.asarray(patterns[layer][0, head])
        seen = np.where(np.tri(*image.shape, dtype=bool), image, np.nan)
        axes.imshow(seen, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for row in np.flatnonzero(np.isnan(image).all(axis=1)):
            axes.axhspan(row - 0.5, row + 0.5, color="0.93", lw=0)
        where = "in block" if kind == PREVIOUS else "most to copy"
        score = f"{found[kind].score[layer, head]:.2f}, {where} {found[kind].place[layer, head]}"
        axes.set_title(f"head {head_name(layer, head)}, the best {NAMES[kind]} head:\n{score}", fontsize=9)
        _mark_copies(axes, copies[0], task.repeat_len)
        axes.set_xlabel("key")
    panels[0].set_ylabel("query")
    figure.colorbar(panels[0].images[0], ax=list(panels), label="attention", shrink=0.8)
    return figure


def _mark_copies(axes: Axes, starts: Int[np.ndarray, "C"], length: int) -> None:
    """Name START and the copies on both axes, and draw a box from each copy to each earlier one."""
    names = ["START", *(f"copy {i}" for i in range(len(starts)))]
    middles = [0, *(start + (length - 1) / 2 for start in starts)]
    axes.set_xticks(middles, names, rotation=90, fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    for later in range(1, len(starts)):
        for earlier in range(later):
            corner = starts[earlier] - 0.5, starts[later] - 0.5
            axes.add_patch(Rectangle(corner, length, length, fill=False, ec=TEST, lw=0.7))
