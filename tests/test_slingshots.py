"""Slingshots of planted curves: counts, times, the floor and who is earlier; what is refused; the figure."""

import csv
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import jaxgrok
from jaxgrok import figures
from jaxgrok.config import BadInput
from jaxgrok.figures import style
from jaxgrok.figures.slingshots import COLOURS, envelope
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.stats import Arrival
from jaxgrok.store.curves import SweepCurves
from jaxgrok.store.results import RunRecord, Status
from jaxgrok.tables import slingshots
from jaxgrok.tables.slingshots import FLOOR, slingshots_of
from jaxgrok.training.grid import make_sweep
from tests import on_disk
from tests.test_figures import collisions, words

EPOCHS = np.arange(2000)
EXAMPLES = 20
MODES = ("exact", "float64", "float32")


def curve(*spikes, epochs=EPOCHS, level=1e-6):
    """A loss that falls to a level, with spikes (start, height) of 20 epochs, highest 5 epochs after they start."""
    loss = 4 * np.exp(-epochs / 20) + level
    for start, height in spikes:
        loss[start : start + 20] = height / 2
        loss[start + 5] = height
    return loss


def plant(path, of_run, settings=(), length=2000, train_every=1):
    """A sweep directory with planted train losses: of_run(run) -> loss [T], or None for a run that has not begun."""
    sweep = make_sweep(
        {"p": 5, "arch": "mlp", "epochs": length, "train_every": train_every, "eval_every": 10, **dict(settings)}
    )
    runs = sweep.runs()
    curves = SweepCurves(len(runs), length, 10, train_every, "float64")
    for number, run in enumerate(runs):
        loss = of_run(run)
        if loss is not None:
            curves.train_loss[number, : len(loss)] = loss
            curves.last_epoch[number] = len(loss) * train_every
    runs = [replace(run, n_train=EXAMPLES) for run in runs]
    records = [RunRecord(i, run, length, 0, Status.TRAINED, length) for i, run in enumerate(runs)]
    on_disk.plant(path, {**sweep.fixed(), "eval_every": 10, "train_every": train_every}, records, curves)
    return jaxgrok.load(path)


SPIKES = {0: [(500, 0.05), (1200, 3.0)], 1: [(700, 0.5)], 2: []}  # of the float32 runs, by seed


@pytest.fixture
def planted(tmp_path):
    """Three seeds of each loss; only float32 spikes, and its seed 2 not within its 2,000 epochs."""
    settings = {"seeds": 3, "loss": MODES, "wd": "0,1"}
    return plant(
        tmp_path / "runs", lambda run: curve(*(SPIKES[run.seed] if run.config.loss == "float32" else [])), settings
    )


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import slingshots as command

    return command.main


# --- one curve --------------------------------------------------------------------------------------------------------


def test_planted_spikes_are_found_and_timed():
    found = slingshots_of(EPOCHS, curve((500, 0.05), (1200, 3.0)), EXAMPLES)
    assert [(spike.start, spike.end, spike.peak_epoch) for spike in found.spikes] == [
        (500, 519, 505),
        (1200, 1219, 1205),
    ]
    assert (found.first, found.rate) == (Arrival(500, True), 10)
    assert found.highest.peak == 3
    assert found.highest.factor == pytest.approx(3e6, rel=1e-6)
    assert found.largest_ratio == pytest.approx(1.5e6, rel=1e-6)


def test_a_run_without_a_spike_is_censored_at_its_last_epoch():
    found = slingshots_of(EPOCHS, curve(), EXAMPLES)
    assert (found.spikes, found.highest, found.rate, found.first) == ([], None, 0, Arrival(2000, False))
    short = slingshots_of(EPOCHS[:30], curve()[:30], EXAMPLES)
    assert (short.spikes, short.first) == ([], Arrival(30, False))
    assert slingshots_of(EPOCHS[:1], curve()[:1], EXAMPLES).largest_ratio is None


def test_a_diverged_run_is_looked_at_up_to_there():
    loss = curve((500, 0.05), (1200, 3.0))
    loss[1000] = np.nan
    found = slingshots_of(EPOCHS, loss, EXAMPLES)
    assert (len(found.loss), len(found.spikes)) == (1000, 1)
    nothing = slingshots_of(EPOCHS, np.full(2000, np.nan), EXAMPLES)
    assert (len(nothing.loss), nothing.first, nothing.smallest_sum, nothing.rate) == (0, Arrival(0, False), None, 0)


