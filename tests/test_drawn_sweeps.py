"""Sweeps over tasks that draw their examples: several tasks, numbers of examples and unlimited data in one directory."""

import csv
import io
import json

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.cli import show as progress
from jaxgrok.config import BadInput
from jaxgrok.store import events as phases
from jaxgrok.store.steps import Metrics
from jaxgrok.tables import timing as report
from jaxgrok.tasks import AdditionTask, make_config, make_task
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import cycle_of, train
from jaxgrok.training.sweep import Interrupted, prepare, sweep
from tests.on_disk import StopAt, curves, same_files

NETWORK = {"arch": "attn_only", "d_model": 4, "n_heads": 1, "dtype": "float64", "lr": 1e-2, "eval_every": 5, "batch_size": 8}
BOTH = {**NETWORK, "task": "addition1,skip_trigram", "n_train": "20,unlimited", "seeds": 2, "epochs": 20}
CELLS = [(task, n_train) for task in ("addition1", "skip_trigram") for n_train in (20, None)]


@pytest.fixture(scope="module")
def shown():
    """What the terminal was shown of the sweep below, on a pipe."""
    return io.StringIO()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, shown):
    with pytest.MonkeyPatch.context() as patch, progress.Watch(shown) as watch:
        patch.setattr(watch, "every", 0)
        return sweep(make_sweep(BOTH), tmp_path_factory.mktemp("drawn") / "runs", batch_runs=2, watch=watch)


@pytest.fixture
def results(drawn):
    return jaxgrok.load(drawn)


def test_the_live_line_counts_runs_on_unlimited_data_apart(drawn, shown):
    last = shown.getvalue().splitlines()[-1]
    assert last.startswith("160 of 160 run-epochs, ")
    assert last.endswith("memorised 0, grokked 0 of 4, learned 0 of 4")


def test_runs_have_their_task_and_their_number_of_examples(results):
    assert [(run["task"], run["n_train"], run["seed"]) for run in results.runs] == [(*cell, seed) for cell in CELLS for seed in (0, 1)]
    assert {(run["p"], run["frac"], run["status"]) for run in results.runs} == {(None, None, "trained")}
    assert results.varying() == ["task", "n_train"]
    assert len({run["split_hash"] for run in results.runs}) == 8
    assert results.select(task="addition1", n_train=None, seed=1)[0]["run"] == 3
    assert "n_train" not in json.loads(results.files.config_json.read_text())


def test_curves_of_parts_are_padded_where_a_task_has_fewer(drawn, results):
    arrays = curves(drawn)
    evals = len(arrays["epoch_eval"])
    assert arrays["test_answer_acc"].shape == (8, evals)
    assert arrays["test_part_loss"].shape == arrays["test_part_acc"].shape == (8, evals, 10)
    for name in ("test_part_loss", "test_part_acc"):
        assert np.isnan(arrays[name][:4, :, 2:]).all()  # addition has two digits
        assert np.isfinite(arrays[name][:4, :, :2]).all()
        assert np.isfinite(arrays[name][4:]).all()
    np.testing.assert_array_equal(arrays["n_train"], [20, 20, np.nan, np.nan] * 2)
    assert np.isnan(arrays["p"]).all()
    for run in results.runs:
        parts, (_, test) = arrays["test_part_loss"][run["run"]], make_task(results.config(run)).split(run["n_train"], run["seed"])
        weights = np.bincount(test.part.ravel(), minlength=10) / test.part.size
        np.testing.assert_allclose(np.nansum(weights * parts, axis=1), arrays["test_loss"][run["run"]], rtol=1e-12)
    # Each target of skip trigrams is the whole answer.
    np.testing.assert_array_equal(arrays["test_answer_acc"][4:], arrays["test_acc"][4:])


