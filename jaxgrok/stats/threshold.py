"""The dataset size at which half of the runs generalise, from outcomes of single runs, and which sizes to try next.

The model: a run on N examples generalises with probability logistic(slope * log(N / N50)), where 0 <= slope <= 200 per
factor e in size. The slope is bounded because few runs per size often separate perfectly, and then no finite slope is
the most likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_expit
from scipy.stats import chi2

LEVEL = 0.95  # of the profile-likelihood interval
LEAST_SLOPE, LARGEST_SLOPE, N_SLOPES = 0.1, 200, 80  # slope 0 is tried besides
N_GRID = 1001  # candidates for N50
MARGIN = 2  # the candidates go beyond the smallest and the largest size by this factor
FLAT = 1e-6  # log-likelihoods this close to the largest count as equal to it
PRECISION = 1.1  # ratio of neighbouring sizes at which a search ends

_SLOPES = np.array([0, *np.geomspace(LEAST_SLOPE, LARGEST_SLOPE, N_SLOPES)])


@dataclass(frozen=True)
class Crossover:
    """N50, the size at which half of the runs generalise, with its 95 % profile-likelihood interval.

    Attributes:
        size: the most likely N50, None if the sizes tried do not enclose it.
        low, high: bounds of the interval, each None if the sizes tried do not enclose it.
        runs: number of runs.
        generalised: number of runs that generalised.
        smallest, largest: of the sizes tried; 0 without runs.
    """

    size: float | None
    low: float | None
    high: float | None
    runs: int
    generalised: int
    smallest: int
    largest: int

    def __str__(self) -> str:
        """Return `700 [610, 820]` (`-` if it does not exist), `> 4,000` if no run generalised, `< 100` if all did."""
        if self.runs == 0:
            return "-"
        if self.generalised == 0:
            return f"> {self.largest:,}"
        if self.generalised == self.runs:
            return f"< {self.smallest:,}"
        size, low, high = ("-" if value is None else f"{value:,.0f}" for value in (self.size, self.low, self.high))
        return f"{size} [{low}, {high}]"


def _count(
    sizes: Sequence[int] | Int[np.ndarray, "R"], generalised: Sequence[bool] | Bool[np.ndarray, "R"]
) -> tuple[Int[np.ndarray, "sizes"], Int[np.ndarray, "sizes"], Int[np.ndarray, "sizes"]]:
    """Return the distinct sizes in order, the number of runs at each, and how many of these generalised."""
    tried, of = np.unique(np.asarray(sizes, int), return_inverse=True)
    return tried, np.bincount(of), np.bincount(of, np.asarray(generalised, bool)).astype(int)


def _profile(
    grid: Float[np.ndarray, "grid"],
    tried: Int[np.ndarray, "sizes"],
    runs: Int[np.ndarray, "sizes"],
    done: Int[np.ndarray, "sizes"],
) -> Float[np.ndarray, "grid"]:
    """Return the log-likelihood of each candidate for N50 at the slope that suits it best."""
    distance = np.log(tried / grid[:, None])
    # log(1 - p) = log(p) - logit. One slope at a time keeps the arrays in the cache.
    logits = (slope * distance for slope in _SLOPES)
    return np.max([log_expit(logit) @ runs - logit @ (runs - done) for logit in logits], axis=0)


def crossover(
    sizes: Sequence[int] | Int[np.ndarray, "R"], generalised: Sequence[bool] | Bool[np.ndarray, "R"]
) -> Crossover:
    """Return the most likely N50, from one size and one outcome per run.

    N50 is sought on a grid from half the smallest to twice the largest size. Between separated outcomes the
    likelihood is flat, and N50 is the geometric middle of that stretch. N50 is None if the likelihood is largest at
    an end of the grid, as it is if all runs or none generalised.
    """
    if len(sizes) == 0:
        return Crossover(None, None, None, 0, 0, 0, 0)
    tried, runs, done = _count(sizes, generalised)
    grid = np.geomspace(tried[0] / MARGIN, tried[-1] * MARGIN, N_GRID)
    profile = _profile(grid, tried, runs, done)

    def ends(drop: float) -> tuple[float | None, float | None]:
        inside = np.flatnonzero(profile >= profile.max() - drop)
        low, high = inside[0], inside[-1]
        return (float(grid[low]) if low > 0 else None), (float(grid[high]) if high < len(grid) - 1 else None)

    first, last = ends(FLAT)
    size = None if first is None or last is None else float(np.sqrt(first * last))
    interval = ends(float(chi2.ppf(LEVEL, 1)) / 2)
    return Crossover(size, *interval, int(runs.sum()), int(done.sum()), int(tried[0]), int(tried[-1]))


def _bracket(
    sizes: Sequence[int] | Int[np.ndarray, "R"],
    generalised: Sequence[bool] | Bool[np.ndarray, "R"],
    low: int,
    high: int,
) -> tuple[float, float]:
    """Return the sizes between which N50 is sought, within [low, high]; see `next_sizes`."""
    tried, runs, done = _count(sizes, generalised)
    above = 2 * done >= runs
    lower, upper = max(tried[~above], default=low), min(tried[above], default=high)
    if above.any() and not above.all() and lower > upper:
        fit = crossover(sizes, generalised)
        lower, upper = (low if fit.low is None else fit.low), (high if fit.high is None else fit.high)
    return max(lower, low), min(upper, high)


def next_sizes(
    sizes: Sequence[int] | Int[np.ndarray, "R"],
    generalised: Sequence[bool] | Bool[np.ndarray, "R"],
    count: int,
    low: int,
    high: int,
    precision: float = PRECISION,
) -> tuple[int, ...]:
    """Return the sizes to try next, in [low, high], given one size and one outcome per run so far.

    Without runs, these are `count` sizes from low to high, both included, in geometric progression. Afterwards they are
    `count` sizes in geometric progression inside a bracket, rounded, less those already tried. If all of them were
    tried, as in a bracket that did not shrink, the middles of the widest gaps between tried sizes are next.

    The bracket runs from the largest size at which fewer than half of the runs generalised (low if there is none) to
    the smallest size at which at least half did (high if there is none). If these cross, as noisy outcomes near the
    threshold do, the bracket is the profile interval of `crossover`, with low and high in place of bounds it lacks.
    It is cut at low and high.

    The result is empty once neighbours among the bracket's ends and the sizes tried inside it are within a ratio of
    `precision`. So it is also if half of the runs generalised at low already, or if fewer did at high.
    """
    if len(sizes) == 0:
        return tuple(sorted({round(size) for size in np.geomspace(low, high, count)}))
    tried = np.unique(np.asarray(sizes, int))
    lower, upper = _bracket(sizes, generalised, low, high)
    knots = np.array([lower, *tried[(lower < tried) & (tried < upper)], upper])
    if (knots[1:] / knots[:-1]).max() <= precision:
        return ()
    known = set(tried.tolist())
    spaced = {round(size) for size in np.geomspace(lower, upper, count + 2)[1:-1]} - known
    if not spaced:
        gaps = sorted(pairwise(knots), key=lambda gap: gap[0] / gap[1])[:count]
        spaced = {round(np.sqrt(a * b)) for a, b in gaps if b > precision * a} - known
    return tuple(sorted(spaced))
