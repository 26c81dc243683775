"""The measures of the scorecard's claims find what was planted: when things happen, and what networks have learned."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxgrok.config import Config, Run
from jaxgrok.measures import fourier
from jaxgrok.scorecard import circuits, times
from jaxgrok.store.events import Outcome, Timing
from jaxgrok.store.records import RunRecord, Status
from jaxgrok.store.results import Cell
from jaxgrok.tasks import make_config, make_task

EPOCHS = np.arange(0, 1000, 10)


# --- measures of time -------------------------------------------------------------------------------------------------


def run_of(number, timing, config=Config(p=11), **run):
    return RunRecord(number, Run(config, number, **{"frac": 0.3, **run}), 1000, 0, Status.TRAINED, timing.last_epoch)


def timing_of(outcome=Outcome.GROKKED, last=1000, **events):
    return Timing(outcome, last, settled=True, events={name: (max(0, by - 10), by) for name, by in events.items()})


class Planted:
    """What measures ask of `Results`, with what a test has planted."""

    def __init__(self, cells, curves=None, series=None, params=None):
        self.cells, self._curves, self._series, self._params = cells, curves or {}, series or {}, params or {}

    def timing(self, record):
        return next(
            timing for cell in self.cells for of, timing in zip(cell.records, cell.timings, strict=True) if of is record
        )

    def curves_of(self, record):
        return SimpleNamespace(**{"epoch_train": EPOCHS, "epoch_eval": EPOCHS, **self._curves[record.number]})

    def measured(self, records, names):
        return [{name: self._series[record.number][name] for name in (*names, "epoch")} for record in records]

    def checkpoint_epochs(self, record):
        return self._series[record.number]["epoch"].tolist()

    def network(self, record, epoch):
        return self._params[record.number][epoch]


def one_cell(timings, fields=(), **run):
    return Cell(fields, [run_of(i, timing, **run) for i, timing in enumerate(timings)], timings)


# --- parts, of runs of 3-digit addition whose digits fall at these steps (None: not by the end) ---


def digits(*of_runs, fall=20):
    """Runs of addition3 whose digits' losses fall exponentially, around these steps, by half in `fall` steps."""
    config = make_config("addition3")
    records, timings, curves, parts = [], [], {}, {}
    for seed, steps in enumerate(of_runs):
        guesses = make_task(config).chance
        losses = []
        for step, guess in zip(steps, guesses, strict=True):
            late = np.zeros(len(EPOCHS)) if step is None else np.maximum(0, (EPOCHS - step) / fall + 1)
            losses.append(guess * 2.0**-late)
        of_part = [SimpleNamespace(test_loss=loss) for loss in losses]
        curves[seed] = {"of_part": of_part.__getitem__}
        arrived = [None if step is None else {"grokked": (step - 10, step)} for step in steps]
        parts[seed] = {
            f"digit {i}": Timing(Outcome.NOT_LEARNED, 990, False, True, events or {})
            for i, events in enumerate(arrived)
        }
        timings.append(timing_of(Outcome.LEARNED, 990))
        records.append(RunRecord(seed, Run(config, seed), 990, 0, Status.TRAINED, 990))
    results = Planted([Cell((), records, timings)], curves)
    results.part_timings = lambda record: parts[record.number]
    results.events = lambda record: SimpleNamespace(parts={name: None for name in parts[record.number]})
    return results


def test_parts_of_planted_runs():
    results = digits((100, 200, 500, 600), (100, 500, 200, 600), (100, 200, None, 600), (100, None, 200, 300))
    first = times.first_parts(results, ["digit 0", "digit 1"])
    np.testing.assert_array_equal(first.values, [1, 0, 1, 0])
    assert first.names == ("seed 0", "seed 1", "seed 2", "seed 3")
    np.testing.assert_allclose(times.parts_apart(results).values, [500 / 350, 500 / 350, np.inf, np.inf])
    np.testing.assert_array_equal(times.sudden_parts(results).values, [4, 4, 3, 3])
    same = digits((100, 200, 500, 600), (90, 180, 400, 800))
    assert times.order_of_the_others(same, ["digit 0"]).values == 1
    assert str(times.order_of_the_others(same, ["digit 0"])) == "1, 2 runs"