def test_the_floor_is_counted_and_sums_are_whole():
    units = np.where(EPOCHS < 1000, 10.0**6, np.where(EPOCHS < 1500, 7.0, 3.0 + EPOCHS % 4))
    units[1900:] = -0.0  # as log_softmax gives it
    found = slingshots_of(EPOCHS, (units * FLOOR / EXAMPLES).astype(np.float32), EXAMPLES)
    assert (found.at_most(0), found.at_most(FLOOR)) == (100, 1000)
    assert str(found.loss.min()) == "0.0"
    assert found.smallest_sum == pytest.approx(3, rel=1e-6)
    assert (found.low, found.whole) == (900, 900)
    # sums of the exact loss are anything, and of a fraction of a unit none is whole
    some = slingshots_of(EPOCHS, np.linspace(1, 8, 2000) * FLOOR / EXAMPLES, EXAMPLES)
    assert some.whole / some.low == pytest.approx(0.02, abs=0.003)
    assert slingshots_of(EPOCHS, np.full(2000, 0.004 * FLOOR / EXAMPLES), EXAMPLES).whole == 0


def test_a_mean_over_too_many_examples_is_not_asked_for_its_sum():
    found = slingshots_of(EPOCHS, np.full(2000, FLOOR, np.float32), 10**7)
    assert (found.low, found.whole) == (0, 0)


def test_a_spike_above_zero_is_infinitely_many_times_the_level():
    loss = curve()
    loss[300:] = 0
    loss[1500] = 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = slingshots_of(EPOCHS, loss, EXAMPLES)
    assert (found.highest.peak, found.highest.factor) == (0.2, np.inf)
    assert found.largest_ratio < 2  # what follows a zero has no ratio


def test_the_float32_loss_of_one_example_is_what_the_note_says():
    """Whole units of 2^-23, 0 below half of one, and so the gradient of the right logit; not those of the wrong
    ones."""
    import jax
    import jax.numpy as jnp

    margins = jnp.linspace(13, 20, 200, dtype=jnp.float32)
    logits = jnp.zeros((200, 3), jnp.float32).at[:, 0].set(margins)
    loss, gradient = jax.vmap(jax.value_and_grad(lambda x: cross_entropy(x, jnp.int32(0), "float32")))(logits)
    exact = np.log1p(2 * np.exp(-np.asarray(margins, float)))
    units = np.asarray(loss, float) / FLOOR
    np.testing.assert_allclose(units, np.round(units), atol=1e-3)
    np.testing.assert_allclose(units, exact / FLOOR, atol=1.01)  # the sum over three classes is rounded twice
    np.testing.assert_allclose(gradient[:, 0], -loss, rtol=4e-6)
    np.testing.assert_allclose(gradient[:, 1], np.exp(-np.asarray(margins, float)), rtol=1e-5)
    assert not loss[exact < FLOOR / 2.01].any()


# --- a sweep ----------------------------------------------------------------------------------------------------------


