import numpy as np
import pytest

from jaxgrok import stats
from jaxgrok.stats import Arrival

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def arrivals_of(times, reached):
    return [Arrival(float(time), bool(here)) for time, here in zip(times, reached)]


def all_arrived(times):
    return [Arrival(time, True) for time in times]


def variance_of(curve):
    """The variance of the share that survives, read off its log-log band."""
    log = np.log(curve.surviving)
    return (np.log(np.log(curve.low) / np.where(log < 0, log, np.nan)) / Z * curve.surviving * log) ** 2


def kaplan_meier(times, reached):
    """Survival after each distinct time by the product formula, with Greenwood's log-log band."""
    out, alive, green = [], 1.0, 0.0
    for time in sorted(set(times)):
        at_risk = sum(t >= time for t in times)
        events = sum(t == time and r for t, r in zip(times, reached))
        alive *= 1 - events / at_risk
        green += events / (at_risk * (at_risk - events)) if at_risk > events else np.inf
        if 0 < alive < 1:
            half = Z * np.sqrt(green) / abs(np.log(alive))
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

    m = stats.median(arrivals_of(times, reached))
    assert (m.value, m.low, m.high) == (first(1), first(2), first(3))
    assert (m.arrived, m.total, m.longest) == (reached.sum(), 12, times.max())


def test_without_censoring_it_is_the_ordinary_median():
    assert stats.median(all_arrived([5, 1, 9])).value == 5


def test_a_median_of_zero_is_a_median():
    m = stats.median(all_arrived([0, 0, 0, 7]))
    assert m.value == 0
    assert str(m) == "0 [0, -]"


@pytest.mark.parametrize("half", range(1, 65))
def test_half_arrived_is_a_median_whatever_the_rounding(half):
    arrived = all_arrived(range(1, half + 1))
    assert stats.median(arrived + [Arrival(1000, False)] * half).value == half
    assert stats.median(arrived + [Arrival(1000, False, ruled_out=True)] * half).value == half
    early = [Arrival(0, False, ruled_out=True)] * half
    assert stats.median(early + arrived).value == half


def test_a_median_that_is_not_reached_says_how_far_it_got():
    m = stats.median([Arrival(40_000, False)] * 29 + all_arrived([30_000, 35_000, 39_000]))
    assert m.value is None
    assert str(m) == "> 40,000 (3/32)"
    assert str(stats.median([Arrival(2500, False)] * 2)) == "> 2,500 (0/2)"
    assert str(stats.median([Arrival(0, False)] * 2)) == "- (0/2)"
    assert str(stats.median([])) == "-"


def test_with_four_runs_there_is_no_upper_bound():
    m = stats.median(all_arrived([6100, 7600, 8000, 9000]))
    assert (m.value, m.high) == (7600, None)
    assert str(m) == "7,600 [6,100, -]"
    assert stats.median(all_arrived(range(1, 9))).high is not None


def test_survival_is_a_curve_with_a_band_around_it():
    curve = stats.survival_curve(arrivals_of([1, 2, 3, 4, 5], [True, True, False, True, False]))
    assert curve.time.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(curve.surviving, [0.8, 0.6, 0.6, 0.3, 0.3])
    assert (curve.low <= curve.surviving).all()
    assert (curve.surviving <= curve.high).all()


def coverage(m_of_draw, true_median, draws=400):
    medians = [m_of_draw() for _ in range(draws)]
    lows = np.array([0 if m.low is None else m.low for m in medians])
    highs = np.array([np.inf if m.high is None else m.high for m in medians])
    return np.mean((lows <= true_median) & (true_median <= highs))


def test_the_interval_covers_the_true_median():
    rng = np.random.default_rng(1)

    def draw():
        times, limits = rng.exponential(1, 16), rng.exponential(2.5, 16)
        return stats.median(arrivals_of(np.minimum(times, limits), times <= limits))

    # 95 % nominal; three binomial standard errors of 400 draws are 3.3 %
    assert coverage(draw, np.log(2)) > 0.917