def test_a_part_that_falls_from_the_start_is_not_sudden():
    np.testing.assert_array_equal(times.sudden_parts(digits((300, 300, 300, 300), fall=300)).values, [0])


def test_a_tie_is_not_first():
    np.testing.assert_array_equal(times.first_parts(digits((100, 200, 200, 600)), ["digit 0", "digit 1"]).values, [0])


def test_how_much_later_than_it_memorised_a_run_grokked():
    cell = one_cell(
        [
            timing_of(memorised=100, grokked=500),
            timing_of(Outcome.MEMORISED_ONLY, memorised=100),
            timing_of(grokked=300),
        ]
    )
    found = times.times_as_late(Planted([cell]))
    np.testing.assert_array_equal(found.values, [5, np.inf, np.nan])
    assert found.names == ("seed 0", "seed 1", "seed 2")


def falling(at, high=4.0, low=0.01):
    return np.where(at > EPOCHS, high, low)


def test_falls_and_drops_of_planted_losses():
    cell = one_cell([timing_of(), timing_of()])
    between = np.where(EPOCHS < 300, 5.0, np.where(EPOCHS < 380, 3.0, 1.0))
    curves = {
        0: {"train_loss": falling(100), "test_loss": falling(700)},
        1: {"train_loss": falling(50), "test_loss": between},
    }
    results = Planted([cell], curves)
    np.testing.assert_array_equal(times.falls_apart(results, train=1.0, test=0.5).values, [7, np.inf])
    np.testing.assert_array_equal(times.drop(results, high=4.0, low=2.0).values, [0, 80])


def test_minibatches_are_smoothed_and_a_loss_that_stays_high_is_not_below(rng):
    """A loss of minibatches that falls below 1 at step 559, with noise, and one that never does."""
    steps = np.arange(20_000)
    noise = rng.normal(scale=0.1, size=len(steps))
    cell = one_cell([timing_of(), timing_of()], config=Config(p=11, batch_size=4))
    test = {"epoch_eval": steps[::4], "test_loss": np.where(steps[::4] < 15_000, 9.0, 1.5)}
    curves = {
        0: {"epoch_train": steps, "train_loss": np.where(steps < 559, 3.0, 0.5) + noise, **test},
        1: {"epoch_train": steps, "train_loss": 1.6 + noise, **test},
    }
    found = times.falls_apart(Planted([cell], curves), train=1.0, test=2.0).values
    assert found[0] == pytest.approx(15_000 / 559, rel=0.05)
    assert found[1] == np.inf


@pytest.mark.parametrize(
    ("lower", "higher", "quotient"),
    [(800, 200, 4), (200, 800, 0.25), (None, 200, 5), (None, None, np.nan), (200, None, 0.2), (None, 1000, np.nan)],
)
def test_a_lower_decay_is_compared_as_far_as_runs_were_watched(lower, higher, quotient):
    """Runs are 1,000 epochs long: one that has not grokked took longer than that, or it cannot be told."""

    def cell(wd, grokked):
        timing = timing_of() if grokked is None else timing_of(grokked=grokked)
        return one_cell([timing], (("wd", wd),), weight_decay=wd)

    found = times.slower_at_lower_decay(Planted([cell(1.0, higher), cell(0.0, 5), cell(0.1, lower)]))
    np.testing.assert_array_equal(found.values, [quotient])
    assert found.names == ("seed 0, wd=0.1 over wd=1",)


def test_what_comes_before_the_fall_of_the_test_loss():
    cell = one_cell([timing_of(restricted_10=200, drop_10=500), timing_of(drop_10=500)])
    loss = np.where(EPOCHS < 600, 1e-4, 1e-7)
    results = Planted([cell], {i: {"train_loss": loss} for i in range(2)})
    np.testing.assert_array_equal(times.restricted_before_test(results).values, [300, np.nan])
    np.testing.assert_allclose(times.train_loss_after_grokking(results).values, [1e-3, 1e-3])


# --- measures of circuits ---------------------------------------------------------------------------------------------

