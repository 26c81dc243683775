"""The dataset size at which half of the runs generalise, from outcomes of single runs, and which sizes to try next.

A run on N examples generalises with probability logistic(slope * log(N / N50)), where 0 <= slope <= 200 per e-fold: with few
runs a size the outcomes are often perfectly separated, and no finite slope is the most likely.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import log_expit
from scipy.stats import chi2

_SLOPES = np.array([0, *np.geomspace(0.1, 200, 80)])


@dataclass(frozen=True)
class Crossover:
    """N50 with its 95 % profile-likelihood interval; a size or a bound that the sizes tried do not enclose is None.

    generalised: how many of the runs did; smallest, largest: of the sizes tried, 0 without runs.
    """

    size: float | None
    low: float | None
    high: float | None
    runs: int
    generalised: int
    smallest: int
    largest: int

    def __str__(self):
        """`700 [610, 820]`, `-` for what does not exist; `> 4,000` if no run generalised, `< 100` if all did."""
        if not self.runs:
            return "-"
        if not self.generalised:
            return f"> {self.largest:,}"
        if self.generalised == self.runs:
            return f"< {self.smallest:,}"
        size, low, high = ("-" if value is None else f"{value:,.0f}" for value in (self.size, self.low, self.high))
        return f"{size} [{low}, {high}]"


def _count(sizes, generalised):
    """Distinct sizes [k], and at each how many runs there were and how many of them generalised."""
    tried, of = np.unique(np.asarray(sizes, int), return_inverse=True)
    return tried, np.bincount(of), np.bincount(of, np.asarray(generalised, bool)).astype(int)


def crossover(sizes, generalised) -> Crossover:
    """The most likely N50 from one size and one outcome per run [n], on a grid from half the smallest to twice the largest size.

    Between separated outcomes the likelihood is flat, and N50 the geometric middle. It is None where the likelihood is
    largest at an end of the grid, as it is if all runs or none generalised.
    """
    if not len(sizes):
        return Crossover(None, None, None, 0, 0, 0, 0)
    tried, runs, done = _count(sizes, generalised)
    grid = np.geomspace(tried[0] / 2, tried[-1] * 2, 1001)
    distance = np.log(tried / grid[:, None])
    # log(1 - p) = log(p) - logit; the slope is profiled out one at a time, which keeps the arrays in the cache
    logits = (slope * distance for slope in _SLOPES)
    profile = np.max([log_expit(logit) @ runs - logit @ (runs - done) for logit in logits], axis=0)

    def ends(drop):
        inside = np.flatnonzero(profile >= profile.max() - drop)
        low, high = inside[0], inside[-1]
        return (float(grid[low]) if low else None), (float(grid[high]) if high < len(grid) - 1 else None)

    peak = ends(1e-6)
    size = None if None in peak else float(np.sqrt(peak[0] * peak[1]))
    return Crossover(size, *ends(chi2.ppf(0.95, 1) / 2), int(runs.sum()), int(done.sum()), int(tried[0]), int(tried[-1]))


def next_sizes(sizes, generalised, count: int, low: int, high: int, precision: float = 1.1) -> tuple[int, ...]:
    """Which sizes to try next, in [low, high], given one size and one outcome per run so far [n].

    Without runs: `count` sizes from low to high, both included, in geometric progression. Afterwards `count` of them inside
    a bracket, rounded, less those tried. The bracket is (largest size at which fewer than half of the runs generalised, or
    low if there is none; smallest size at which at least half did, or high). If those cross, as outcomes near the threshold
    do, it is the profile interval of `crossover`, with low and high for the bounds it lacks. It ends at low and high. Where all of
    them were tried, as in a bracket that did not shrink, the middles of the widest gaps between tried sizes are next.

    Empty once neighbours among the bracket's ends and the sizes tried inside are within a ratio of `precision`; so also if
    half generalised at low already, or not at high.
    """
    if not len(sizes):
        return tuple(sorted({round(size) for size in np.geomspace(low, high, count)}))
    tried, runs, done = _count(sizes, generalised)
    above = 2 * done >= runs
    lower, upper = max(tried[~above], default=low), min(tried[above], default=high)
    if above.any() and not above.all() and lower > upper:
        fit = crossover(sizes, generalised)
        lower, upper = fit.low or low, fit.high or high
    lower, upper = max(lower, low), min(upper, high)
    knots = np.array([lower, *tried[(lower < tried) & (tried < upper)], upper])
    if (knots[1:] / knots[:-1]).max() <= precision:
        return ()
    known = set(tried.tolist())
    spaced = {round(size) for size in np.geomspace(lower, upper, count + 2)[1:-1]} - known
    if not spaced:
        gaps = sorted(pairwise(knots), key=lambda gap: gap[0] / gap[1])[:count]
        spaced = {round(np.sqrt(a * b)) for a, b in gaps if b > precision * a} - known
    return tuple(sorted(spaced))