def test_curves_by_part_name(results):
    found = results.part_curves(task="addition1", n_train=20, seed=1)
    assert list(found["test_part_loss"]) == list(found["test_part_acc"]) == ["digit 0", "digit 1"]
    metrics = results.metrics
    np.testing.assert_array_equal(found["test_part_loss"]["digit 1"], metrics.test_part_loss[1, :, 1])
    np.testing.assert_array_equal(found["test_answer_acc"], metrics.test_answer_acc[1])
    np.testing.assert_array_equal(found["epoch_eval"], metrics.epoch_eval)
    one = results.part_curves("entry 13", task="skip_trigram", n_train=None, seed=0)
    assert list(one["test_part_acc"]) == ["entry 13"]
    np.testing.assert_array_equal(one["test_part_acc"]["entry 13"], metrics.test_part_acc[6, :, 3])
    with pytest.raises(BadInput, match="a part of task addition1: digit 0, digit 1"):
        results.part_curves("entry 13", task="addition1", n_train=20, seed=1)
    timings = results.part_timings(results.runs[2])
    assert {part: timing.outcome for part, timing in timings.items()} == {"digit 0": "not learned", "digit 1": "not learned"}


def test_tables_name_unlimited_data(results):
    """With curves planted so that seed 0 of each cell has learned."""
    for run in results.runs:
        loss, accuracy = (0.01, 1.0) if run["seed"] == 0 else (3.0, 0.2)
        results.metrics.test_loss[run["run"]], results.metrics.test_acc[run["run"]] = loss, accuracy
        results.metrics.train_acc[run["run"]] = 1.0
    cells = report.write_tables(results)
    rows = list(csv.DictReader((results.path / "tables" / "timings.csv").open()))
    assert [row["n_train"] for row in rows] == ["20", "20", "unlimited", "unlimited"] * 2
    assert [row["outcome"] for row in rows] == ["grokked", "memorised only", "learned", "not learned"] * 2
    assert [row["memorised_by"] for row in rows] == ["0", "0", "", ""] * 2
    assert {(row["p"], row["frac"]) for row in rows} == {("", "")}
    assert [cell.name for cell in cells] == [f"task={task} n_train={n or 'unlimited'}" for task, n in CELLS]
    assert cells[1].times("memorised") == cells[1].times("delay") == {}
    rows = list(csv.DictReader((results.path / "tables" / "summary.csv").open()))
    assert [(row["n_train"], row["learned"], row["not_learned"], row["memorised_only"]) for row in rows] == [
        ("20", "0", "0", "1"),
        ("unlimited", "1", "1", "0"),
    ] * 2
    header, _ = report.readable_table(cells)
    assert {"grokked", "learned", "not learned", "grokked or learned at"} <= set(header)


def test_the_train_accuracy_of_minibatches_is_of_a_cycle_through_them(results):
    """20 examples in minibatches of 8: five steps until they come again."""
    assert cycle_of(results.config(results.runs[4]), 20) == 5
    fields = {name: BOTH[name] for name in NETWORK.keys() - {"lr", "eval_every"}}
    _, alone = train(make_config("skip_trigram", **fields), seed=1, n_train=20, lr=1e-2, epochs=20, eval_every=5)
    curves = results.curves(task="skip_trigram", n_train=20, seed=1)
    for epoch, stop, accuracy in zip(curves["epoch_eval"], [*curves["epoch_eval"][1:], 20], curves["train_acc"]):
        assert accuracy == pytest.approx(alone.train_acc[epoch : min(stop, epoch + 5)].mean())
    assert len(set(np.round(alone.train_acc[10:15], 6))) > 1


def test_an_interrupted_sweep_goes_on_bit_for_bit(drawn, tmp_path):
    path = tmp_path / "runs"
    for stop in (61, 80):
        with pytest.raises(Interrupted):
            sweep(make_sweep(BOTH), path, batch_runs=2, watch=StopAt(stop))
        half_way = {run["n_train"] for run in jaxgrok.load(path).runs if 0 < run["last_epoch"] < 20}
        assert half_way == {None}
    same_files(drawn, sweep(make_sweep(BOTH), path, batch_runs=2))