P, K = 11, 5


def series_of(n=5, **measures):
    return {"epoch": np.arange(n) * 100, **{name.replace("__", "/"): np.array(x) for name, x in measures.items()}}


def mask(*keys):
    return np.isin(np.arange(1, K + 1), keys)


def test_keys_that_two_networks_share():
    cell = one_cell([timing_of(), timing_of(), timing_of(Outcome.MEMORISED_ONLY), timing_of()])
    keys = {0: mask(1, 2), 1: mask(2, 3), 3: mask(4)}
    series = {i: series_of(key_frequencies__keys=[x] * 5) for i, x in keys.items()}
    found = circuits.keys_shared(Planted([cell], series=series))
    np.testing.assert_allclose(found.values, [1 / 3, 0, 0])  # of 0 and 1, 0 and 3, 1 and 3
    none = {i: series_of(key_frequencies__keys=[mask()] * 5) for i in (0, 1, 3)}
    assert np.isnan(circuits.keys_shared(Planted([cell], series=none)).values).all()
    assert found.names == ("seeds 0 and 1", "seeds 0 and 3", "seeds 1 and 3")
    assert str(found).endswith("3 pairs of runs")
    np.testing.assert_array_equal(circuits.n_keys(Planted([cell], series=series)).values, [2, 2, 1])


def test_clusters_count_those_of_keys():
    series = series_of(
        key_frequencies__keys=[mask(2, 3)] * 5,
        neuron_clusters=[[4, 6, 2, 0, 0]] * 5,
        neuron_frequency=np.ones((5, 16)),
    )
    results = Planted([one_cell([timing_of()])], series={0: series})
    assert circuits.neurons_in_clusters(results).values == 8 / 16
    assert circuits.frequencies_with_cluster(results).values == 3 / 5
    assert circuits.clusters_of_size(results, 3, 5).values == 1 / 3


def test_when_the_excluded_loss_departs():
    def found(losses):
        series = series_of(excluded_loss__train=losses)
        results = Planted([one_cell([timing_of(memorised=100, drop_10=400)])], series={0: series})
        return circuits.excluded_loss_departs(results).values[0]

    assert found([4.0, 0.01, 0.011, 0.5, 2.0]) == 300 / 400
    assert found([4.0, 0.01, 0.02, 0.5, 2.0]) == 200 / 400  # a tenth of two decades and a third
    assert found([4.0, 1.0, 0.3, 0.1, 0.01]) == np.inf  # memorising: it falls to the end


def test_two_components_of_different_frequencies_are_no_circle():
    shares = [[0.99, 0.98, 0.5]] * 5

    def found(frequencies):
        series = series_of(principal_components__share=shares, principal_components__frequency=[frequencies] * 5)
        return circuits.circle_share(Planted([one_cell([timing_of()])], series={0: series})).values

    assert found([3, 3, 4]) == 0.98
    assert found([3, 4, 3]) == 0


def test_measures_of_the_last_checkpoint():
    sizes = {f"sum_squared_weights/{name}": np.array([50.0, 10 + i]) for i, name in enumerate(circuits.IN_A_ROW)}
    attention = np.array([[0.3, 0.3], [0.01, 0.01], [0.01, 0.02], [0.01, 0.4], [0.01, 0.5]])
    series = {"epoch": np.array([0, 100]), "gini/W_E": np.array([0.1, 0.7]), **sizes}
    results = Planted([one_cell([timing_of()])], series={0: series})
    assert circuits.norms_apart(results).values == 14 / 10
    assert np.isclose(circuits.gini_gained(results).values, 0.6)
    series = {"epoch": np.array([0, 200, 300, 400, 500]), "attention_to_equals_mean": attention}
    results = Planted([one_cell([timing_of()])], series={0: series})
    assert circuits.attention_to_equals_rises(results).values == 400


def test_how_far_apart_the_restricted_losses_are():
    series = series_of(restricted_loss__test=[1, 1, 1, 3, 1.0], restricted_loss__train=[1, 2, 1, 1, 1.0])
    assert np.isclose(circuits.restricted_split_apart(Planted([one_cell([timing_of()])], series={0: series})).values, 3)


