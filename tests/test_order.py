from itertools import permutations
from math import factorial

import numpy as np
import pytest

from jaxgrok import stats
from jaxgrok.stats import Arrival, order

CENSORED = (
    np.array([[1, 2, 3], [1, 2, 2], [5, 1, 9], [4, 4, 3]]),
    np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1]], bool),
)


def textbook(ranks):
    """Kendall's W of ranks [m, n], with his correction for ties."""
    m, n = ranks.shape
    sums = ranks.sum(0)
    ties = sum(int(k**3 - k) for row in ranks for k in np.unique(row, return_counts=True)[1])
    return 12 * ((sums - sums.mean()) ** 2).sum() / (m**2 * (n**3 - n) - m * ties)


def reached(times):
    return np.ones(np.shape(times), bool)


def test_before_counts_what_censoring_and_ties_leave_open():
    pairs = order.before(*CENSORED)
    # run 0 decides all; 1: 0 < 1, 0 < 2, and 2 is censored as 1 arrives; 2: 1 < 0, 1 < 2; 3: 2 < 0, 2 < 1.
    np.testing.assert_array_equal(pairs.first, [[0, 2, 2], [1, 0, 2], [1, 1, 0]])
    np.testing.assert_array_equal(pairs.decided, [[0, 3, 3], [3, 0, 3], [3, 3, 0]])
    np.testing.assert_allclose(pairs.share, [[np.nan, 2 / 3, 2 / 3], [1 / 3, np.nan, 2 / 3], [1 / 3, 1 / 3, np.nan]])


def test_ties_are_undecided():
    ties = np.array([[3, 3], [3, 3]])
    pairs = order.before(ties, reached(ties))
    assert not pairs.decided.any()
    assert np.isnan(pairs.share).all()


def test_before_agrees_with_the_sign_test():
    rng = np.random.default_rng(0)
    times, here = rng.integers(1, 9, (40, 2)), rng.random((40, 2)) < 0.6
    cells = [{run: Arrival(times[run, part], here[run, part]) for run in range(40)} for part in range(2)]
    c, pairs = stats.compare(cells[0], cells[1]), order.before(times, here)
    assert (pairs.first[0, 1], pairs.first[1, 0], 40 - pairs.decided[0, 1]) == (c.first, c.second, c.undecided)


@pytest.mark.parametrize("seed", range(6))
def test_concordance_by_the_textbook(seed):
    times = np.random.default_rng(seed).integers(1, 6, (7, 4))
    ranks = np.array([[(row < t).sum() + ((row == t).sum() + 1) / 2 for t in row] for row in times])
    c = order.concordance(times, reached(times), permutations=10)
    assert (c.W, c.runs) == (pytest.approx(textbook(ranks)), 7)


def test_the_same_order_in_every_run_is_one_and_opposite_orders_are_zero():
    same = np.array([[1, 5, 9, 11], [100, 101, 102, 103], [2, 30, 31, 400]])
    c = order.concordance(same, reached(same), permutations=factorial(4) ** 3)
    # all shuffles are enumerated, and 4! of them give all runs one order
    assert (c.W, c.pvalue) == (pytest.approx(1), pytest.approx(factorial(4) / factorial(4) ** 3))
    opposite = np.array([[1, 2, 3], [3, 2, 1]])
    assert order.concordance(opposite, reached(opposite)) == order.Concordance(0, 1, 2)


def test_pvalue_is_that_of_all_shuffles():
    times = np.array([[1, 2, 3], [1, 3, 2], [1, 2, 2], [2, 1, 3]])
    ranks = np.array([[1, 2, 3], [1, 3, 2], [1, 2.5, 2.5], [2, 1, 3]])
    every = [list(permutations(row)) for row in ranks]
    squares = [
        (np.add(np.add(a, b), np.add(c, d)) ** 2).sum()
        for a in every[0]
        for b in every[1]
        for c in every[2]
        for d in every[3]
    ]
    exact = np.mean(np.array(squares) >= (ranks.sum(0) ** 2).sum())
    assert order.concordance(times, reached(times)).pvalue == pytest.approx(exact)
    drawn = order.concordance(times, reached(times), permutations=1000).pvalue
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1000))
    assert (drawn * 1001) == pytest.approx(round(drawn * 1001))
    assert drawn == order.concordance(times, reached(times), permutations=1000).pvalue


def test_pvalues_of_random_orders_are_uniform_and_a_shared_order_is_found():
    rng = np.random.default_rng(2)
    times = rng.random((300, 6, 4))
    pvalues = np.array([order.concordance(run, reached(run), permutations=300).pvalue for run in times])
    for level in (0.1, 0.5, 0.9):
        assert abs(np.mean(pvalues <= level) - level) < 4 * np.sqrt(level * (1 - level) / 300)
    shared = rng.random((12, 4)) + 0.3 * np.arange(4)
    assert order.concordance(shared, reached(shared)).pvalue < 0.01


def test_only_complete_rankings_count():
    times = np.array([[1, 2, 3], [1, 2, 2], [1, 2, 7], [1, 3, 2], [1, 4, 4]])
    here = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
    # run 3: the last part is censored before the second arrived; run 4: two are censored
    c = order.concordance(times, here)
    assert (c.W, c.runs) == (pytest.approx(1), 3)


def test_no_concordance_of_two_parts_one_run_or_ties_alone():
    for times in ([[1, 2], [1, 3]], [[1, 2, 3]], [[4, 4, 4], [5, 5, 5]], np.empty((0, 3))):
        c = order.concordance(np.array(times), reached(times))
        assert np.isnan([c.W, c.pvalue]).all()
        assert c.runs == len(times)


def test_spread_is_a_censored_time():
    times = np.array([[1, 5, 9], [2, 7, 4], [3, 8, 2], [6, 6, 6]])
    here = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    spreads = order.spread(times, here)
    assert spreads == [Arrival(8, True), Arrival(5, False), Arrival(5, False), Arrival(0, False)]
    assert stats.median(spreads).value == 8


def test_first_counts_share_ties_and_leave_out_what_is_open():
    # run 3: parts 0 and 1 are censored after part 2 arrived
    assert order.first_counts(*CENSORED).tolist() == [2, 1, 1]
    ties = np.array([[4, 4, 9], [7, 7, 7]])
    assert order.first_counts(ties, reached(ties)) == pytest.approx([1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3])
    # censored before, or as, the first arrives; nothing arrives
    times, here = np.array([[3, 2], [3, 3], [9, 9]]), np.array([[True, False], [True, False], [False, False]])
    assert order.first_counts(times, here).tolist() == [0, 0]
    times = np.random.default_rng(0).integers(1, 5, (50, 3))
    assert order.first_counts(times, reached(times)).sum() == pytest.approx(50)
