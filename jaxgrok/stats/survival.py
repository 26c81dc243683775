"""Statistics over runs that may not have arrived: Kaplan-Meier medians with intervals, and comparisons of cells.

The unit is the run. What a run has not reached by its last epoch is right-censored there; nothing is averaged over those
that happened to arrive (spec: MEASURES.md, Aggregating over seeds). The estimates are scipy's.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.stats import CensoredData, binomtest, ecdf, logrank


@dataclass(frozen=True)
class Median:
    """A Kaplan-Meier median with its 95 % interval; a bound or a median that does not exist is None.

    arrived of total runs reached the event; longest: the last censored or reached time.
    """

    value: float | None
    low: float | None
    high: float | None
    arrived: int
    total: int
    longest: float

    def __str__(self):
        """`7,600 [6,100, -]`, or `> 40,000 (3/32)` where the median is not reached; `-` for no runs."""
        if not self.total:
            return "-"
        if self.value is None:
            reached = f"({self.arrived}/{self.total})"
            return f"> {self.longest:,.0f} {reached}" if self.longest else f"- {reached}"
        low, high = ("-" if bound is None else f"{bound:,.0f}" for bound in (self.low, self.high))
        return f"{self.value:,.0f} [{low}, {high}]"


def _censored(times, reached) -> CensoredData:
    times, reached = np.asarray(times, float), np.asarray(reached, bool)
    return CensoredData.right_censored(times, ~reached)


def survival(times, reached):
    """Kaplan-Meier survival [k] at `quantiles` [k], with its pointwise 95 % log-log band: (time, survival, low, high).

    times [n]: when reached, or censored; reached [n] bool. Before the first time survival is 1. Where the log-log band
    does not exist (survival 0 or 1) it is NaN.
    """
    estimate = ecdf(_censored(times, reached)).sf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        band = estimate.confidence_interval(0.95, method="log-log")
    return estimate.quantiles, estimate.probabilities, band.low.probabilities, band.high.probabilities


def median(times, reached) -> Median:
    """The median time to an event, from event or censoring times [n] and whether each was reached [n].

    The interval inverts the log-log band: it holds the times at which the band holds 1/2.
    """
    n = len(times)
    if not n:
        return Median(None, None, None, 0, 0, np.nan)
    arrived = int(np.sum(reached))
    if not arrived:
        return Median(None, None, None, 0, n, float(np.max(times)))
    time, alive, low, high = survival(times, reached)

    def first(curve):
        # A product that is 1/2 exactly can come out a rounding error above it. Where nobody is left the band is not
        # defined, and its NaN bounds nothing.
        below = curve <= 0.5 + 1e-9
        return float(time[np.argmax(below)]) if below.any() else None

    return Median(first(alive), first(low), first(high), arrived, n, float(np.max(times)))


@dataclass(frozen=True)
class Comparison:
    """Two cells. test: `sign` (pairs that share a seed) or `log-rank`; first, second: pairs in which that cell was earlier;
    undecided: pairs that censoring or a tie leaves open; pvalue: two-sided, NaN where nothing decides."""

    test: str
    pvalue: float
    first: int = 0
    second: int = 0
    undecided: int = 0


def _earlier(a, b) -> int:
    """-1 if a certainly came before b, 1 if after, 0 if a tie or open; each (time, reached)."""
    (time_a, reached_a), (time_b, reached_b) = a, b
    if reached_a and time_a < time_b:
        return -1
    return 1 if reached_b and time_b < time_a else 0


def compare(first: dict, second: dict) -> Comparison:
    """Compare event times {seed: (time, reached)} of two cells: the sign test if their seeds are the same, else log-rank."""
    if not first or not second:
        return Comparison("none", float("nan"))
    if set(first) == set(second):
        signs = [_earlier(first[seed], second[seed]) for seed in first]
        wins, losses = signs.count(-1), signs.count(1)
        pvalue = binomtest(wins, wins + losses).pvalue if wins + losses else float("nan")
        return Comparison("sign", float(pvalue), wins, losses, signs.count(0))
    times = [_censored(*zip(*cell.values())) for cell in (first, second)]
    if not any(reached for cell in (first, second) for _, reached in cell.values()):
        return Comparison("log-rank", float("nan"))
    with np.errstate(invalid="ignore"):  # NaN where no run of one cell was at risk when the other's arrived
        return Comparison("log-rank", float(logrank(*times).pvalue))