def test_a_row_per_run(planted):
    slingshots.write_slingshot_tables(planted, slingshots.slingshots_of_cells(planted))
    rows = list(csv.DictReader((planted.path / "tables" / "slingshots.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [str(i) for i in range(18)]
    assert list(rows[0])[:6] == ["run", "seed", "wd", "loss", "epochs", "spikes"]
    (row,) = (row for row in rows if (row["loss"], row["wd"], row["seed"]) == ("float32", "1.0", "0"))
    names = ["epochs", "spikes", "first", "last", "highest_epoch", "highest_peak", "peaks_above_0.1", "median_duration"]
    assert [row[name] for name in names] == ["2000", "2", "500", "1200", "1205", "3.0", "1", "19.0"]
    assert float(row["median_peak"]) == pytest.approx((0.05 + 3) / 2)
    assert (row["epochs_at_zero"], row["epochs_at_floor"]) == ("0", "0")
    (none,) = (row for row in rows if (row["loss"], row["wd"], row["seed"]) == ("exact", "0.0", "1"))
    assert [none[name] for name in names] == ["2000", "0", "", "", "", "", "0", ""]
    assert float(none["lowest_loss"]) == pytest.approx(1e-6)


def test_the_loss_is_named_though_it_does_not_vary(tmp_path):
    results = plant(tmp_path / "runs", lambda run: curve(), {"seeds": 2})
    of_cells = slingshots.slingshots_of_cells(results)
    header, rows = slingshots.runs_table(results, of_cells)
    assert header[:3] == ["run", "seed", "loss"]
    assert rows[0][2] == "exact"
    text = slingshots.slingshots_markdown(results, of_cells)
    assert "loss exact" in text
    assert "spiked earlier" not in text


def test_a_row_per_cell_counts_rates_and_censored_first_spikes(planted):
    header, rows = slingshots.readable_table(slingshots.slingshots_of_cells(planted))
    table = {(row[0], row[1]): dict(zip(header, row)) for row in rows}
    row = table["1", "float32"]
    assert row["runs with a spike"] == "2/3 [0.094, 0.99]"
    assert row["spikes per 10,000 epochs"] == "5 (0 - 10)"
    assert row["first spike"] == "700 [500, -]"
    assert row["highest peak"] == "3 (epoch 1,205)"
    assert row["lowest loss"] == "1e-06"
    assert row["whole sums"] == "-"
    none = table["0", "exact"]
    assert none["runs with a spike"] == "0/3 [0, 0.71]"
    assert (none["first spike"], none["highest peak"]) == ("> 2,000 (0/3)", "-")


def test_losses_are_compared_on_shared_seeds_at_the_same_setting(planted):
    rows = slingshots.spike_comparison_rows(slingshots.slingshots_of_cells(planted))
    assert len(rows) == 6
    found = {(first, second): rest for first, second, *rest in rows}
    assert found["wd=1 loss=exact", "wd=1 loss=float32"] == ["sign", "0 / 2 / 1", "0.5", "1"]
    assert found["wd=1 loss=exact", "wd=1 loss=float64"] == ["sign", "0 / 0 / 3", "-", "-"]


def test_the_report_has_the_released_runs_and_the_runs_that_wait(tmp_path):
    settings = {"seeds": 2, "loss": MODES}
    results = plant(tmp_path / "runs", lambda run: None if run.config.loss == "float64" else curve(), settings)
    of_cells = slingshots.slingshots_of_cells(results)
    assert [cell.loss for cell in of_cells] == ["exact", "float32"]
    text = slingshots.slingshots_markdown(results, of_cells)
    assert "2 of 6 runs have not begun" in text
    assert "36 (5 before 10,000)" in text
    assert "1.037 (epoch 10,510)" in text


def test_published_rows_are_those_of_the_reference(shared):
    import json

    published = json.loads((shared / "reference" / "published_curves.json").read_text())
    for row, name in zip(slingshots.RELEASED[1], ("low_precision", "wd_0.1")):
        train, spikes = published[name]["train"], published[name]["spikes_vs_median50"]
        assert row[2] == f"{train['n']:,}"
        assert row[3].split(" ")[0] == str(spikes["count"])
        assert row[7] == f"{train['min']:.3g}"
        assert float(row[8].replace(",", "")) == pytest.approx(train["min"] * 3830 / FLOOR, abs=0.005)
        if spikes["count"]:
            assert row[5] == f"{spikes['first']['start']:,}"
            assert row[6] == f"{spikes['max_peak']['peak']:.3f} (epoch {spikes['max_peak']['peak_epoch']:,})"


def test_a_minibatch_is_what_a_loss_is_the_mean_over(tmp_path):
    results = plant(
        tmp_path / "runs",
        lambda run: np.full(100, 3 * FLOOR / 4),
        {"seeds": 1, "batch_size": 4, "loss": "float32"},
        100,
    )
    (cell,) = slingshots.slingshots_of_cells(results)
    assert cell.found[0].smallest_sum == pytest.approx(3)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_tables_and_a_figure(main, planted, tmp_path, capsys):
    assert main([str(planted.path), "--figure", str(tmp_path / "all.png")]) == 0
    out = capsys.readouterr().out
    assert "700 [500, -]" in out
    assert "36 (5 before 10,000)" in out
    assert (tmp_path / "all.png").stat().st_size > 10_000
    made = {path.name for path in (planted.path / "tables").iterdir()}
    assert made == {"slingshots.csv", "slingshots.md"}


@pytest.mark.parametrize("name", ["all.jpg", "all", "nowhere/all.png"])
def test_a_figure_that_cannot_be_written_is_refused_before_anything_is(main, planted, tmp_path, capsys, name):
    assert main([str(planted.path), "--figure", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slingshots.py: error: --figure: got ")
    assert error.count("\n") == 1
    assert not (planted.path / "tables").exists()


def test_other_directories_are_refused(main, tmp_path, capsys):
    def refused(path):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "a directory that sweep.py made" in refused(tmp_path / "none")
    seldom = plant(tmp_path / "seldom", lambda run: curve()[::10], {"seeds": 1}, train_every=10)
    assert "train_every: got 10; accepted: 1" in refused(seldom.path)
    waiting = plant(tmp_path / "waiting", lambda run: None, {"seeds": 1})
    assert "of which a run has begun" in refused(waiting.path)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_train_every_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match="train_every"):
        slingshots.slingshots_of_cells(
            plant(tmp_path / "runs", lambda run: curve()[::10], {"seeds": 1}, train_every=10)
        )


# --- the figure -------------------------------------------------------------------------------------------------------


def test_thinning_keeps_spikes_and_the_floor():
    loss = np.full(50_000, 1e-6)
    loss[33_333], loss[33_334], loss[44_444] = 7, 3e-8, 1e-9
    epochs, thin = envelope(np.arange(50_000), loss)
    assert len(epochs) == len(thin) <= style.MOST_POINTS
    assert (np.diff(epochs) > 0).all()
    assert {(33_333, 7), (33_334, 3e-8), (44_444, 1e-9)} <= set(zip(epochs.tolist(), thin.tolist()))
    few = np.arange(10), np.arange(10.0)
    assert envelope(*few) is not few
    np.testing.assert_array_equal(envelope(*few), few)


def test_a_panel_per_loss_and_setting_on_one_axis_and_a_row_per_run(planted, monkeypatch):
    figure = figures.slingshots_figure(slingshots.slingshots_of_cells(planted))
    assert not collisions(figure, monkeypatch)
    *panels, raster = figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [f"loss={mode} wd={wd}" for wd in (0, 1) for mode in MODES]
    assert len({axes.get_ylim() for axes in panels}) == 1
    for axes, mode in zip(panels, MODES * 2):
        *thin, first, marks, floor = axes.lines
        assert len(thin) == 2
        assert mpl.colors.same_color(first.get_color(), COLOURS[mode])
        assert set(floor.get_ydata()) == {FLOOR}
        assert axes.get_ylim()[0] < FLOOR < axes.get_ylim()[1]
        np.testing.assert_array_equal(marks.get_xdata(), [505, 1205] if mode == "float32" else [])
    assert len(raster.lines) == 18
    drawn = [ticks.get_positions() for ticks in raster.collections]
    # exact and float64 of both settings first; then the seeds of float32
    assert drawn == [[]] * 12 + [[505, 1205], [705], []] * 2
    for tick in raster.collections[12:]:
        assert mpl.colors.same_color(tick.get_color(), COLOURS["float32"])
    assert "1.19e-7" in words(figure)
    assert "losses of 0" not in words(figure)


SETTINGS = [
    {"seeds": 1},
    {"seeds": 40, "loss": MODES},
    {"seeds": 2, "loss": "float32", "wd": "0,0.125", "lr": "1e-3,2e-3"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_text_lies_on_another(tmp_path, monkeypatch, settings):
    length = 200
    results = plant(
        tmp_path / "runs", lambda run: curve((100 + run.seed, 0.5), epochs=EPOCHS[:length]), settings, length
    )
    assert not collisions(figures.slingshots_figure(slingshots.slingshots_of_cells(results)), monkeypatch)


def test_odd_runs_are_drawn(tmp_path, monkeypatch):
    """A loss that is 0, one that diverges at once, one that is much shorter, and a cell that has not begun."""

    def of_run(run):
        if run.weight_decay == 1 and run.config.loss == "float32":
            return None
        loss = curve()
        loss[1000:] = {0: 0, 1: 1e-9, 2: np.nan}[run.seed]
        return loss[: {0: 2000, 1: 300, 2: 2000}[run.seed]] if run.weight_decay else np.full(2000, np.nan)

    results = plant(tmp_path / "runs", of_run, {"seeds": 3, "loss": "exact,float32", "wd": "0,1"})
    of_cells = slingshots.slingshots_of_cells(results)
    assert slingshots.readable_table(of_cells)
    slingshots.write_slingshot_tables(results, of_cells)
    figure = figures.slingshots_figure(of_cells)
    assert not collisions(figure, monkeypatch)
    assert "no run has begun" in words(figure)
    assert "losses of 0 at the foot" in words(figure)