def test_diverged_runs_never_arrive():
    """The median of 2 runs that grok and 6 that diverge is not that of the two."""
    diverged = [Arrival(time, False, ruled_out=True) for time in (100, 200, 300, 400, 500, 600)]
    m = stats.median([*diverged, *all_arrived([5000, 9000])])
    assert (m.value, m.high) == (None, None)
    assert str(m) == "> 9,000 (2/8)"
    # half of them arrive, the last at 9000; with one more diverged, they are fewer than half
    arrived = all_arrived([5000, 6000, 9000])
    assert stats.median(diverged[:3] + arrived).value == 9000
    assert stats.median(diverged[:4] + arrived).value is None
    assert str(stats.median(diverged)) == "> 600 (0/6)"


def test_cumulative_incidence_by_hand():
    fates = [Arrival(1, True), Arrival(2, False, True), Arrival(3, True), Arrival(4, False), Arrival(5, True)]
    curve = stats.survival_curve(fates)
    # At risk 5, 4, 3, 2, 1; survival from both causes before each time 1, 4/5, 3/5, 2/5, 2/5.
    # The incidence grows by 1 * 1/5 at 1, by 3/5 * 1/3 at 3, and by 2/5 * 1/1 at 5.
    assert curve.time.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(1 - curve.surviving, [1 / 5, 1 / 5, 2 / 5, 2 / 5, 4 / 5])
    # Until 4 nothing is censored, and the variance is that of a share of 5: I (1 - I) / 5. At 5 it is the sum of, for
    # 1: 0.6^2 / 20 + 4 / 125 - 2 * 0.6 / 25 = 0.002; for 2: 0.6^2 / 12 = 0.03; for 3: 0.4^2 / 6 + 0.6^2 * 2 / 27 -
    # 2 * 0.4 * 0.6 / 9 = 0; for 5: 0, since nobody is left.
    np.testing.assert_allclose(variance_of(curve), [0.032, 0.032, 0.048, 0.048, 0.032])
    np.testing.assert_allclose(np.log(curve.high) * np.log(curve.low), np.log(curve.surviving) ** 2)
    assert stats.median(fates).value == 5


