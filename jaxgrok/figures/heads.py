"""What the heads of induction networks attend to: over training, in many runs, and on one sequence.

Kinds of heads, and their shares: `heads.Kind`. Shapes: T checkpoints, L layers, H heads, S positions.
"""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxgrok.config import Config
from jaxgrok.figures.style import MEDIAN, TEST, THIN, TRAIN, count_runs, make_figure, median_over_runs, styled, thinned
from jaxgrok.measures import heads
from jaxgrok.tables.heads import KINDS, NAMES, PREVIOUS, RunHeads, best_share, head_name
from jaxgrok.tasks import make_task

RAMPS = ("Blues", "Oranges", "Greens", "Purples")  # of a layer's heads
MOST_NAMED = 12  # heads: of more, those with the largest last scores in a panel are named
LEARNED = "0.35"
EARLIEST = 1 / 300  # of the run: axes of epochs start there, nothing moves before


def _colours(shape) -> dict:
    """{(layer, head): colour}: a hue for each layer, a shade for each head."""
    L, H = shape
    return {(at, head): mpl.colormaps[RAMPS[at % len(RAMPS)]](0.95 - 0.55 * head / max(H - 1, 1)) for at, head in np.ndindex(L, H)}


def _epochs(axes, end: int) -> None:
    axes.set(xscale="log", xlabel="epoch + 1", xlim=(max(1, end * EARLIEST), max(end, 1) + 1))


@styled
def heads_over_training_figure(run: RunHeads, curves: dict) -> Figure:
    """The losses of one run; below, how much each head attends to the token before, in the block in which the last checkpoint's best
    head does so most, and from a repeated token to what followed it in the earlier copies. curves: `Metrics.of_run`."""
    figure, (loss, *panels) = make_figure(8.5, 7.4, rows=3, sharex=True, height_ratios=(2, 3, 3))
    for x, y, colour, label in (("epoch_train", "train_loss", TRAIN, "train"), ("epoch_eval", "test_loss", TEST, "test")):
        loss.plot(*thinned(curves[x] + 1, curves[y]), color=colour, lw=1.2, label=label)
    loss.set(yscale="log", ylabel="cross-entropy (nats)")
    loss.set_title(run.name, loc="left")
    s, block = run.series, run.kind(PREVIOUS).place[run.best(PREVIOUS)]
    at_end = [s["previous_token_by_block"][..., block], s["induction_any_copy"]]
    uniform = [s["chance"]["previous_token_by_block"][-1, 0, block], s["chance"]["induction_any_copy"][-1, 0]]
    colours = _colours(at_end[0].shape[1:])
    for axes, scores, alike in zip(panels, at_end, uniform):
        computed = [head for head in colours if np.isfinite(scores[(-1, *head)])]
        named = sorted(computed, key=lambda head: -scores[(-1, *head)])[:MOST_NAMED]
        for head in computed:
            label = f"head {head_name(*head)}" if head in named else None
            axes.plot(s["epoch"] + 1, scores[(slice(None), *head)], color=colours[head], lw=1.3, label=label)
        if np.isfinite(alike):
            axes.axhline(alike, color="0.6", ls=":", lw=1, label="uniform attention")
        axes.set_ylim(-0.03, 1.03)
    panels[0].set_ylabel(f"attention to the token before,\nin block {block}")
    panels[1].set_ylabel("attention to what followed\nin the earlier copies")
    _mark_learned((loss, *panels), run.timing.by("grokked"))
    for axes in (loss, *panels):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _epochs(panels[-1], max(s["epoch"].max(), curves["epoch_eval"].max(initial=1)))
    return figure


def _mark_learned(panels, learned: int | None) -> None:
    for axes in panels if learned is not None else ():
        label = f"learned by {learned:,}" if axes is panels[0] else None
        axes.axvline(learned + 1, color=LEARNED, ls="--", lw=1, label=label)


