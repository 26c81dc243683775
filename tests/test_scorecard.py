"""The scorecard: claims are whole, measures find what was planted, rules judge as they say, the command resumes."""

import csv
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxgrok import measures, scorecard
from jaxgrok.cli import reproduce
from jaxgrok.cli import sweep as cli_sweep
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.measures import fourier
from jaxgrok.report import page_data
from jaxgrok.scorecard import Claims, Finding, Mode, Rule, SweepCommand, Verdict, circuits, times
from jaxgrok.scorecard.claims import MEASURES
from jaxgrok.scorecard.findings import finding_of, number, single
from jaxgrok.store.events import Outcome, Timing
from jaxgrok.store.records import RunRecord, Status
from jaxgrok.store.results import Cell, load
from jaxgrok.tasks import make_config, make_task
from jaxgrok.training.run import make_program

REPOSITORY = Path(__file__).parent.parent
CLAIMS = scorecard.read_claims()
EPOCHS = np.arange(0, 1000, 10)


# --- the claims as data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", CLAIMS.claims, ids=lambda claim: claim.name)
def test_a_claim_can_be_measured(claim):
    """Its measure takes its arguments, its sweeps exist, and what it links to is there."""
    inspect.signature(MEASURES[claim.measure]).bind(None, **claim.arguments)
    assert Mode.FULL in claim.sweeps
    assert set(claim.sweeps.values()) <= set(CLAIMS.sweeps)
    bounds = (claim.rule.above, claim.rule.at_least, claim.rule.below, claim.rule.at_most)
    assert any(bound is not None for bound in bounds)
    assert not claim.more or (REPOSITORY / "docs" / "results" / claim.more).exists()
    if claim.measure in circuits.MEASURES:
        assert all(CLAIMS.sweeps[name].analyze for name in claim.sweeps.values())


@pytest.mark.parametrize("sweep", CLAIMS.sweeps.values(), ids=lambda sweep: sweep.name)
def test_a_sweep_of_the_scorecard_is_a_command(sweep):
    command, *arguments = sweep.arguments
    parser = importlib.import_module(f"jaxgrok.cli.{command}").parser()
    args = vars(parser.parse_args(arguments))
    if command == "sweep" and args["init"] != "torch":
        assert importlib.import_module("jaxgrok.cli.sweep").chosen(args).runs()
    assert CLAIMS.of_sweep(sweep.name)
    modes = {mode for claim in CLAIMS.claims for mode, name in claim.sweeps.items() if name == sweep.name}
    assert len(modes) == 1


@pytest.mark.parametrize(("arch", "name"), [("transformer", "mainline"), ("mlp", "mlp")])
def test_what_the_measures_of_circuits_ask_for_is_measured(arch, name, monkeypatch):
    """Every path that a claim's measure asks for is one of those of `measures.all`."""
    config = Config(p=7, arch=arch, d_model=8, n_heads=2, d_mlp=8)
    asked = set()

    def series(results, *names):
        asked.update(names)
        return iter(())

    monkeypatch.setattr(circuits, "_series", series)
    for claim in CLAIMS.of_sweep(name):
        if claim.measure in circuits.MEASURES:
            claim.find(None)
    init = jax.eval_shape(make_program(config).init, Run(config, 0, frac=0.5).hyper())
    found = jax.eval_shape(lambda p: measures.measure(config, p, measures.split_of(config, 0.5, 0)), init.params)
    paths = {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(found)}
    assert asked
    assert asked <= paths


def test_quick_is_quick():
    used = {claim.sweeps[Mode.QUICK] for claim in CLAIMS.claims if Mode.QUICK in claim.sweeps}
    assert sum(CLAIMS.sweeps[name].minutes for name in used) <= 15
    assert len([claim for claim in CLAIMS.claims if Mode.QUICK in claim.sweeps]) > len(CLAIMS.claims) / 2


