"""What figures have in common: medians over runs and the thinning of long curves."""

import numpy as np
import pytest

from jaxgrok.figures import style


def test_the_median_makes_no_step_where_a_run_ends_or_diverges():
    epochs = np.arange(6)
    curves = [(epochs[:3], np.array([5.0, 4, 3])), (epochs, np.array([5.0, 2, np.nan, np.nan, 1, 1]))]
    at, middle = style.median_over_runs(curves)
    np.testing.assert_array_equal(at, epochs)
    np.testing.assert_array_equal(middle, [5, 3, 2.5, 2.5, 2.5, 2.5])
    assert len(style.median_over_runs([(epochs, np.full(6, np.nan))])[0]) == 0


def test_medians_interpolate_as_the_axes_are():
    # Half way between 9 and 99 on the axis of log(epoch + 1), and half way between 1e-4 and 1 on one of log loss.
    epochs = np.array([9, 99])
    middle = [9, round(10**1.5 - 1), 99]
    at, values = style.median_over_runs([(epochs, np.array([1, 1e-4])), (np.array(middle), np.array([1, 1e-2, 1e-4]))], log=True)
    np.testing.assert_array_equal(at, middle)
    assert values[1] == pytest.approx(1e-2, rel=0.05)
    # What is zero, and has no logarithm, stays so, and becomes no tiny number that would stretch the axis.
    _, values = style.median_over_runs([(epochs, np.array([0.0, 4])), (np.array([9, 50]), np.full(2, 2.0))], log=True)
    np.testing.assert_allclose(values, [1, 1, 3])


def test_a_spike_survives_the_thinning_of_a_long_curve():
    values = np.ones(50_000)
    values[33_333] = 7
    epochs, thin = style.thinned(np.arange(50_000), values)
    assert len(epochs) == len(thin) <= style.MOST_POINTS
    assert thin.max() == 7
