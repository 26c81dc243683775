import numpy as np
import pytest

from jaxgrok.store.schedule import default_checkpoint_every, default_eval_every, schedule


@pytest.mark.parametrize("total", [1, 2, 7, 100, 2500, 40_000])
def test_schedules_are_dense_early_and_never_wider_than_asked(total):
    every = default_eval_every(total)
    assert every <= max(1, total // 100)
    epochs = schedule(total, every)
    assert epochs[0] == 0
    assert epochs == sorted(set(epochs))
    assert epochs[-1] < total
    assert max(np.diff([*epochs, total])) <= every
    # A longer schedule begins with this one.
    assert set(epochs) <= set(schedule(total + 37, every))


def test_the_documented_checkpoint_schedule():
    assert schedule(1600, 400, 10) == [0, 10, 20, 40, 80, 160, 320, 400, 800, 1200]


def test_checkpoints_are_a_hundredth_apart_and_on_evaluations():
    assert default_checkpoint_every(40_000, 10) == 400
    assert default_checkpoint_every(2500, 10) == 20
    assert default_checkpoint_every(50, 1) == 1
    for planned in (100, 999, 2500, 40_000):
        assert default_checkpoint_every(planned, 1) <= planned / 100 or planned < 100