def test_more_sizes_and_epochs_extend_a_sweep_and_another_task_does_not(drawn, tmp_path):
    path, task = tmp_path / "runs", {**BOTH, "task": "skip_trigram"}
    sweep(make_sweep({**task, "n_train": 20, "epochs": 10}), path, batch_runs=2)
    sweep(make_sweep(task), path, batch_runs=2)
    both, extended = jaxgrok.load(drawn), jaxgrok.load(path)
    assert [(run["n_train"], run["seed"]) for run in extended.runs] == [(20, 0), (20, 1), (None, 0), (None, 1)]
    for run in extended.runs:
        at = {name: run[name] for name in ("task", "n_train", "seed")}
        for name, curve in both.curves(**at).items():
            np.testing.assert_array_equal(extended.curves(**at)[name], curve, err_msg=name)
        jax.tree.map(np.testing.assert_array_equal, both.params(**at), extended.params(**at))
    for change, field in [
        ({"task": "skip_trigram,addition1"}, "task"),
        ({"seq_len": 9}, "seq_len"),
        ({"n_test": 9}, "n_test"),
        ({"batch_size": 9}, "batch_size"),
        ({"split_seed": 0}, "split_seed"),
    ]:
        with pytest.raises(BadInput, match="or another --out") as caught:
            prepare(make_sweep({**task, **change}), path)
        assert caught.value.name == field


def test_a_split_seed_gives_all_runs_the_same_data(drawn, tmp_path):
    settings = {**BOTH, "task": "skip_trigram", "n_train": "unlimited", "split_seed": 1}
    fixed = jaxgrok.load(sweep(make_sweep(settings), tmp_path / "runs", batch_runs=2))
    own = jaxgrok.load(drawn)
    same = [fixed.curves(seed=s)["train_loss"] == own.curves(task="skip_trigram", n_train=None, seed=s)["train_loss"] for s in (0, 1)]
    assert not same[0].any()
    assert same[1].all()
    assert len({run["split_hash"] for run in fixed.runs}) == 1


def test_forgotten_epochs_are_forgotten_of_parts_too():
    metrics = Metrics(2, 20, 5, 1, n_parts=3)
    for name in metrics.curves:
        getattr(metrics, name)[:] = 1.0
    metrics.rewind([1], 10)
    for name in metrics.curves:
        epochs = metrics.epoch_train if name == "train_loss" else metrics.epoch_eval
        np.testing.assert_array_equal(np.isnan(getattr(metrics, name)[1]).reshape(len(epochs), -1).all(axis=1), epochs >= 10)
        assert np.isfinite(getattr(metrics, name)[0]).all()


def test_runs_agree_in_batches_of_another_size(drawn, tmp_path):
    one = sweep(make_sweep({**BOTH, "task": "skip_trigram"}), tmp_path / "runs", batch_runs=1)
    for name in ("train_loss", "test_loss", "test_part_loss"):
        # The same float64 sums in another order.
        np.testing.assert_allclose(curves(one)[name], curves(drawn)[name][4:], rtol=1e-10)


def test_a_run_whose_criterion_is_a_loss_ends_by_it(monkeypatch, tmp_path):
    settings = {**BOTH, "task": "addition1", "n_train": "unlimited", "until_settled": True, "max_epochs": 20}
    del settings["epochs"]
    monkeypatch.setattr(phases, "settled_epoch", lambda grokked: grokked + 10)
    monkeypatch.setattr(AdditionTask, "grokked_loss", 100.0)
    results = jaxgrok.load(sweep(make_sweep(settings), tmp_path / "runs", batch_runs=2))
    assert [(run["last_epoch"], run["status"]) for run in results.runs] == [(10, "ended")] * 2
    assert results.timing(results.runs[0]).outcome == "learned"
