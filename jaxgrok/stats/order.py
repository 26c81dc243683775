"""In which order the parts of a task (the digits of a sum, say) arrive in a run, and whether runs agree about it.

Everywhere times [R, P] are arrival times of P parts in R runs, reached [R, P] whether the part arrived; one that did not is
right-censored at its time. Equal times are ties: both arrived between the same two evaluations.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, permutation_test, rankdata


def _arrays(times, reached):
    return np.asarray(times, float), np.asarray(reached, bool)


@dataclass(frozen=True)
class Before:
    """first [P, P]: runs in which part i certainly arrived before part j; decided [P, P]: runs in which either was first."""

    first: np.ndarray
    decided: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """[P, P] first / decided, NaN where no run decides."""
        return np.divide(self.first, self.decided, out=np.full(self.first.shape, np.nan), where=self.decided > 0)


def before(times, reached) -> Before:
    """Who came before whom. Open are ties, two censored parts, and one censored no later than the other's arrival."""
    times, reached = _arrays(times, reached)
    first = (reached[:, :, None] & (times[:, :, None] < times[:, None, :])).sum(0)
    return Before(first, first + first.T)


@dataclass(frozen=True)
class Concordance:
    """Kendall's W over runs with a complete ranking: 1 if all have the same order, near 0 if each has its own.

    pvalue: of a W this large if every run orders the parts at random. Both NaN for fewer than 3 parts or 2 runs, or all ties.
    """

    W: float
    pvalue: float
    runs: int


def concordance(times, reached, permutations: int = 10_000, seed: int = 0) -> Concordance:
    """Kendall's W, corrected for ties, with a permutation test that shuffles the ranks within each run.

    A ranking is complete if all parts arrived, or all but one that is censored at or after the last arrival: it is last.
    The test enumerates the shuffles if there are no more than `permutations`; else it draws them, and counts the observed.
    """
    times, reached = _arrays(times, reached)
    last = ~reached & (times == times.max(1, keepdims=True))
    complete = (reached | last).all(1) & (last.sum(1) <= 1)
    ranks = rankdata(np.where(last, np.inf, times)[complete], axis=1)
    m, n = ranks.shape
    if n < 3 or m < 2 or not np.ptp(ranks, axis=1).any():
        return Concordance(float("nan"), float("nan"), m)
    W = friedmanchisquare(*ranks.T).statistic / (m * (n - 1))

    # Shuffles keep each run's ties, so W grows with the sum of squares of the summed ranks alone.
    def squares(*parts, axis):
        return sum(part.sum(axis) ** 2 for part in parts)

    how = {"permutation_type": "samples", "alternative": "greater", "vectorized": True, "batch": 1000}
    test = permutation_test(ranks.T, squares, n_resamples=permutations, random_state=np.random.default_rng(seed), **how)
    return Concordance(float(W), float(test.pvalue), m)


def spread(times, reached):
    """Time from the first to the last arrival in each run: (value [R], reached [R]), to be given to `stats.median`.

    Censored where a part has not arrived, at the latest known time; at 0 where none has.
    """
    times, reached = _arrays(times, reached)
    first = np.where(reached, times, np.inf).min(1)
    return np.where(reached.any(1), times.max(1) - first, 0.0), reached.all(1)


def first_counts(times, reached) -> np.ndarray:
    """[P] runs in which each part arrived first; k parts that tie get 1/k each.

    A run counts for nobody if a part is censored no later than the first arrival.
    """
    times, reached = _arrays(times, reached)
    first = times == times.min(1, keepdims=True)
    first = first[(reached | ~first).all(1)]
    return (first / first.sum(1, keepdims=True)).sum(0)
