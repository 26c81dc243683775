from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from jaxgrok.stats import threshold


def outcomes(table):
    """Sizes and outcomes, a run each, from {size: (generalised, runs)}."""
    sizes = [size for size, (_, runs) in table.items() for _ in range(runs)]
    return sizes, [run < done for done, runs in table.values() for run in range(runs)]


def simulated(rng, sizes, N50=700, slope=5):
    return rng.random(len(sizes)) < expit(slope * np.log(np.asarray(sizes) / N50))


def test_the_most_likely_size_and_interval_against_an_optimiser():
    sizes, done = outcomes({400: (1, 12), 600: (4, 12), 800: (7, 12), 1200: (10, 12), 1800: (12, 12)})
    x, y = np.log(sizes), np.array(done)

    def nll(intercept, slope):
        return -np.log(expit(np.where(y, 1, -1) * (intercept + slope * (x - x.mean())))).sum()

    fit = minimize(lambda ab: nll(*ab), [0.0, 1.0])
    N50 = np.exp(x.mean() - fit.x[0] / fit.x[1])
    c = threshold.crossover(sizes, done)
    assert c.size == pytest.approx(N50, rel=0.01)
    for bound in (c.low, c.high):
        shift = x.mean() - np.log(bound)
        profile = minimize(lambda slope, shift: nll(slope[0] * shift, slope[0]), [3.0], args=(shift,)).fun
        assert 2 * (profile - fit.fun) == pytest.approx(3.84, abs=0.15)
    assert c.low < c.size < c.high
    assert (c.runs, c.generalised, c.smallest, c.largest) == (60, 34, 400, 1800)


def test_the_interval_covers_the_true_size():
    rng = np.random.default_rng(0)
    sizes = np.repeat(np.geomspace(250, 2000, 5).round(), 10)
    fits = [threshold.crossover(sizes, simulated(rng, sizes)) for _ in range(200)]
    assert all(c.low is not None and c.high is not None for c in fits)
    intervals = [(c.low, c.high) for c in fits]

    def coverage(N50):
        return np.mean([low <= N50 <= high for low, high in intervals])

    # 95 % nominal; three binomial standard errors of 200 draws are 4.6 %
    assert 0.904 < coverage(700) < 0.997
    assert max(coverage(700 / 1.5), coverage(700 * 1.5)) < 0.7
    assert np.mean(np.log([c.size for c in fits])) == pytest.approx(np.log(700), abs=0.03)


def test_separated_outcomes_put_it_in_the_geometric_middle_of_the_gap():
    c = threshold.crossover(*outcomes({100: (0, 4), 200: (0, 4), 400: (4, 4), 800: (4, 4)}))
    assert c.size == pytest.approx(np.sqrt(200 * 400), rel=0.005)
    assert c.low == pytest.approx(200, rel=0.01)
    assert c.high == pytest.approx(400, rel=0.01)
    assert str(threshold.crossover(*outcomes({70: (0, 4), 80: (4, 4)}))) == "75 [70, 80]"
    assert str(threshold.Crossover(7000.4, 6100.0, None, 8, 4, 6000, 8000)) == "7,000 [6,100, -]"


def test_a_size_half_of_whose_runs_generalise_is_the_crossover():
    c = threshold.crossover(*outcomes({250: (0, 6), 500: (3, 6), 1000: (6, 6)}))
    assert c.size == pytest.approx(500, rel=0.005)
    assert c.low * c.high == pytest.approx(500**2, rel=0.01)


def test_the_likeliest_size_is_not_the_middle_of_the_likely_ones():
    # any steep curve through 1/4 at 400
    c = threshold.crossover(*outcomes({200: (0, 4), 400: (1, 4), 800: (4, 4)}))
    assert 400 < c.size < 440
    assert c.high > 500


def test_what_the_runs_do_not_bound_is_none():
    none = threshold.crossover(*outcomes({1000: (0, 8), 4000: (0, 8)}))
    assert (none.size, none.high, str(none)) == (None, None, "> 4,000")
    assert none.low == pytest.approx(4000, rel=0.01)
    every = threshold.crossover(*outcomes({100: (8, 8), 4000: (8, 8)}))
    assert (every.size, every.low, str(every)) == (None, None, "< 100")
    assert every.high == pytest.approx(100, rel=0.01)
    # as many generalise everywhere, or fewer of the larger: no size is more likely than another
    assert str(threshold.crossover(*outcomes({100: (2, 4), 200: (2, 4)}))) == "- [-, -]"
    assert str(threshold.crossover(*outcomes({100: (3, 4), 200: (1, 4)}))) == "- [-, -]"
    # one run a size is not enough for an interval
    assert str(threshold.crossover([100, 200], [False, True])) == "141 [-, -]"
    assert str(threshold.crossover([], [])) == "-"


def test_the_order_of_the_runs_does_not_matter():
    sizes, done = outcomes({250: (1, 6), 500: (3, 6), 1000: (6, 6)})
    order = np.random.default_rng(0).permutation(18)
    assert threshold.crossover(np.array(sizes)[order], np.array(done)[order]) == threshold.crossover(sizes, done)