@styled
def heads_of_runs_figure(runs: list[RunHeads], name: str = "") -> Figure:
    """The largest share of any head, for each kind, of every run (thin) and the median; ticks at the foot: when each run learned."""
    figure, panels = make_figure(7.5, 5.4, rows=2, sharex=True)
    for axes, kind, colour in zip(panels, KINDS, (TRAIN, TEST)):
        curves = [(run.series["epoch"], best_share(run.series, kind)) for run in runs]
        for epochs, best in curves if len(runs) > 1 else ():
            axes.plot(epochs + 1, best, color=colour, **THIN)
        epochs, middle = median_over_runs(curves) if len(runs) > 1 else curves[0]
        axes.plot(epochs + 1, middle, color=colour, **MEDIAN)
        axes.axhline(heads.THRESHOLD, color="0.3", ls="--", lw=0.8, label=f"{heads.THRESHOLD}, above which it is called one")
        axes.set(ylabel=f"share of the best\n{NAMES[kind]} head", ylim=(-0.05, 1.03))
        learned = [at for run in runs if (at := run.timing.by("grokked")) is not None]
        foot = {"ms": 8, "clip_on": False, "transform": axes.get_xaxis_transform()}
        (ticks,) = axes.plot(np.array(learned, float) + 1, np.zeros(len(learned)), "|", color=LEARNED, label="a run learned", **foot)
        ticks.set_in_layout(False)  # they may hang over the axis; the layout must not make room for that
    panels[0].legend(loc="upper left")
    several = f"{count_runs(len(runs))}{' (thin) and their median' if len(runs) > 1 else ''}"
    panels[0].set_title(f"{name}: {several}" if name else several, loc="left")
    _epochs(panels[-1], max(run.series["epoch"].max() for run in runs))
    return figure


@styled
def head_patterns_figure(config: Config, params, m: dict) -> Figure:
    """The attention of the best previous-token and the best induction head on the first of `heads.sequences`, from query to key.

    START and the copies are named on both axes; boxes: from a copy to an earlier one, where an induction head has a diagonal.
    Grey: queries that the layer does not compute, because nothing is read there.
    """
    task, (tokens, copies) = make_task(config), heads.sequences(config, heads.N_SEQUENCES)
    patterns = heads.patterns(config, params, tokens[:1])
    figure, panels = make_figure(10.4, 5.3, columns=2, layout="compressed", sharey=True)
    found, T = heads.kinds(m), task.repeat_len
    for axes, kind in zip(panels, KINDS):
        layer, head = heads.best_head(found[kind].share)
        image = np.asarray(patterns[layer][0, head])
        seen = np.where(np.tri(*image.shape, dtype=bool), image, np.nan)
        drawn = axes.imshow(seen, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for row in np.flatnonzero(np.isnan(image).all(axis=1)):
            axes.axhspan(row - 0.5, row + 0.5, color="0.93", lw=0)
        where = "in block" if kind == PREVIOUS else "most to copy"
        score = f"{found[kind].score[layer, head]:.2f}, {where} {found[kind].place[layer, head]}"
        axes.set_title(f"head {head_name(layer, head)}, the best {NAMES[kind]} head:\n{score}", fontsize=9)
        _mark_copies(axes, copies[0], T)
        axes.set_xlabel("key")
    panels[0].set_ylabel("query")
    figure.colorbar(drawn, ax=list(panels), label="attention", shrink=0.8)
    return figure


def _mark_copies(axes, copies, T: int) -> None:
    names = ["START", *(f"copy {i}" for i in range(len(copies)))]
    middles = [0, *(start + (T - 1) / 2 for start in copies)]
    axes.set_xticks(middles, names, rotation=90, fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    for later in range(1, len(copies)):
        for earlier in range(later):
            corner = copies[earlier] - 0.5, copies[later] - 0.5
            axes.add_patch(mpl.patches.Rectangle(corner, T, T, fill=False, ec=TEST, lw=0.7))
