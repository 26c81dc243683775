"""In which order the parts of a task (the digits of a sum, say) arrive in a run, and whether runs agree about it.

Throughout, `times` holds the arrival times of P parts in R runs, and `reached` whether each part arrived. A part that
did not arrive is right-censored at its time. Equal times are ties: both parts arrived between the same two evaluations.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from scipy.stats import friedmanchisquare, permutation_test, rankdata

from jaxgrok.stats.survival import Arrival

SHUFFLES_AT_ONCE = 1000


def _arrays(
    times: Real[np.ndarray, "R P"], reached: Bool[np.ndarray, "R P"]
) -> tuple[Float[np.ndarray, "R P"], Bool[np.ndarray, "R P"]]:
    return np.asarray(times, float), np.asarray(reached, bool)


@dataclass(frozen=True)
class Before:
    """In how many runs one part arrived before another.

    Attributes:
        first: [i, j] is the number of runs in which part i certainly arrived before part j.
        decided: [i, j] is the number of runs in which either of them certainly arrived before the other.
    """

    first: Int[np.ndarray, "P P"]
    decided: Int[np.ndarray, "P P"]

    @property
    def share(self) -> Float[np.ndarray, "P P"]:
        """first / decided, NaN where no run decides."""
        return np.divide(self.first, self.decided, out=np.full(self.first.shape, np.nan), where=self.decided > 0)


def before(times: Real[np.ndarray, "R P"], reached: Bool[np.ndarray, "R P"]) -> Before:
    """Count, for each pair of parts, the runs in which one arrived before the other.

    A run leaves a pair open if the two tie, if both are censored, or if one is censored no later than the other
    arrived.
    """
    times, reached = _arrays(times, reached)
    first = (reached[:, :, None] & (times[:, :, None] < times[:, None, :])).sum(0)
    return Before(first, first + first.T)


@dataclass(frozen=True)
class Concordance:
    """Whether runs agree about the order of the parts.

    Attributes:
        W: Kendall's W, which is 1 if all runs have the same order and near 0 if each has its own.
        pvalue: probability of a W at least this large if every run orders the parts at random.
        runs: number of runs with a complete ranking. Only these count.

    W and pvalue are NaN with fewer than 3 parts or 2 such runs, or if all parts tie in all of them.
    """

    W: float
    pvalue: float
    runs: int


MIN_PARTS, MIN_RUNS = 3, 2  # of a concordance


def _complete_ranks(
    times: Float[np.ndarray, "R P"], reached: Bool[np.ndarray, "R P"]
) -> Float[np.ndarray, "complete P"]:
    last = ~reached & (times == times.max(1, keepdims=True))
    complete = (reached | last).all(1) & (last.sum(1) <= 1)
    return rankdata(np.where(last, np.inf, times)[complete], axis=1)


def concordance(
    times: Real[np.ndarray, "R P"], reached: Bool[np.ndarray, "R P"], permutations: int = 10_000, seed: int = 0
) -> Concordance:
    """Return Kendall's W, corrected for ties, with a permutation test that shuffles the ranks within each run.

    A run's ranking is complete if all parts arrived, or all but one that is censored at or after the last arrival; that
    part is ranked last. The test enumerates all shuffles if there are at most `permutations` of them. Otherwise it
    draws that many, and counts the observed ranks as one more.
    """
    ranks = _complete_ranks(*_arrays(times, reached))
    runs, parts = ranks.shape
    if parts < MIN_PARTS or runs < MIN_RUNS or not np.ptp(ranks, axis=1).any():
        return Concordance(np.nan, np.nan, runs)
    W = friedmanchisquare(*ranks.T).statistic / (runs * (parts - 1))

    def sum_of_squares(*parts, axis):
        # A shuffle keeps each run's ties, so W grows with the sum of squares of the summed ranks alone.
        return sum(part.sum(axis) ** 2 for part in parts)

    test = permutation_test(
        tuple(ranks.T),
        sum_of_squares,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        batch=SHUFFLES_AT_ONCE,
        n_resamples=permutations,
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]  (`rng` from scipy 1.15 on)
    )
    return Concordance(float(W), float(test.pvalue), runs)


def spread(times: Real[np.ndarray, "R P"], reached: Bool[np.ndarray, "R P"]) -> list[Arrival]:
    """Return each run's time from the first to the last arrival of a part, for `stats.median`.

    Where a part has not arrived, the spread is censored at the latest known time less the first arrival. Where none has
    arrived, it is censored at 0.
    """
    times, reached = _arrays(times, reached)
    first = np.where(reached, times, np.inf).min(1)
    width = np.where(reached.any(1), times.max(1) - first, 0.0)
    return [Arrival(float(time), bool(row.all())) for time, row in zip(width, reached)]


def first_counts(times: Real[np.ndarray, "R P"], reached: Bool[np.ndarray, "R P"]) -> Float[np.ndarray, "P"]:
    """Count the runs in which each part arrived first. If k parts tie, each counts 1/k.

    A run counts for no part if one of its parts is censored no later than the first arrival.
    """
    times, reached = _arrays(times, reached)
    first = times == times.min(1, keepdims=True)
    first = first[(reached | ~first).all(1)]
    return (first / first.sum(1, keepdims=True)).sum(0)
