"""Sweeps over tasks that draw their examples: several tasks, sizes and unlimited data in one directory."""

import csv
import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.cli import live
from jaxgrok.config import BadInput
from jaxgrok.store import events
from jaxgrok.tables import timing
from jaxgrok.tasks import AdditionTask, Criterion, make_config
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import cycle_of, train
from jaxgrok.training.sweep import Interrupted, compiled, prepare, sweep
from tests.conftest import optimised
from tests.on_disk import StopAt, curves, same_files, tables_see

NETWORK = {
    "arch": "attn_only",
    "d_model": 4,
    "n_heads": 1,
    "dtype": "float64",
    "lr": 1e-2,
    "eval_every": 5,
    "batch_size": 8,
}
BOTH = {**NETWORK, "task": "addition1,skip_trigram", "n_train": "20,unlimited", "seeds": 2, "epochs": 20}
CELLS = [(task, n_train) for task in ("addition1", "skip_trigram") for n_train in (20, None)]


@pytest.fixture(scope="module", autouse=True)
def shipped():
    """The program that ships, compiled in full: the promise to resume bit for bit is about that one."""
    compiled.cache_clear()
    with optimised():
        yield
    compiled.cache_clear()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, shipped):
    return sweep(make_sweep(BOTH), tmp_path_factory.mktemp("drawn") / "runs", batch_runs=2)


@pytest.fixture
def results(drawn):
    return jaxgrok.load(drawn)


@pytest.mark.slow
def test_the_live_line_counts_runs_on_unlimited_data_apart(tmp_path, monkeypatch):
    shown = io.StringIO()
    with live.Watch(shown) as watch:
        monkeypatch.setattr(watch, "every", 0)
        sweep(make_sweep(BOTH), tmp_path / "runs", batch_runs=2, watch=watch)
    last = shown.getvalue().splitlines()[-1]
    assert last.startswith("160 of 160 run-epochs, ")
    assert last.endswith("memorised 0, grokked 0 of 4, learned 0 of 4")


def test_runs_have_their_task_and_their_number_of_examples(results):
    runs = [(record.config.task, record.run.n_train, record.seed) for record in results.runs]
    assert runs == [(*cell, seed) for cell in CELLS for seed in (0, 1)]
    assert {(record.coordinates["p"], record.run.frac, record.status) for record in results.runs} == {
        (None, None, "trained")
    }
    assert results.varying == ["task", "n_train"]
    assert len({record.split_hash for record in results.runs}) == 8
    assert results.record(task="addition1", n_train=None, seed=1).number == 3
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
    for record in results.runs:
        parts, (_, test) = arrays["test_part_loss"][record.number], record.task.split(record.run.n_train, record.seed)
        weights = np.bincount(test.part.ravel(), minlength=10) / test.part.size
        np.testing.assert_allclose(np.nansum(weights * parts, axis=1), arrays["test_loss"][record.number], rtol=1e-12)
    # Each target of skip trigrams is the whole answer.
    np.testing.assert_array_equal(arrays["test_answer_acc"][4:], arrays["test_acc"][4:])


def test_curves_by_part_name(results):
    found = results.part_curves(task="addition1", n_train=20, seed=1)
    assert list(found["test_part_loss"]) == list(found["test_part_acc"]) == ["digit 0", "digit 1"]
    curves = results.curves_of(results.runs[1])
    np.testing.assert_array_equal(found["test_part_loss"]["digit 1"], curves.test_part_loss[:, 1])
    np.testing.assert_array_equal(found["test_answer_acc"], curves.test_answer_acc)
    np.testing.assert_array_equal(found["epoch_eval"], curves.epoch_eval)
    one = results.part_curves("entry 13", task="skip_trigram", n_train=None, seed=0)
    assert list(one["test_part_acc"]) == ["entry 13"]
    np.testing.assert_array_equal(
        one["test_part_acc"]["entry 13"], results.curves_of(results.runs[6]).test_part_acc[:, 3]
    )
    with pytest.raises(BadInput, match="a part of task addition1: digit 0, digit 1"):
        results.part_curves("entry 13", task="addition1", n_train=20, seed=1)
    outcomes = {part: timing.outcome for part, timing in results.part_timings(results.runs[2]).items()}
    assert outcomes == {"digit 0": "not learned", "digit 1": "not learned"}


