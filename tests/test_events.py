"""The events of planted runs, whose times are known."""

from dataclasses import replace

import numpy as np
import pytest

from jaxgrok.stats import Arrival
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.events import (
    Outcome,
    RestrictedLoss,
    Timing,
    first_held,
    settled_epoch,
    spikes,
    time_run,
    with_restricted,
)
from jaxgrok.tasks import Criterion

ACCURACY, LOSS = Criterion(accuracy=0.99), Criterion(loss=1.15)


def run(train_at=140, grok_at=7600, length=12_000, every=10, peak=1400, top=25.0, bottom=1e-6):
    """A planted run: memorised and grokked at these epochs; the test loss rises to `top` at `peak`, then falls
    log-linearly from `grok_at - 1000` to `grok_at + 1000`."""
    epochs = np.arange(0, length, every)
    knots = [0, peak, max(grok_at - 1000, peak + 1), grok_at + 1000]
    log_loss = np.interp(epochs, knots, np.log([4.8, top, top * 0.999, bottom]))
    return RunCurves(
        epoch_train=np.arange(0),
        train_loss=np.zeros(0),
        epoch_eval=epochs,
        test_loss=np.exp(log_loss),
        train_acc=(epochs >= train_at) * 1.0,
        test_acc=np.where(epochs >= grok_at, 1.0, 0.1),
        last_epoch=length,
    )


EMPTY = run(length=0)


def timed(curves, criterion=ACCURACY, **how):
    return time_run(curves, criterion, **how)


def test_planted_times_come_back_as_brackets():
    timing = timed(run())
    assert timing.outcome == "grokked"
    assert timing.settled
    assert timing.events["memorised"] == (130, 140)
    assert timing.events["grokked"] == timing.events["grokked_95"] == timing.events["grokked_90"] == (7590, 7600)
    assert timing.delay == 7600 - 140
    # The centre of the flat top of a running median over 11 evaluations lies within 5 of the peak.
    assert abs(timing.by("test_loss_peak") - 1400) <= 50
    # The fall is linear in log loss over 2,000 epochs, apart from 0.001 nats before it.
    for share in (10, 50, 90):
        assert abs(timing.by(f"drop_{share}") - (6600 + 20 * share)) <= 10
    assert abs(timing.drop_width - 1600) <= 20


def test_criterion_must_go_on_holding_for_five_more():
    holds = np.zeros(40, bool)
    holds[[3, 4, 5, 6, 7]] = True  # the first and 4 more
    holds[10:16] = True  # the first and 5 more
    assert first_held(holds) == 10
    assert first_held(holds[:14]) == 10  # to the end of the run
    assert first_held(holds[:9]) is None
    assert first_held(np.ones(3, bool)) == 0
    assert first_held(np.zeros(0, bool)) is None


def test_held_against_the_obvious_loop(rng):
    def obvious(holds):
        for i in range(len(holds)):
            if holds[i : i + 6].all():  # 6 entries, or all that are left
                return i
        return None

    for _ in range(500):
        holds = rng.random(rng.integers(0, 40)) < 0.8
        assert first_held(holds) == obvious(holds)


def test_a_run_that_grokked_at_once_has_no_peak_before_it():
    assert "test_loss_peak" not in timed(run(train_at=0, grok_at=0, peak=50, length=3000)).events


def test_an_event_at_the_first_evaluation_has_an_empty_bracket():
    assert timed(run(train_at=0)).events["memorised"] == (0, 0)


def test_a_run_that_has_not_arrived():
    timing = timed(run(grok_at=20_000))
    assert timing.outcome == "memorised only"
    assert "grokked" not in timing.events
    assert timing.delay is None
    assert timing.drop_width is None
    assert not timing.settled
    assert timed(run(train_at=10**6, grok_at=10**6)).outcome == "not memorised"


def test_a_peak_at_the_end_is_not_reached():
    assert "test_loss_peak" not in timed(run(grok_at=10**6, peak=12_000)).events
    assert "test_loss_peak" in timed(run(grok_at=10**6, peak=11_900)).events


def test_the_peak_lies_before_grokking_even_if_a_spike_comes_after():
    curves = run()
    curves.test_loss[900:920] = 1e3
    assert abs(timed(curves).by("test_loss_peak") - 1400) <= 50


def test_one_spike_is_not_the_peak():
    curves = run()
    curves.test_loss[300] = 1e3
    assert abs(timed(curves).by("test_loss_peak") - 1400) <= 50


@pytest.mark.parametrize(("grokked", "settles"), [(100, 2100), (4000, 6000), (7600, 11_400)])
def test_settled(grokked, settles):
    assert settled_epoch(grokked) == settles
    for last, expected in ((settles - 10, False), (settles, True)):
        timing = timed(run(grok_at=grokked, peak=50, length=last))
        assert timing.settled == expected
        assert ("drop_10" in timing.events) == expected