def test_two_falls_of_the_weights_and_one():
    timing = timing_of(test_loss_peak=100, restricted_10=500, drop_50=700)
    epochs = np.arange(0, 1001, 50)

    def weights(*rates):  # of the fall of the logarithm, in the first quarter, the rest, and the generalisation
        slope = np.select([epochs < 100, epochs < 200, epochs < 500, epochs < 700], [0, *rates], 0.0)
        return np.exp(-np.concatenate([[0], np.cumsum(slope[:-1] * 50)]))

    def found(*rates):
        series = {"epoch": epochs, circuits.TOTAL: weights(*rates)}
        return circuits.weights_fall_twice(Planted([one_cell([timing])], series={0: series})).values[0]

    assert np.isclose(found(4e-3, 1e-3, 3e-3), 2)  # per 1,000 epochs
    assert np.isclose(found(1e-3, 1e-3, 3e-3), 0)
    assert np.isclose(found(4e-3, -1e-4, 3e-3), 3.1)  # they rise between the falls
    assert found(-1e-3, 1e-3, 3e-3) < 0


def test_linear_terms_are_the_top_row_and_the_left_column():
    a, b = np.indices((P, P))
    w = 2 * np.pi / P
    of_sum = np.cos(3 * w * (a + b))
    assert circuits._linear_share(of_sum[..., None]) < 1e-12
    assert np.isclose(circuits._linear_share(np.cos(w * a)[..., None] + 5), 1)
    # Energies over the pairs: 1/2 of each wave.
    assert np.isclose(circuits._linear_share((of_sum + 2 * np.cos(w * b))[..., None]), 4 / 5)


def weights_with(keys, start_share, rng, D=12, M=20):
    """(at the start, at the end): an embedding whose last form holds each key in two directions, in which the first one
    has a share of its energy at the key; an MLP whose clusters write the waves of their key alone."""
    basis = fourier.basis(P)
    directions = np.linalg.qr(rng.normal(size=(D, 2 * len(keys))))[0].T
    end = sum(basis[2 * k - 1 : 2 * k + 1].T @ directions[2 * i : 2 * i + 2] for i, k in enumerate(keys))
    start = np.zeros((P, D))
    for i, k in enumerate(keys):
        other = (k % K) + 1
        for frequency, share in ((k, start_share), (other, 1 - start_share)):
            rows = basis[2 * frequency - 1 : 2 * frequency + 1]
            start += np.sqrt(share) * rows.T @ directions[2 * i : 2 * i + 2]
    W_U = np.zeros((D, P + 1))
    W_U[:, :P] = rng.normal(size=(D, P))
    wanted = np.zeros((M, P))
    for i, k in enumerate(keys):
        rows = basis[2 * k - 1 : 2 * k + 1]
        wanted[i::2] = rng.normal(size=(len(wanted[i::2]), 2)) @ rows
    W_out = wanted @ np.linalg.pinv(W_U[:, :P])

    def params(W_E):
        full = np.concatenate([W_E, np.ones((1, D))])
        return {"embed": {"W_E": full}, "unembed": {"W_U": W_U}, "blocks_0": {"mlp": {"W_out": W_out}}}

    return params(start), params(end)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_what_the_start_has_of_the_end(share, rng):
    keys = (2, 4)
    start, end = weights_with(keys, share, rng)
    cluster = np.array([keys[i % 2] for i in range(20)])
    series = series_of(
        key_frequencies__keys=[mask(*keys)] * 5, neuron_frequency=[cluster] * 5, neuron_fve=np.full((5, 20), 0.95)
    )
    results = Planted([one_cell([timing_of()])], series={0: series}, params={0: {0: start, 400: end}})
    # The two keys' other frequencies are 3 and 5: nothing overlaps.
    assert np.isclose(circuits.start_on_final_directions(results).values, share * K, rtol=1e-5)
    # W_U has fewer dimensions than classes would need, so the least squares have a rest, but D = 12 > P = 11.
    assert np.isclose(circuits.two_directions(results).values, 1, rtol=1e-5)