def test_tables_name_unlimited_data(results, monkeypatch):
    """With curves planted so that seed 0 of each cell has learned."""

    def planted(record, curves):
        loss, accuracy = (0.01, 1.0) if record.seed == 0 else (3.0, 0.2)
        flat = {"test_loss": loss, "test_acc": accuracy, "train_acc": 1.0}
        return replace(curves, **{name: np.full_like(curves.test_loss, value) for name, value in flat.items()})

    tables_see(monkeypatch, results, planted)
    timing.write_timing_tables(results)
    cells = results.cells
    rows = list(csv.DictReader((results.path / "tables" / "timings.csv").read_text().splitlines()))
    assert [row["n_train"] for row in rows] == ["20", "20", "unlimited", "unlimited"] * 2
    assert [row["outcome"] for row in rows] == ["grokked", "memorised only", "learned", "not learned"] * 2
    assert [row["memorised_by"] for row in rows] == ["0", "0", "", ""] * 2
    assert {(row["p"], row["frac"]) for row in rows} == {("", "")}
    assert [cell.name for cell in cells] == [f"task={task} n_train={n or 'unlimited'}" for task, n in CELLS]
    assert timing.event_times(cells[1], "memorised").arrivals == timing.delay_times(cells[1]).arrivals == {}
    rows = list(csv.DictReader((results.path / "tables" / "summary.csv").read_text().splitlines()))
    assert [(row["n_train"], row["learned"], row["not_learned"], row["memorised_only"]) for row in rows] == [
        ("20", "0", "0", "1"),
        ("unlimited", "1", "1", "0"),
    ] * 2
    header, _ = timing.readable_table(cells)
    assert {"grokked", "learned", "not learned", "grokked or learned at"} <= set(header)


def test_the_train_accuracy_of_minibatches_is_of_a_cycle_through_them(results):
    """20 examples in minibatches of 8: five steps until they come again."""
    assert cycle_of(results.runs[4].config, 20) == 5
    fields = {name: BOTH[name] for name in NETWORK.keys() - {"lr", "eval_every"}}
    _, alone = train(make_config("skip_trigram", **fields), seed=1, n_train=20, lr=1e-2, epochs=20, eval_every=5)
    curves = results.curves(task="skip_trigram", n_train=20, seed=1)
    for epoch, stop, accuracy in zip(curves.epoch_eval, [*curves.epoch_eval[1:], 20], curves.train_acc):
        assert accuracy == pytest.approx(alone.train_acc[epoch : min(stop, epoch + 5)].mean())
    assert len(set(np.round(alone.train_acc[10:15], 6))) > 1


def test_an_interrupted_sweep_resumes_bit_for_bit(drawn, tmp_path):
    path = tmp_path / "runs"
    for stop in (61, 80):
        with pytest.raises(Interrupted):
            sweep(make_sweep(BOTH), path, batch_runs=2, watch=StopAt(stop))
        half_way = {record.run.n_train for record in jaxgrok.load(path).runs if 0 < record.last_epoch < 20}
        assert half_way == {None}
    sweep(make_sweep(BOTH), path, batch_runs=2)
    same_files(drawn, path)


def test_more_sizes_and_epochs_extend_a_sweep_and_another_task_does_not(drawn, tmp_path):
    path, task = tmp_path / "runs", {**BOTH, "task": "skip_trigram"}
    sweep(make_sweep({**task, "n_train": 20, "epochs": 10}), path, batch_runs=2)
    sweep(make_sweep(task), path, batch_runs=2)
    both, extended = jaxgrok.load(drawn), jaxgrok.load(path)
    runs = [(record.run.n_train, record.seed) for record in extended.runs]
    assert runs == [(20, 0), (20, 1), (None, 0), (None, 1)]
    for record in extended.runs:
        at = {name: record.coordinates[name] for name in ("task", "n_train", "seed")}
        for name, curve in vars(both.curves(**at)).items():
            np.testing.assert_array_equal(getattr(extended.curves(**at), name), curve, err_msg=name)
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
    at = {"task": "skip_trigram", "n_train": None}
    same = [fixed.curves(seed=s).train_loss == own.curves(**at, seed=s).train_loss for s in (0, 1)]
    assert not same[0].any()
    assert same[1].all()
    assert len({record.split_hash for record in fixed.runs}) == 1


@pytest.mark.slow
def test_runs_agree_in_batches_of_another_size(drawn, tmp_path):
    one = sweep(make_sweep({**BOTH, "task": "skip_trigram"}), tmp_path / "runs", batch_runs=1)
    for name in ("train_loss", "test_loss", "test_part_loss"):
        # The same float64 sums in another order.
        np.testing.assert_allclose(curves(one)[name], curves(drawn)[name][4:], rtol=1e-10)


def test_a_run_whose_criterion_is_a_loss_ends_by_it(monkeypatch, tmp_path):
    settings = {**BOTH, "task": "addition1", "n_train": "unlimited", "until_settled": True, "max_epochs": 20}
    del settings["epochs"]
    monkeypatch.setattr(events, "settled_epoch", lambda grokked: grokked + 10)
    monkeypatch.setattr(AdditionTask, "criterion", Criterion(loss=100.0))
    results = jaxgrok.load(sweep(make_sweep(settings), tmp_path / "runs", batch_runs=2))
    assert [(record.last_epoch, record.status) for record in results.runs] == [(10, "ended")] * 2
    assert results.timing(results.runs[0]).outcome == "learned"