# --- rules and texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "values", "verdict"),
    [
        (Rule(above=2), [3, 4, 5], Verdict.REPRODUCED),
        (Rule(above=2), [2, 2, 2], Verdict.NOT),
        (Rule(at_least=2), [2, 2, 2], Verdict.REPRODUCED),
        (Rule(above=2), [3, 4, 5, 1], Verdict.PARTLY),
        (Rule(above=2), [*[3] * 9, 1], Verdict.REPRODUCED),
        (Rule(above=2), [np.inf, np.inf, 3], Verdict.NOT),  # what was not reached is above no bound
        (Rule(above=2), [np.nan, 3, 4], Verdict.REPRODUCED),  # what is unknown is not counted
        (Rule(above=2), [np.nan, np.nan], Verdict.UNKNOWN),
        (Rule(above=2), [np.nan, np.nan, 3], Verdict.UNKNOWN),  # less than half is known
        (Rule(above=2), [], Verdict.UNKNOWN),
        (Rule(at_least=3, at_most=7), [3, 7, 5], Verdict.REPRODUCED),
        (Rule(at_least=3, below=7), [3, 7, 5, 9], Verdict.PARTLY),
    ],
)
def test_a_rule_judges_as_it_says(rule, values, verdict):
    assert rule.verdict(finding_of(values, [f"seed {i}" for i in range(len(values))])) is verdict


def test_a_rule_in_words():
    assert str(Rule(above=2)) == "above 2"
    assert str(Rule(at_least=350, at_most=1400)) == "at least 350 and at most 1,400"
    found = finding_of([1, 5, 6, np.nan, np.inf], [f"seed {i}" for i in range(5)])
    assert Rule(above=2).count(found) == "2 of 4; not seed 0, seed 4"
    assert Rule(above=0).count(finding_of([1.0] * 3, "abc")) == "3 of 3"
    assert Rule(above=9).count(finding_of(range(6), "abcdef")) == "0 of 6"
    assert Rule(above=9).count(single(3, 20)) == ""
    assert Rule(above=0).count(finding_of([1, np.nan], "ab")) == "1 of 1"


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (finding_of([3.0], ["seed 0"]), "3, 1 run"),
        (finding_of([1, 2, 4], "abc"), "2 (1 - 4), 3 runs"),
        (finding_of(range(1, 9), "abcdefgh"), "4.5 [1, 8], 8 runs"),
        (finding_of([1, 2, np.nan], "abc"), "1.5 (1 - 2), 3 runs (1 unknown)"),
        (finding_of([1, np.inf, np.inf], "abc"), "not reached (1 - not reached), 3 runs"),
        (finding_of(range(1, 9), "abcdefgh", of="pairs of runs"), "4.5 (1 - 8), 8 pairs of runs"),  # not independent
        (finding_of([np.nan], "a"), "unknown"),
        (finding_of([0.2], "a", of="pairs of runs"), "0.2, 1 pair of runs"),
        (single(596, 21, (438, 659)), "596 [438, 659], 21 runs"),
    ],
)
def test_a_finding_in_words(finding, text):
    assert str(finding) == text


