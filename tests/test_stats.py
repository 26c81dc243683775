import numpy as np
import pytest

from jaxgrok.stats import survival as stats


def kaplan_meier(times, reached):
    """Survival after each distinct time, by the product formula, with Greenwood's log-log band."""
    out, alive, green = [], 1.0, 0.0
    for time in sorted(set(times)):
        at_risk = sum(t >= time for t in times)
        events = sum(t == time and r for t, r in zip(times, reached))
        alive *= 1 - events / at_risk
        green += events / (at_risk * (at_risk - events)) if at_risk > events else np.inf
        if 0 < alive < 1:
            half = 1.959963984540054 * np.sqrt(green) / abs(np.log(alive))
            band = alive ** np.exp(half), alive ** np.exp(-half)
        else:
            band = np.nan, np.nan
        out.append((time, alive, *band))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_median_and_interval_against_the_product_formula(seed):
    rng = np.random.default_rng(seed)
    times = rng.integers(1, 40, size=12)
    reached = rng.random(12) < 0.7
    table = kaplan_meier(times, reached)

    def first(column):
        return next((row[0] for row in table if row[column] <= 0.5 + 1e-9), None)

    m = stats.median(times, reached)
    assert (m.value, m.low, m.high) == (first(1), first(2), first(3))
    assert (m.arrived, m.total) == (reached.sum(), 12)


def test_without_censoring_it_is_the_ordinary_median():
    assert stats.median([5, 1, 9], [True] * 3).value == 5


@pytest.mark.parametrize("half", range(1, 65))
def test_half_arrived_is_a_median_whatever_the_rounding(half):
    times = [*range(1, half + 1), *[1000] * half]
    assert stats.median(times, [True] * half + [False] * half).value == half


def test_a_median_that_is_not_reached_says_how_far_it_got():
    m = stats.median([40_000] * 29 + [30_000, 35_000, 39_000], [False] * 29 + [True] * 3)
    assert m.value is None
    assert str(m) == "> 40,000 (3/32)"
    assert str(stats.median([2500, 2500], [False, False])) == "> 2,500 (0/2)"
    assert str(stats.median([], [])) == "-"


def test_with_four_runs_there_is_no_upper_bound():
    m = stats.median([6100, 7600, 8000, 9000], [True] * 4)
    assert (m.value, m.high) == (7600, None)
    assert str(m) == "7,600 [6,100, -]"
    assert stats.median(range(1, 9), [True] * 8).high is not None


def test_survival_is_a_curve_with_a_band_around_it():
    time, alive, low, high = stats.survival([1, 2, 3, 4, 5], [True, True, False, True, False])
    assert time.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(alive, [0.8, 0.6, 0.6, 0.3, 0.3])
    assert (low <= alive).all()
    assert (alive <= high).all()


def test_the_interval_covers_the_true_median():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        times = rng.exponential(1, 16)
        limit = rng.exponential(2.5, 16)
        m = stats.median(np.minimum(times, limit), times <= limit)
        covered += (m.low or 0) <= np.log(2) <= (np.inf if m.high is None else m.high)
    # 95 % nominal; three binomial standard errors of 400 draws are 3.3 %
    assert covered / 400 > 0.917


def test_sign_test_on_shared_seeds_counts_what_censoring_leaves_open():
    first = {0: (100, True), 1: (120, True), 2: (300, False), 3: (90, True)}
    second = {0: (200, True), 1: (110, True), 2: (400, True), 3: (80, False)}
    c = stats.compare(first, second)
    assert c.test == "sign"
    # seed 2: censored at 300, the other arrived at 400: open. seed 3: censored at 80, before 90: open.
    assert (c.first, c.second, c.undecided) == (1, 1, 2)
    assert c.pvalue == pytest.approx(1.0)
    late = {seed: (time + 1000, reached) for seed, (time, reached) in first.items() if reached}
    early = {seed: first[seed] for seed in late}
    assert stats.compare(early, late).pvalue == pytest.approx(2 * 0.5**3)


def test_other_seeds_are_compared_by_log_rank():
    first = {seed: (100 + seed, True) for seed in range(10)}
    second = {seed: (900 + seed, True) for seed in range(20, 30)}
    c = stats.compare(first, second)
    assert c.test == "log-rank"
    assert c.pvalue < 1e-3
    assert np.isnan(stats.compare({0: (5, False)}, {1: (5, False)}).pvalue)
    assert np.isnan(stats.compare({}, second).pvalue)
