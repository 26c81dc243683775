"""The parts of a task in tables and figures, from curves planted in a sweep directory."""

import csv
from dataclasses import replace

import numpy as np
import pytest

import jaxgrok
from jaxgrok import figures
from jaxgrok.config import BadInput
from jaxgrok.stats import order
from jaxgrok.store.curves import SweepCurves
from jaxgrok.store.events import events_of
from jaxgrok.tables import parts as part_tables
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import sweep
from tests.on_disk import plant, tables_see
from tests.test_figures import collisions, words

SETTINGS = {
    **{"task": "addition2", "d_model": 8, "n_heads": 2, "seeds": 3},
    **{"epochs": 4000, "eval_every": 10, "n_test": 20, "batch_size": 4},
}
# Epoch at which each digit (columns) of each run (rows) falls; the last digit of the last run never does.
FALLS = np.array([[500, 1000, 1500], [400, 1200, 800], [300, 600, 9999]])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A sweep directory as training leaves it, with planted curves."""
    folder = tmp_path_factory.mktemp("parts")
    trained = jaxgrok.load(sweep(make_sweep({**SETTINGS, "epochs": 10}), folder / "trained"))
    m = SweepCurves(3, 4000, 10, 1, n_parts=3)
    m.last_epoch[:] = 4000
    m.train_loss[:], m.train_acc[:] = 1.0, 0.5
    for run, falls in enumerate(FALLS):
        for part, fall in enumerate(falls):
            m.test_part_loss[run, :, part] = np.where(m.epoch_eval < fall, 2.0, 1e-3)
            m.test_part_acc[run, :, part] = np.where(m.epoch_eval < fall, 0.1, 1.0)
    m.test_loss[:], m.test_acc[:] = m.test_part_loss.mean(-1), m.test_part_acc.mean(-1)
    m.test_answer_acc[:] = m.test_part_acc.min(-1)
    plant(
        folder / "runs",
        trained.files.read_config(trained.files.read_manifest()),
        [replace(run, epochs=4000) for run in trained.runs],
        m,
    )
    return jaxgrok.load(folder / "runs")


@pytest.fixture(scope="module")
def parts(results):
    (parts,) = part_tables.parts_of(results)
    return parts


def test_arrivals_are_the_planted_ones(parts):
    np.testing.assert_array_equal(parts.times, np.minimum(FALLS, 4000))
    np.testing.assert_array_equal(parts.reached, FALLS < 4000)
    assert parts.names == ("digit 0", "digit 1", "digit 2")
    assert parts.learned("digit 1").value == 1000
    np.testing.assert_array_equal(order.first_counts(parts.times, parts.reached), [3, 0, 0])


def test_a_drop_of_one_evaluation_has_no_width_and_one_that_never_came_is_censored(parts):
    assert parts.timings[0]["digit 1"].drop_width == 0
    assert parts.timings[2]["digit 2"].drop_width is None
    assert str(parts.drop_width("digit 0")).startswith("0 [")


def test_half_of_its_own_chance_is_what_a_digit_must_pass(results):
    """0.5 nats is learned of a digit out of ten, and not of the leading one, which is 0 or 1."""
    curves = results.curves(seed=0)
    assert curves.test_part_loss is not None
    flat = replace(curves, test_part_loss=np.full_like(curves.test_part_loss, 0.5))
    parts = events_of(results.runs[0].task, flat, unlimited=True).parts
    assert parts["digit 0"].timing.by("grokked") is None
    assert parts["digit 1"].timing.by("grokked") == 0


def test_a_constant_guess_learns_no_trigram(tmp_path):
    """One class is always right for a network that always guesses it: accuracy alone would call it learned."""
    fields = {"task": "skip_trigram", "d_model": 8, "n_heads": 2, "batch_size": 4}
    results = jaxgrok.load(sweep(make_sweep({**fields, "seeds": 1, "epochs": 10}), tmp_path / "r"))
    curves = results.curves(seed=0)
    for loss, learned in ((2.2, False), (0.1, True)):
        planted = {"test_part_loss": np.full((1, 10), loss), "test_part_acc": np.ones((1, 10))}
        one = {"test_loss": curves.test_loss[:1], "test_acc": curves.test_acc[:1], "train_acc": curves.train_acc[:1]}
        flat = replace(curves, epoch_eval=curves.epoch_eval[:1], **one, **planted)
        parts = events_of(results.runs[0].task, flat, unlimited=True).parts.values()
        assert {"grokked" in part.timing.events for part in parts} == {learned}


def test_tables_say_what_was_planted(results, parts):
    found = part_tables.write_part_tables(results)
    assert found[0].names == parts.names
    with open(results.path / "tables" / "parts.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    by = {(row["seed"], row["part"]): row for row in rows}
    assert (by["1", "digit 1"]["grokked_after"], by["1", "digit 1"]["grokked_by"]) == ("1190", "1200")
    assert by["2", "digit 2"]["grokked_by"] == ""
    assert {row["n_train"] for row in rows} == {"unlimited"}
    assert float(by["0", "digit 0"]["final_loss"]) == pytest.approx(1e-3)
    text = (results.path / "tables" / "parts.md").read_text()
    assert "| digit 2 | 2/3 |" in text
    assert "3 of 3 runs with a complete order" in text
    assert "listed first came first in 5 of 6 pairs" in text
    # Digit 1 came before digit 2 in the first run and, censored late enough, in the last; not in the second.
    assert "| digit 1 | 0/3 | - | 2/3 |" in text


def test_what_the_loss_does_not_count_is_in_the_table_without_events(tmp_path):
    fields = {"seq_len": 7, "repeat_len": 2, "n_repeats": 2, "n_tokens": 5}
    fields |= {"d_model": 8, "n_heads": 2, "batch_size": 4, "n_test": 8}
    results = jaxgrok.load(
        sweep(make_sweep({"task": "induction", **fields, "seeds": 1, "epochs": 10}), tmp_path / "runs")
    )
    (of_cell,) = part_tables.parts_of(results)
    header, rows = part_tables.parts_table(results, [of_cell])
    assert [row[header.index("part")] for row in rows] == ["copy 1 token 1", "outside"]
    assert rows[1][header.index("grokked_by")] is None
    assert rows[1][header.index("final_loss")] > 0
    assert of_cell.names == ("copy 1 token 1",)


def test_a_part_that_does_not_exist_is_refused_by_name(results):
    with pytest.raises(BadInput, match=r"digit 9.*digit 0, digit 1, digit 2"):
        results.part_curves("digit 9", seed=0)


def test_a_part_that_a_test_set_lacks_is_left_out_and_named(results, monkeypatch):
    def without_digit_0(record, curves):
        losses = np.array(curves.test_part_loss)
        losses[:, 0] = np.nan if record.seed == 1 else losses[:, 0]
        return replace(curves, test_part_loss=losses)

    tables_see(monkeypatch, results, without_digit_0)
    (of_cell,) = part_tables.parts_of(results)
    assert of_cell.names == ("digit 1", "digit 2")
    assert part_tables.order_lines(of_cell)[-1] == "Left out, because not every run has a test example of it: digit 0."
    assert of_cell.reached.shape == (3, 2)


def test_the_figures_hold_the_planted_data(results, parts, monkeypatch):
    curves = [results.part_curves(seed=seed) for seed in range(3)]
    losses, arrival = figures.part_losses_figure(parts, curves), figures.part_order_figure(parts)
    for figure in (losses, arrival):
        assert not collisions(figure, monkeypatch)
    named = {line.get_label(): line for line in losses.axes[1].lines}
    x, y = named["digit 0"].get_data()
    assert y[np.searchsorted(x, 350)] == 2.0
    assert y[-1] == pytest.approx(1e-3)
    assert losses.axes[0].get_xlim()[1] == pytest.approx(1.5 * 1500)
    dots = np.concatenate([line.get_xdata() for line in arrival.axes[0].lines if line.get_marker() == "."])
    assert sorted(dots) == sorted(FALLS[FALLS < 4000])
    assert "3/3" in words(arrival)


def test_many_parts_are_named_by_a_bar(results, parts, monkeypatch):
    many = tuple(f"copy {i // 15} token {i % 15}" for i in range(30))
    (events, *_), curve = parts.events[0].values(), results.part_curves(seed=0)
    losses = dict.fromkeys(many, curve["test_part_loss"]["digit 0"])
    curves = [{"epoch_eval": curve["epoch_eval"], "test_part_loss": losses}] * 3
    of_runs = [[dict.fromkeys(many, of_one)] * 3 for of_one in (events.timing, events)]
    wide = part_tables.Parts(parts.cell, many, *of_runs)
    drawn = figures.part_losses_figure(wide, curves)
    for figure in (drawn, figures.part_order_figure(wide)):
        assert not collisions(figure, monkeypatch)
    above, below = drawn.axes[:2]
    assert (above.get_title("left"), below.get_title("left")) == ("seed 0", "3 runs, medians")
    assert len(part_tables.parts_markdown([wide]).splitlines()) < 60


def test_on_unlimited_data_figures_say_learned(results):
    (cell,) = results.cells
    assert figures.survival_figure([cell]).axes[0].get_ylabel() == "share not yet learned"
    drawn = figures.curves_figure(cell, [results.curves_of(record) for record in cell.records])
    assert "learned, median" in words(drawn)
    assert "grokked" not in words(drawn)