def test_the_interval_of_a_median_covers_it_as_often_as_it_says(rng):
    """95 % of the intervals, or more, as the order statistics allow no exact one."""
    covered = 0
    for _ in range(400):
        text = str(finding_of(rng.exponential(size=9), "abcdefghi"))
        low, high = (float(x) for x in text.split("[")[1].split("]")[0].split(", "))
        covered += low <= np.log(2) <= high
    assert covered >= 370


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7510, "7,510"),
        (0.0734, "0.0734"),
        (4.7e-8, "4.7e-8"),
        (2e-5, "2e-5"),
        (-3e9, "-3e9"),
        (0, "0"),
        (2, "2"),
        (12.345, "12.3"),
        (np.inf, "not reached"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


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


# --- the command ------------------------------------------------------------------------------------------------------

TINY = "sweep --p 7 --d-model 8 --n-heads 2 --d-mlp 8 --frac 0.6 --seeds 2 --epochs 30 --lr 0.01"


def claims_of(*sweeps):
    """Claims that are measured on these sweeps, one each."""
    template = CLAIMS.select(["phase_change"])[0]
    claims = [
        replace(template, name=sweep.name, sweeps={Mode.QUICK: sweep.name}, figure="figures/curves.png")
        for sweep in sweeps
    ]
    return Claims(claims, {sweep.name: sweep for sweep in sweeps})


@pytest.fixture
def measured_on(monkeypatch):
    """Have the command know claims about these sweeps alone."""

    def use(*sweeps):
        claims = claims_of(*sweeps)
        for module in ("jaxgrok.scorecard", "jaxgrok.scorecard.card"):
            monkeypatch.setattr(f"{module}.read_claims", lambda: claims)
        return claims

    return use


def test_from_the_command_line(measured_on, tmp_path, capfd):
    """A sweep is trained and analysed, and its page shows its claims; one that fails does not stop the others; what is
    done is not done again."""
    good = SweepCommand("good", TINY, "tiny", 1, analyze=True)
    bad = SweepCommand("bad", f"{TINY} --frac 2", "none", 1)
    measured_on(bad, good)
    out = tmp_path / "out"
    assert reproduce.main(["--quick", "--out", str(out)]) == 1
    shown = capfd.readouterr()
    assert "bad ended with status 2" in shown.out
    assert "--frac: got '2'" in shown.err
    card = (out / "scorecard.md").read_text()
    assert "not yet run (1 minute)" in card
    assert "[figure](good/figures/curves.png)" in card
    assert "[good](good/report.html)" in card
    results = load(out / "good")
    (row,) = scorecard.rows_of(results)
    assert page_data(results)["claims"]["rows"] == [row.cells()]
    assert row.cells()[2] in card
    timings = list(csv.DictReader((out / "good" / "tables" / "timings.csv").read_text().splitlines()))
    assert f"{len(timings)} runs" in row.cells()[2]
    assert (out / "good" / "analysis").is_dir()
    assert "Made by `jaxgrok reproduce --quick`" in card

    measured_on(good)
    before = (out / "good.log").read_bytes()
    assert reproduce.main(["--quick", "--out", str(out)]) == 0
    assert "done" in capfd.readouterr().out
    assert (out / "good.log").read_bytes() == before


def test_findings_of_another_machine_stand_where_nothing_is_trained(measured_on, tmp_path, capsys):
    """They are what was written, and are left out once the claim is measured otherwise."""
    sweep = SweepCommand("far", TINY, "tiny", 1)
    claims = measured_on(sweep)
    finding = Finding(np.array([1.5, np.inf, np.nan]), ("seed 0", "seed 1", "seed 2"), interval=(0.5, np.nan))
    row = scorecard.Row(claims.claims[0], sweep, finding, "jax 1; 1 x gpu")
    path = tmp_path / "scorecard.json"
    scorecard.write_findings(path, [row, replace(row, finding=None)])
    (back,) = scorecard.read_findings(path, {"far": replace(row, finding=None, made_with="")}).values()
    assert back.cells() == row.cells()
    assert back.made_with == row.made_with
    np.testing.assert_array_equal(back.finding.values, finding.values)

    other = replace(row, claim=replace(row.claim, measure="grokking_time"), finding=None)
    assert scorecard.read_findings(path, {"far": other})["far"].finding is None
    other = replace(row, sweep=replace(sweep, command="sweep --p 5"), finding=None)
    assert scorecard.read_findings(path, {"far": other})["far"].finding is None

    assert reproduce.main(["--quick", "--out", str(tmp_path / "out"), "--kept", str(path)]) == 0
    assert row.cells()[2] in (tmp_path / "out" / "scorecard.md").read_text()
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_dir()] == []
    card = (tmp_path / "out" / "scorecard.md").read_text()
    assert "far (kept)" in card
    assert "--kept scorecard.json" in card
    assert "1 findings of" in capsys.readouterr().out
    arguments = ["--quick", "--out", str(tmp_path / "out"), "--plan"]
    text = path.read_text()
    broken = [text.replace('"names"', '"name"'), text.replace('"interval": [', '"interval": [], "x": [')]
    for bad in ("", "[]", '{"far": 3}', *broken):
        (tmp_path / "bad.json").write_text(bad)
        assert reproduce.main([*arguments, "--kept", str(tmp_path / "bad.json")]) == 2
        assert "--kept: got" in capsys.readouterr().err


