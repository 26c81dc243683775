"""When runs reach an event, and whether two cells differ, where some runs never reached it.

The unit is the run. A run that was watched to its last epoch and has not reached the event by then is right-censored
there: it may still reach it later. A run that diverged is ruled out: it can never reach the event. Averages over the
runs that happened to arrive would be too early, so medians come from the Kaplan-Meier estimate, or from the cumulative
incidence where runs are ruled out (spec: MEASURES.md, Aggregating over seeds).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri
from scipy.stats import CensoredData, binomtest, ecdf, logrank

LEVEL = 0.95  # of every interval and band
HALF = 0.5 + 1e-9  # a product or sum that is 1/2 exactly can come out a rounding error above it


class Arrival(NamedTuple):
    """When one run reached an event, or how long it was watched without reaching it.

    Attributes:
        time: when the run reached the event, or was ruled out, or else when it was last watched.
        reached: whether the run reached the event.
        ruled_out: whether a competing event (divergence) came first, so that the run can never reach this one. It is
            False for a run that reached the event and diverged later.
    """

    time: float
    reached: bool
    ruled_out: bool = False


class Survival(NamedTuple):
    """The share of runs that have not reached an event, as a step function of time, with its pointwise 95 % band.

    Attributes:
        time: distinct times of the arrivals, in order. Before the first one the share is 1.
        surviving: share of runs that have not reached the event by each time, ruled-out runs included.
        low, high: bounds of the log-log band. They are NaN where the share is 0 or 1, since no such band exists there.
    """

    time: Float[np.ndarray, "T"]
    surviving: Float[np.ndarray, "T"]
    low: Float[np.ndarray, "T"]
    high: Float[np.ndarray, "T"]


@dataclass(frozen=True)
class Median:
    """The median time to an event with its 95 % interval.

    Attributes:
        value: the median, None if fewer than half of the runs are known to arrive.
        low, high: bounds of the interval, each None where it does not exist.
        arrived: number of runs that reached the event.
        total: number of runs.
        longest: the longest time of any run, reached or not; NaN without runs.
    """

    value: float | None
    low: float | None
    high: float | None
    arrived: int
    total: int
    longest: float

    def __str__(self) -> str:
        """Return `7,600 [6,100, -]`, `> 40,000 (3/32)` where the median is not reached, or `-` without runs."""
        if self.total == 0:
            return "-"
        if self.value is None:
            reached = f"({self.arrived}/{self.total})"
            return f"> {self.longest:,.0f} {reached}" if self.longest > 0 else f"- {reached}"
        low, high = ("-" if bound is None else f"{bound:,.0f}" for bound in (self.low, self.high))
        return f"{self.value:,.0f} [{low}, {high}]"


@dataclass(frozen=True)
class Comparison:
    """Whether the runs of two cells arrive at different times.

    Attributes:
        test: `sign` (on pairs of runs that share a seed), `log-rank`, or `none` if a cell has no runs.
        pvalue: two-sided; NaN where the runs decide nothing.
        first, second: number of pairs in which that cell's run was earlier.
        undecided: number of pairs left open by censoring, by a tie, or because both runs are ruled out.
    """

    test: str
    pvalue: float
    first: int = 0
    second: int = 0
    undecided: int = 0


def _columns(
    arrivals: Sequence[Arrival],
) -> tuple[Float[np.ndarray, "R"], Bool[np.ndarray, "R"], Bool[np.ndarray, "R"]]:
    times = np.array([arrival.time for arrival in arrivals], float)
    reached = np.array([arrival.reached for arrival in arrivals], bool)
    return times, reached, np.array([arrival.ruled_out for arrival in arrivals], bool)


def _kaplan_meier(times: Float[np.ndarray, "R"], reached: Bool[np.ndarray, "R"]) -> Survival:
    estimate = ecdf(CensoredData.right_censored(times, ~reached)).sf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        band = estimate.confidence_interval(LEVEL, method="log-log")
    return Survival(estimate.quantiles, estimate.probabilities, band.low.probabilities, band.high.probabilities)


def _aalen_johansen(
    times: Float[np.ndarray, "R"], reached: Bool[np.ndarray, "R"], ruled_out: Bool[np.ndarray, "R"]
) -> Survival:
    """Return 1 minus the cumulative incidence, with its log-log band; at least one run is ruled out.

    At time t_i, n_i runs are at risk, d_i runs arrive or are ruled out, and d1_i of these arrive. S is the Kaplan-Meier
    survival of both events together. The cumulative incidence (Aalen & Johansen 1978) and its delta-method variance are

        I(t)     = sum_i S(t_i-) d1_i / n_i                                    over t_i <= t
        Var I(t) = sum_i (I(t) - I(t_i))^2 d_i / (n_i (n_i - d_i)) + S(t_i-)^2 d1_i (n_i - d1_i) / n_i^3
                         - 2 (I(t) - I(t_i)) S(t_i-) d1_i / n_i^2

    (Dinse & Larson 1986, eq. 6; Marubini & Valsecchi 1995; Choudhury 2002). Without ruled-out runs these are 1
    minus the Kaplan-Meier estimate and Greenwood's variance; without censoring, a share and its binomial variance.
    The band is the one of log(-log(1 - I)), so that it too is the Kaplan-Meier estimate's where no run is ruled out.
    """
    time = np.unique(times)
    here = times == time[:, None]
    at_risk = (times >= time[:, None]).sum(1)
    arrived = (here & reached).sum(1)
    ended = (here & (reached | ruled_out)).sum(1)
    left = at_risk - ended
    before = np.r_[1, np.cumprod(left / at_risk)[:-1]]
    incidence = np.cumsum(before * arrived / at_risk)
    surviving = 1 - incidence

    later = incidence[:, None] - incidence  # [t, i]: I(t) - I(t_i)
    # Where nobody is left, nobody arrives later: the term is 0, not 0 / 0.
    ended_share = np.divide(ended, at_risk * left, out=np.zeros(len(time)), where=left > 0)
    terms = later**2 * ended_share + before**2 * arrived * (at_risk - arrived) / at_risk**3
    terms -= 2 * later * before * arrived / at_risk**2
    variance = np.tril(terms).sum(1)

    # The share is never 0, since ruled-out runs remain in it. Where it is 1 its logarithm is 0, and there is no band.
    log = np.log(np.where(surviving < 1, surviving, np.nan))
    half_width = ndtri((1 + LEVEL) / 2) * np.sqrt(variance) / np.abs(surviving * log)
    return Survival(time, surviving, np.exp(log * np.exp(half_width)), np.exp(log * np.exp(-half_width)))


def survival_curve(arrivals: Sequence[Arrival]) -> Survival:
    """Return the share of runs that have not reached an event, over time, from at least one arrival.

    This is the Kaplan-Meier estimate, with the log-log band of Greenwood's variance (scipy's). If any run is ruled
    out, it is 1 minus the cumulative incidence instead (Aalen-Johansen), in which such a run never arrives.
    Kaplan-Meier would count it as one that arrives like the others, only later.
    """
    times, reached, ruled_out = _columns(arrivals)
    return _aalen_johansen(times, reached, ruled_out) if ruled_out.any() else _kaplan_meier(times, reached)


def median(arrivals: Sequence[Arrival]) -> Median:
    """Return the median time to an event: the first time by which half of all runs have reached it.

    Ruled-out runs never reach it, so with more than half of the runs ruled out there is no median. The interval
    inverts the log-log band of `survival_curve`: it holds the times at which the band holds 1/2.
    """
    total = len(arrivals)
    if total == 0:
        return Median(None, None, None, 0, 0, np.nan)
    arrived = sum(bool(arrival.reached) for arrival in arrivals)
    longest = float(max(arrival.time for arrival in arrivals))
    if arrived == 0:
        return Median(None, None, None, 0, total, longest)
    curve = survival_curve(arrivals)

    def first_half(share: Float[np.ndarray, "T"]) -> float | None:
        below = share <= HALF  # False where the band is NaN: there it bounds nothing
        return float(curve.time[np.argmax(below)]) if below.any() else None

    value, low, high = (first_half(share) for share in (curve.surviving, curve.low, curve.high))
    return Median(value, low, high, arrived, total, longest)


def _is_earlier(one: Arrival, other: Arrival) -> bool:
    """Whether `one` certainly reached the event before `other` did or will."""
    return bool(one.reached) and (other.ruled_out or one.time < other.time)


def _log_rank(first: Sequence[Arrival], second: Sequence[Arrival]) -> float:
    columns = [_columns(cell) for cell in (first, second)]
    if not any(reached.any() for _, reached, _ in columns):
        return np.nan
    longest = max(times.max() for times, _, _ in columns)
    x, y = (CensoredData.right_censored(np.where(out, longest, times), ~reached) for times, reached, out in columns)
    with np.errstate(invalid="ignore"):  # NaN where no run of one cell was at risk when the other's arrived
        return float(logrank(x=x, y=y).pvalue)


def compare(first: Mapping[int, Arrival], second: Mapping[int, Arrival]) -> Comparison:
    """Compare the arrivals of two cells, by seed: with the sign test if their seeds are the same, else by log-rank.

    Sign test: a pair counts for the run that certainly arrived first. A run that arrived is earlier than one that is
    ruled out, whatever their times; if both are ruled out, the pair is undecided.

    Log-rank: a ruled-out run never arrives, so it stays at risk and is censored at the longest time of either cell.
    Such risk sets are those of Gray's test (1988) for the cumulative incidence, if all runs are planned to be equally
    long.
    """
    if not first or not second:
        return Comparison("none", np.nan)
    if set(first) != set(second):
        return Comparison("log-rank", _log_rank(list(first.values()), list(second.values())))
    wins = sum(_is_earlier(first[seed], second[seed]) for seed in first)
    losses = sum(_is_earlier(second[seed], first[seed]) for seed in first)
    decided = wins + losses
    pvalue = float(binomtest(wins, decided).pvalue) if decided else np.nan
    return Comparison("sign", pvalue, wins, losses, len(first) - decided)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, in their order (Holm 1979): none is below its own, none above 1.

    The k-th smallest of m is multiplied by m - k + 1, and is at least the adjusted value before it. A NaN, of a
    comparison that decides nothing, stays NaN and does not count in m.
    """
    values = np.asarray(pvalues, float)
    ascending = np.argsort(values)  # NaNs come last
    factors = np.count_nonzero(~np.isnan(values)) - np.arange(len(values))
    adjusted = np.empty(len(values))
    adjusted[ascending] = np.minimum(np.maximum.accumulate(values[ascending] * factors), 1)
    return adjusted.tolist()
