"""How the parts of a task are learned: each part's loss, when it arrives, and in which order across runs."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxgrok.figures.style import MEDIAN, OTHER, THIN, count_runs, make_figure, median_over_runs, styled, thinned
from jaxgrok.stats import order
from jaxgrok.tables.parts import Parts

MOST_NAMED = 12  # parts: more are named by a colour bar


def _colours(names):
    """{part: colour}: along a ramp, in the order of the parts."""
    ramp = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(names))) if len(names) > 1 else ["C0"]
    return dict(zip(names, ramp))


@styled
def part_losses_figure(parts: Parts) -> Figure:
    """The test loss of each part: medians over runs (thick) and every run (thin); the mean over parts is black. Above as the post
    draws it, until half as long again as the last part took, and where parts are many of the first run alone, because medians
    would blur the drops of one; below the whole run on logarithmic axes."""
    figure, panels = make_figure(8, 6.4, rows=2)
    many, n_runs = len(parts.names) > MOST_NAMED, len(parts.curves)
    above = slice(1) if many else slice(None)
    times, reached = parts.times[above], parts.reached[above]
    last = times[reached].max() if reached.any() else np.inf
    end = max(of_run["epoch_eval"][-1] for of_run in parts.curves) + 1
    for axes, curves in zip(panels, (parts.curves[above], parts.curves)):
        _draw_losses(axes, parts.names, curves)
        axes.set(xlabel="epoch + 1", ylabel="test loss (nats)")
    panels[0].set(xlim=(1, max(2, min(end, 1.5 * last))), ylim=(0, None))
    panels[0].xaxis.set_major_formatter("{x:,.0f}")
    panels[1].set(xscale="log", yscale="log")
    of_all = f"{count_runs(n_runs)}{', medians' if n_runs > 1 else ''}"
    if many:
        panels[0].legend(handles=panels[0].lines[-1:], loc="upper right")
        _name_by_bar(figure, panels, parts)
    else:
        panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    if many and n_runs > 1:
        panels[1].set_title(of_all, loc="left")
        of_all = f"seed {parts.cell.records[0]['seed']}"
    panels[0].set_title(f"{parts.cell.name}: {of_all}" if parts.cell.name else of_all, loc="left")
    return figure


def _draw_losses(axes, names, curves) -> None:
    many = len(names) > MOST_NAMED
    for part, colour in _colours(names).items():
        losses = [(of_run["epoch_eval"], of_run["test_part_loss"][part]) for of_run in curves]
        if len(curves) > 1 and not many:
            for epochs, loss in losses:
                axes.plot(*thinned(epochs + 1, loss), color=colour, **THIN)
        epochs, middle = median_over_runs(losses, log=True)
        axes.plot(*thinned(epochs + 1, middle), color=colour, **({"lw": 0.8} if many else MEDIAN), label=part)
    means = [(of_run["epoch_eval"], np.mean([of_run["test_part_loss"][part] for part in names], axis=0)) for of_run in curves]
    epochs, middle = median_over_runs(means, log=True)
    axes.plot(*thinned(epochs + 1, middle), color="k", lw=1, ls="--", label="mean of the parts")


def _name_by_bar(figure, panels, parts: Parts) -> None:
    colours = mpl.colors.ListedColormap(list(_colours(parts.names).values()))
    n = len(parts.names)
    bar = figure.colorbar(mpl.cm.ScalarMappable(mpl.colors.Normalize(-0.5, n - 0.5), colours), ax=list(panels), pad=0.01)
    ticks = np.unique(np.linspace(0, n - 1, 7).round().astype(int))
    bar.set_ticks(ticks, labels=[parts.names[i] for i in ticks], fontsize=7)


@styled
def part_order_figure(parts: Parts) -> Figure:
    """Left: when each part is learned in each run (a dot; hollow where it was not, at the run's end), and Kaplan-Meier medians with
    95 % intervals. Right: the share of runs in which the part of the row came before that of the column."""
    n = len(parts.names)
    figure, (arrivals, matrix) = make_figure(10, max(3.2, 0.9 + 0.2 * n), columns=2, width_ratios=(1.25, 1))
    rows = np.arange(n)
    offsets = np.linspace(-0.25, 0.25, len(parts.timings)) if len(parts.timings) > 1 else [0]
    for offset, times, reached in zip(offsets, parts.times, parts.reached):
        arrivals.plot(times[reached], rows[reached] + offset, ".", color="C0", ms=4)
        arrivals.plot(times[~reached], rows[~reached] + offset, "o", mfc="none", color=OTHER, ms=3)
    end = parts.times.max()
    for row, part in enumerate(parts.names):
        m = parts.learned(part)
        if m.value is not None:
            arrivals.plot(m.value, row, "|", color="k", ms=11, mew=1.6)
            if m.low is not None:
                arrivals.plot([m.low, m.high if m.high is not None else end], [row, row], color="k", lw=0.8)
    labels = dict(labels=parts.names, fontsize=8 if n <= MOST_NAMED else 6)
    arrivals.set_yticks(rows, **labels)
    arrivals.set(ylim=(n - 0.5, -0.5), xlim=(0, end * 1.05), xlabel="learned at epoch")
    arrivals.xaxis.set_major_formatter("{x:,.0f}")
    c = parts.concordance
    of = f" of {c.runs}" if c.runs < len(parts.timings) else ""
    agreement = "" if c.W != c.W else f"; Kendall's W{of} {c.W:.2f} (p {c.pvalue:.2g})"
    arrivals.set_title(f"{parts.cell.name + ': ' if parts.cell.name else ''}{count_runs(len(parts.timings))}{agreement}", loc="left")

    before = order.before(parts.times, parts.reached)
    image = np.ma.masked_invalid(before.share)
    drawn = matrix.imshow(image, cmap="RdBu", vmin=0, vmax=1)
    matrix.set_facecolor("0.9")
    if n <= MOST_NAMED:
        for i, j in np.argwhere(before.decided > 0):
            dark = abs(image[i, j] - 0.5) > 0.35
            matrix.text(
                j, i, f"{before.first[i, j]}/{before.decided[i, j]}", ha="center", va="center", fontsize=6, color="w" if dark else "k"
            )
    matrix.set_yticks(rows, **labels)
    matrix.set_xticks(rows, **labels, rotation=90)
    matrix.set_title("row before column (grey: no run decides)", loc="left")
    figure.colorbar(drawn, ax=matrix, label="share of runs", pad=0.02)
    return figure