def test_a_directory_of_another_command_is_refused(measured_on, tmp_path, capsys):
    """Its runs would be counted with those of the claim."""
    sweep = SweepCommand("good", TINY, "tiny", 1)
    measured_on(sweep)
    assert reproduce.main(["--quick", "--out", str(tmp_path)]) == 0
    runs = len(load(tmp_path / "good").runs)
    measured_on(replace(sweep, command=f"{TINY} --wd 0.5"))
    capsys.readouterr()
    assert reproduce.main(["--quick", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "move it away or delete it" in error
    assert len(load(tmp_path / "good").runs) == runs
    # Nor is it believed any more once somebody has extended it.
    measured_on(sweep)
    assert len(scorecard.rows_of(load(tmp_path / "good"))) == 1
    cli_sweep.main([*shlex.split(TINY)[1:], "--seeds", "3", "--out", str(tmp_path / "good")])
    assert scorecard.rows_of(load(tmp_path / "good")) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(BadInput, match=r"move it away"):
        scorecard.begin(tmp_path / "other", sweep)


def test_what_has_been_lost_is_trained_and_measured_again(measured_on, tmp_path, capsys):
    sweep = SweepCommand("good", TINY, "tiny", 1, analyze=True)
    claims = measured_on(sweep)
    claims.claims[0] = replace(claims.claims[0], measure="n_keys")
    folder = tmp_path / "good"
    cli_sweep.main([*shlex.split(TINY)[1:], "--out", str(folder)])
    scorecard.finish(folder, sweep)
    (row,) = scorecard.rows_of(load(folder))
    assert row.finding is not None  # no run grokked: a finding without values
    assert row.verdict is Verdict.UNKNOWN
    shutil.rmtree(folder)
    assert reproduce.main(["--quick", "--out", str(tmp_path), "--plan"]) == 0
    assert "to be trained" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sweep": 3}', '{"sweep": "good"}'])
def test_a_note_that_cannot_be_read_is_none(measured_on, tmp_path, content):
    measured_on(SweepCommand("good", TINY, "tiny", 1))
    cli_sweep.main([*shlex.split(TINY)[1:], "--epochs", "2", "--out", str(tmp_path / "good")])
    (tmp_path / "good.json").write_text(content)
    assert scorecard.rows_of(load(tmp_path / "good")) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--quick --only nothing", "--only: got 'nothing'; accepted: small_phase_change phase_change"),
        ("--quick --only ''", "--only: got ''"),
        (
            "--quick --only fifteen_digits",
            "--only: got 'fifteen_digits'; accepted: with --quick, one of phase_change",
        ),
        ("--quick --out file", "--out: got 'file'; accepted: a directory"),
        ("--quick --full", "not allowed with argument"),
        ("", "--quick --full is required"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    try:
        status = reproduce.main(shlex.split(arguments))
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert complaint in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_are_checked_before_anything_is_trained():
    with pytest.raises(BadInput, match=r"accepted: .*grokking"):
        CLAIMS.select(["grokking", "groking"])


@pytest.mark.slow
def test_a_stopped_command_passes_the_signal_on_and_resumes(tmp_path):
    command = [sys.executable, "-m", "jaxgrok", "reproduce", "--quick", "--only", "phase_change", "--out", "out"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "small_data" / "manifest.json").exists():
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    child.send_signal(15)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 143, error
    assert "The same command resumes" in error
    assert "Traceback" not in error
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| (reproduced|partly) \(\d of 8", (tmp_path / "out" / "scorecard.md").read_text())


@pytest.mark.slow
def test_the_quick_scorecard_is_written_in_full(tmp_path):
    """Every claim of it has a verdict, and every figure that it names is there."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxgrok", "reproduce", "--quick", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "scorecard.md").read_text()
    assert "not yet run" not in card
    assert "| unknown" not in card
    for claim in CLAIMS.claims:
        if claim.figure and Mode.QUICK in claim.sweeps:
            assert list((tmp_path / "out" / claim.sweeps[Mode.QUICK]).glob(claim.figure)), claim.name


@pytest.mark.parametrize("mode", Mode)
def test_the_scorecards_of_the_results_are_what_was_found(mode, monkeypatch):
    """docs/results/scorecard.md says what scorecard.json holds, by today's rules. After a change of a claim:
    python docs/results/scorecard.py"""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "results"))
    kept = importlib.import_module("scorecard")
    name = kept.NAMES[mode]
    rows = kept.rows_of(mode, [REPOSITORY / "docs" / "results" / f"{name}.json"])
    assert kept.text_of(mode, rows) == (REPOSITORY / "docs" / "results" / f"{name}.md").read_text()
    assert any(row.finding is not None for row in rows.values())