@pytest.mark.parametrize("curve", ["test_loss", "train_acc"])
def test_a_run_that_diverged_is_cut_at_its_last_finite_evaluation(curve):
    curves = run()
    getattr(curves, curve)[500:] = np.nan
    timing = timed(curves)
    assert (timing.outcome, timing.last_epoch, timing.settled) == ("diverged", 4990, False)
    assert timing.by("memorised") == 140
    assert "grokked" not in timing.events


def test_a_run_that_diverged_between_evaluations():
    assert timed(replace(run(), train_loss=np.array([1.0, np.inf]))).outcome == "diverged"


def test_a_run_that_was_never_finite_or_never_started():
    curves = run()
    curves.test_loss[:] = np.nan
    assert timed(curves) == Timing(Outcome.DIVERGED, 0, False)
    assert timed(EMPTY) == Timing(Outcome.NOT_MEMORISED, 0, False)


def test_losses_are_floored():
    deep = run()
    deep = replace(deep, test_loss=np.where(deep.test_loss < 1e-5, 0.0, deep.test_loss))
    assert np.isfinite(timed(deep).by("drop_90"))


# --- other criteria ---------------------------------------------------------------------------------------------------


def test_what_a_criterion_asks():
    accuracy, loss = np.array([0.98, 0.99, 1.0]), np.array([0.5, 0.4, 0.6])
    assert Criterion(accuracy=0.99).holds(accuracy, loss).tolist() == [False, True, True]
    assert Criterion(loss=0.5).holds(accuracy, loss).tolist() == [False, True, False]
    assert Criterion(0.99, 0.5).holds(accuracy, loss).tolist() == [False, True, False]
    nan = np.array([np.nan])
    assert Criterion(accuracy=0.99).holds(nan, nan).tolist() == [False]
    assert Criterion(loss=0.5).holds(nan, nan).tolist() == [False]


def test_a_task_whose_criterion_is_a_loss():
    curves = run(grok_at=7600)
    curves = replace(curves, test_acc=np.where(curves.epoch_eval >= 3000, 0.96, 0.1))  # levels off below 0.99
    assert timed(curves).outcome == "memorised only"
    timing = timed(curves, LOSS)
    # log loss falls linearly from log 25 at 6,600 to log 1e-6 at 8,600
    crosses = 6600 + 2000 * np.log(25 / 1.15) / np.log(25e6)
    assert timing.events["grokked"][0] <= crosses <= timing.events["grokked"][1]
    assert timing.events["grokked_95"] == (2990, 3000)
    assert (timing.outcome, timing.settled) == ("grokked", True)
    assert timing.delay == timing.by("grokked") - 140
    assert "drop_50" in timing.events
    # Below the loss for five evaluations in all, one too few.
    curves = replace(curves, test_loss=np.where((curves.epoch_eval >= 500) & (curves.epoch_eval < 550), 1.0, 2.0))
    assert "grokked" not in timed(curves, LOSS).events


def test_with_unlimited_data_nothing_is_memorised():
    timing = timed(run(), unlimited=True)
    assert (timing.outcome, timing.settled, timing.delay) == ("learned", True, None)
    assert "memorised" not in timing.events
    assert timing.events["grokked"] == (7590, 7600)
    assert timed(run(grok_at=20_000), unlimited=True).outcome == "not learned"
    assert timed(run(grok_at=20_000), Criterion(loss=30.0), unlimited=True).outcome == "learned"
    diverged = run()
    diverged.test_loss[500:] = np.nan
    assert timed(diverged, unlimited=True).outcome == "diverged"
    assert timed(EMPTY, unlimited=True) == Timing(Outcome.NOT_LEARNED, 0, False, unlimited=True)


# --- circuits ---------------------------------------------------------------------------------------------------------


def restricted(start=4900, end=6900, length=12_000, every=400):
    """A restricted loss at checkpoints that falls log-linearly from 5 to 1e-7 between these epochs."""
    epochs = np.array([0, 10, 40, 160, *range(400, length + 1, every)])
    return RestrictedLoss(epochs, np.exp(np.interp(epochs, [0, start, end], np.log([4.9, 5.0, 1e-7]))))


def test_stages_of_a_planted_run():
    timing = with_restricted(timed(run()), restricted())
    # 10 % of the fall is at 5,100, 50 % at 5,900, 90 % at 6,700; the checkpoints are 400 apart.
    assert timing.events["restricted_10"] == (4800, 5200)
    assert timing.events["restricted_50"] == (5600, 6000)
    assert timing.events["restricted_90"] == (6400, 6800)
    assert timing.events["stable"] == timing.events["drop_90"]
    peak = timing.by("test_loss_peak")
    assert timing.stages() == {
        "memorisation": (0, peak),
        "interpolation": (peak, 5200),
        "generalisation": (5200, 6800),
        "clean-up": (timing.by("drop_10"), timing.by("drop_90")),
        "stability": (timing.by("drop_90"), 12_000),
    }