@pytest.mark.parametrize("seed", range(4))
def test_without_competing_events_the_incidence_is_one_minus_kaplan_meier(seed):
    """A run ruled out after all others is, until then, one that is censored."""
    rng = np.random.default_rng(seed)
    others = arrivals_of(rng.integers(1, 40, size=20), rng.random(20) < 0.7)
    censored = stats.survival_curve([*others, Arrival(50, False)])
    ruled_out = stats.survival_curve([*others, Arrival(50, False, ruled_out=True)])
    for ours, greenwood in zip(ruled_out, censored):
        np.testing.assert_allclose(ours, greenwood, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_without_censoring_the_incidence_is_a_share_with_its_binomial_variance(seed):
    rng = np.random.default_rng(seed)
    times, reached = rng.integers(1, 30, size=20), rng.random(20) < 0.6
    curve = stats.survival_curve([Arrival(time, here, not here) for time, here in zip(times, reached)])
    share = np.array([np.mean(reached & (times <= time)) for time in curve.time])
    np.testing.assert_allclose(1 - curve.surviving, share, atol=1e-12)
    inside = share > 0
    np.testing.assert_allclose(variance_of(curve)[inside], (share * (1 - share) / 20)[inside])
    assert np.isnan(curve.low[~inside]).all()


def test_the_interval_covers_the_true_median_with_competing_events():
    """Rates 1 of arriving, 1/2 of diverging and 1/4 of being censored: the incidence is 2/3 (1 - exp(-3/2 t))."""
    rng, runs = np.random.default_rng(2), 40
    true_median = np.log(4) / 1.5

    def fate():
        arrive, diverge, censor = rng.exponential([1, 2, 4])
        time = min(arrive, diverge, censor)
        return Arrival(time, time == arrive, time == diverge)

    # 95 % nominal; three binomial standard errors of 400 draws are 3.3 %
    assert 0.917 < coverage(lambda: stats.median([fate() for _ in range(runs)]), true_median) < 0.983
    # Kaplan-Meier tends to log 2 = 0.69 instead
    assert stats.median([fate() for _ in range(4000)]).value == pytest.approx(true_median, rel=0.06)


def test_sign_test_on_shared_seeds_counts_what_censoring_leaves_open():
    first = {0: Arrival(100, True), 1: Arrival(120, True), 2: Arrival(300, False), 3: Arrival(90, True)}
    second = {0: Arrival(200, True), 1: Arrival(110, True), 2: Arrival(400, True), 3: Arrival(80, False)}
    c = stats.compare(first, second)
    assert c.test == "sign"
    # seed 2: censored at 300, the other arrived at 400: open. seed 3: censored at 80, before 90: open.
    assert (c.first, c.second, c.undecided) == (1, 1, 2)
    assert c.pvalue == pytest.approx(1.0)
    early = {seed: arrival for seed, arrival in first.items() if arrival.reached}
    late = {seed: Arrival(arrival.time + 1000, True) for seed, arrival in early.items()}
    assert stats.compare(early, late).pvalue == pytest.approx(2 * 0.5**3)


def test_a_run_that_arrived_is_earlier_than_one_that_never_can():
    diverged, censored, arrived = Arrival(50, False, ruled_out=True), Arrival(50, False), Arrival(100, True)
    c = stats.compare(dict(enumerate([arrived, diverged, diverged])), dict(enumerate([diverged, diverged, censored])))
    # seed 1: both ruled out; seed 2: the censored run may or may not arrive
    assert (c.first, c.second, c.undecided) == (1, 0, 2)
    assert (stats.compare({0: diverged}, {0: arrived}).second, stats.compare({0: censored}, {0: arrived}).second) == (
        1,
        0,
    )
    assert np.isnan(stats.compare({0: diverged}, {0: diverged}).pvalue)


def test_other_seeds_are_compared_by_log_rank():
    first = {seed: Arrival(100 + seed, True) for seed in range(10)}
    second = {seed: Arrival(900 + seed, True) for seed in range(20, 30)}
    c = stats.compare(first, second)
    assert c.test == "log-rank"
    assert c.pvalue < 1e-3
    assert np.isnan(stats.compare({0: Arrival(5, False)}, {1: Arrival(5, False)}).pvalue)
    assert np.isnan(stats.compare({}, second).pvalue)


def test_log_rank_keeps_ruled_out_runs_at_risk():
    """Of 16 runs 2 arrive and 14 diverge; of 16 others all arrive, at the same times: the cells differ."""
    second = {seed: Arrival(100 + seed % 2, True) for seed in range(20, 36)}
    survivors = {0: Arrival(100, True), 1: Arrival(101, True)}

    def pvalue(diverged):
        return stats.compare({**survivors, **{seed: diverged for seed in range(2, 16)}}, second).pvalue

    assert pvalue(Arrival(10, False, ruled_out=True)) == pvalue(Arrival(101, False)) < 1e-3
    assert pvalue(Arrival(10, False)) > 0.5


def test_holm():
    # ascending 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last is raised to the one before
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # as by R's p.adjust and statsmodels' multipletests
    assert stats.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert stats.holm([0.4, 0.9, 0.0]) == pytest.approx([0.8, 0.9, 0.0])
    assert stats.holm([0.5, 0.6, 0.7]) == [1, 1, 1]
    assert stats.holm([]) == []


def test_holm_does_not_count_what_decides_nothing():
    adjusted = stats.holm([float("nan"), 0.02, float("nan"), 0.01])
    assert np.isnan(adjusted[0])
    assert np.isnan(adjusted[2])
    assert (adjusted[1], adjusted[3]) == (0.02, 0.02)
    assert np.isnan(stats.holm([float("nan")])).all()