def test_the_first_sizes_are_spaced_geometrically():
    assert threshold.next_sizes([], [], 5, 100, 1600) == (100, 200, 400, 800, 1600)
    assert threshold.next_sizes([], [], 5, 2, 4) == (2, 3, 4)


def test_the_next_sizes_lie_inside_the_bracket():
    def ask(table, count=3):
        return threshold.next_sizes(*outcomes(table), count, 100, 1600)

    assert ask({100: (0, 4), 400: (1, 4), 1600: (4, 4)}) == (566, 800, 1131)
    assert ask({100: (0, 4), 400: (2, 4), 1600: (4, 4)}, count=1) == (200,)
    assert ask({400: (0, 4), 439: (4, 4)}) == ()
    assert ask({400: (0, 4), 441: (4, 4)}, count=1) == (420,)
    # integers run out
    assert threshold.next_sizes(*outcomes({2: (0, 4), 3: (4, 4)}), 3, 2, 3) == ()
    # neither end is crossed; a size still untried there is
    for table in ({100: (4, 4), 400: (4, 4)}, {400: (0, 4), 1600: (0, 4)}, {3200: (0, 1)}, {50: (1, 1)}):
        assert ask(table) == ()
    assert ask({400: (4, 4)}, count=1) == (200,)
    assert ask({400: (0, 4)}, count=1) == (800,)


def test_outcomes_that_cross_are_searched_over_the_profile_interval():
    table = {400: (0, 8), 566: (5, 8), 800: (3, 8), 1131: (8, 8), 1600: (8, 8)}
    c, sizes = threshold.crossover(*outcomes(table)), threshold.next_sizes(*outcomes(table), 3, 100, 1600)
    assert c.low < 566 < 800 < c.high
    assert len(sizes) == 3
    assert all(c.low < size < c.high for size in sizes)
    # close enough already, though the interval as a whole is not
    table = {400: (0, 4), 600: (0, 4), 640: (3, 4), 690: (1, 4), 740: (4, 4), 800: (4, 4)}
    c = threshold.crossover(*outcomes(table))
    assert c.high / c.low > 1.11
    assert threshold.next_sizes(*outcomes(table), 3, 100, 1600) == ()
    # neither below low nor above high, where the interval goes on
    table = {400: (3, 8), 450: (5, 8), 500: (3, 8), 550: (6, 8), 1600: (8, 8)}
    c = threshold.crossover(*outcomes(table))
    assert c.low < 390 < 410 < c.high
    assert min(threshold.next_sizes(*outcomes(table), 50, 400, 1600)) > 400
    assert max(threshold.next_sizes(*outcomes(table), 50, 100, 410)) < 410
    # without bounds, all sizes
    assert threshold.next_sizes(*outcomes({100: (1, 1), 400: (0, 1)}), 1, 50, 800) == (200,)
    # and where those were tried, the middle of the widest gap: a search that cannot bracket goes on
    assert threshold.next_sizes(*outcomes({100: (1, 1), 200: (0, 1)}), 1, 50, 800) == (400,)


def test_a_search_whose_outcomes_cross_at_the_ends_goes_on_until_neighbours_are_close():
    """The larger of two sizes fails, and again: no bracket, and an interval without bounds."""
    sizes, done = [100, 197, 311, 390, 770, 965, 1519, 3000], [False, False, False, False, False, True, True, False]
    c = threshold.crossover(sizes, done)
    assert (c.low, c.high) == (None, None)
    while asked := threshold.next_sizes(sizes, done, 4, 100, 3000):
        assert not set(asked) & set(sizes)
        sizes, done = [*sizes, *asked], [*done, *(size > 800 for size in asked)]
    knots = sorted(sizes)
    c = threshold.crossover(sizes, done)
    low, high = (100 if c.low is None else c.low), (3000 if c.high is None else c.high)
    inside = [size for size in knots if low <= size <= high]
    assert max(b / a for a, b in pairwise(inside)) <= 1.1


@pytest.mark.parametrize(("N50", "slope"), [(700, 1e5), (137, 1e5), (3600, 1e5), (700, 10), (300, 6)])
def test_a_search_converges_onto_a_planted_threshold(N50, slope):
    rng = np.random.default_rng(0)
    sizes, done, rounds = [], [], 0
    while asked := threshold.next_sizes(sizes, done, 4, 100, 4000):
        assert not set(asked) & set(sizes)
        runs = np.repeat(asked, 8).tolist()
        sizes, done, rounds = sizes + runs, [*done, *simulated(rng, runs, N50, slope)], rounds + 1
        assert rounds < 6
    c = threshold.crossover(sizes, done)
    # a step is steeper than the model can be, by less than 1 %
    assert c.low / 1.01 <= N50 <= c.high * 1.01
    assert c.size == pytest.approx(N50, rel=0.06 if slope == 1e5 else 0.2)
    assert c.high / c.low < (1.11 if slope == 1e5 else 1.7)