def test_stability_comes_after_the_later_of_both_falls():
    timing = with_restricted(timed(run()), restricted(5000, 11_000))
    assert timing.events["stable"] == timing.events["restricted_90"]
    assert timing.by("restricted_90") > timing.by("drop_90")


def test_without_checkpoints_or_settling_or_keys_there_are_no_stages_of_the_circuits():
    assert set(timed(run()).stages()) == {"memorisation", "clean-up"}
    early = run(length=8000)
    assert "restricted_10" not in with_restricted(timed(early), restricted(length=8000)).events
    epochs, loss = restricted()
    assert (
        "restricted_10" not in with_restricted(timed(run()), RestrictedLoss(epochs, np.full(len(loss), np.nan))).events
    )


def test_a_restricted_loss_that_never_falls_has_no_generalisation():
    epochs, _ = restricted()
    assert (
        "restricted_10" not in with_restricted(timed(run()), RestrictedLoss(epochs, np.full(len(epochs), 5.0))).events
    )


# --- lost runs, and what is not known ---------------------------------------------------------------------------------


def losing(evaluations, recover=0):
    """A planted run whose test accuracy falls to 0.1 for these evaluations, `recover` of them before its end."""
    curves = run()
    stop = len(curves.test_acc) - recover
    curves.test_acc[stop - evaluations : stop] = 0.1
    return curves


def test_a_run_that_groks_and_then_loses_it_is_lost():
    timing = timed(losing(200))
    assert timing.outcome == "lost"
    assert timing.events["grokked"] == (7590, 7600)
    assert timing.events["lost"] == (9990, 10_000)
    assert not timing.settled
    assert timing.drop_width is None
    assert "drop_10" not in timing.events
    assert timing.watched == 12_000 - 7600


@pytest.mark.parametrize("unlimited", [False, True])
def test_five_failing_evaluations_at_the_end_make_a_run_lost_and_four_do_not(unlimited):
    assert timed(losing(5), unlimited=unlimited).outcome == "lost"
    four = timed(losing(4), unlimited=unlimited)
    assert four.outcome == ("learned" if unlimited else "grokked")
    assert "lost" not in four.events
    assert four.settled


def test_a_dip_that_recovers_is_not_lost():
    timing = timed(losing(200, recover=50))
    assert (timing.outcome, timing.settled) == ("grokked", True)
    assert "lost" not in timing.events


def test_lost_by_the_task_s_own_criterion():
    curves = run()
    curves.test_loss[-5:] = 2.0
    assert timed(curves, LOSS).outcome == "lost"
    assert timed(curves, ACCURACY).outcome == "grokked"


def test_arrivals_say_what_is_known():
    settled, early, diverged = timed(run()), timed(run(length=8000)), run()
    diverged.test_loss[500:] = np.nan
    diverged = timed(diverged)
    assert settled.arrival("grokked") == Arrival(7600, True)
    assert early.arrival("grokked") == Arrival(7600, True)
    # The run grokked and was not trained on: its fall may not have ended.
    assert early.arrival("drop_90") is None
    assert early.arrival("test_loss_peak").reached
    assert timed(run(grok_at=20_000)).arrival("grokked") == Arrival(12_000, False)
    # A run that diverged will never grok; what it did before counts.
    assert diverged.arrival("grokked") == Arrival(4990, False, ruled_out=True)
    assert diverged.arrival("memorised") == Arrival(140, True)
    assert diverged.delay_arrival == Arrival(4990 - 140, False, ruled_out=True)
    assert timed(run(), unlimited=True).arrival("memorised") is None
    assert timed(run(train_at=10**6, grok_at=10**6)).delay_arrival is None


def test_a_peak_at_epoch_zero_is_a_time_like_any_other():
    """Zero was read as missing: the fall of such a run was censored at its end."""
    timing = timed(run(peak=1, top=4.8))
    assert timing.arrival("test_loss_peak") == Arrival(0, True)
    assert timing.stages()["memorisation"] == (0, 0)


# --- slingshots -------------------------------------------------------------------------------------------------------


def test_spikes_are_counted_once_with_their_height():
    loss = np.full(2000, 1e-6)
    loss[500:520] = [*np.geomspace(1e-4, 0.5, 10), *np.geomspace(0.3, 2e-5, 10)]
    loss[540:545] = 3e-5  # within a window of the first: the same spike
    loss[1000] = 2e-5
    loss[1500] = 9e-6  # not 10 times
    first, second = spikes(np.arange(2000), loss)
    assert (first.start, first.end, first.peak_epoch, first.peak) == (500, 544, 509, 0.5)
    assert first.factor == pytest.approx(0.5e6)
    assert (second.start, second.end, second.peak_epoch) == (1000, 1000, 1000)


def test_a_smooth_curve_has_no_spike_and_a_short_one_none_to_measure():
    epochs = np.arange(3000)
    assert spikes(epochs, 4.8 * np.exp(-epochs / 50) + 1e-7) == []
    assert spikes(epochs[:50], np.ones(50)) == []
    assert spikes(epochs[:0], np.ones(0)) == []
