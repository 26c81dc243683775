"""A sweep directory analysed: through real files, from a network whose keys were planted."""

import csv
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrok
from jaxgrok import measures
from jaxgrok.config import BadInput, Config
from jaxgrok.figures.write import OF_ONE_NETWORK
from jaxgrok.measures import checkpoints as analysis
from jaxgrok.measures import fourier, subjects
from jaxgrok.measures.ablations import DRAWS
from jaxgrok.nets import interop
from jaxgrok.nets.model import make_model
from jaxgrok.store.batches import SavedBatch
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.steps import CURVES, PARAMS, Damaged, Step
from jaxgrok.tables import circuits as circuit_tables
from jaxgrok.tables.timing import write_timing_tables
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import Interrupted, sweep
from tests.on_disk import StopAt, seal_every_checkpoint

P, KEY, MORE = 11, 3, 4
CONFIG = Config(p=P, n_heads=2, d_model=6, d_mlp=40)


def planted():
    """Weights whose W_L has one frequency: a class's column of W_U is its point on the circle of KEY."""
    params = make_model(CONFIG, make_task(CONFIG)).init(jax.random.key(0), np.zeros((1, 3), np.int32))["params"]
    params = jax.tree.map(np.array, params)
    angle = 2 * np.pi * KEY / P * np.arange(P)
    rng = np.random.default_rng(0)
    circle = rng.normal(size=(6, 2)) @ np.stack([np.cos(angle), np.sin(angle)])
    params["unembed"]["W_U"][:, :P] = circle + 0.02 * rng.normal(size=circle.shape)
    return params


def settings_in(folder):
    """Two runs of ten epochs from the weights in a folder."""
    sizes = {name: getattr(CONFIG, name) for name in ("p", "n_heads", "d_model", "d_mlp")}
    init = str(folder / "weights.npz")
    return {**sizes, "seeds": 2, "epochs": 10, "frac": 0.4, "init": init, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of ten epochs from the planted weights, not analysed."""
    folder = tmp_path_factory.mktemp("trained")
    interop.save(folder / "weights.npz", CONFIG, planted())
    with pytest.MonkeyPatch.context() as patch:
        seal_every_checkpoint(patch)
        return sweep(make_sweep(settings_in(folder)), folder / "runs")


@pytest.fixture
def path(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs")


def epochs_of(results, seed=0):
    return results.checkpoint_epochs(results.record(seed=seed))


class Count(analysis.SilentAnalysis):
    """Counts the networks measured and found; interrupts after `limit` measured."""

    def __init__(self, limit=None):
        self.total = self.measured = self.found = 0
        self.limit = limit

    def started(self, total):
        self.total = total

    def advanced(self, measured, found):
        self.measured, self.found = self.measured + measured, self.found + found
        if self.measured == self.limit:
            raise KeyboardInterrupt


def counted(path, **options):
    watch = Count()
    analysis.analyze(path, watch=watch, **options)
    return watch.total, watch.measured, watch.found


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    path = shutil.copytree(trained, tmp_path_factory.mktemp("analysed") / "runs")
    n = len(epochs_of(jaxgrok.load(path)))
    assert counted(path) == (2 * n, 2 * n, 0)
    return path


def test_every_checkpoint_has_what_measure_says_of_its_network_with_the_final_keys(analysed):
    results = jaxgrok.load(analysed)
    for seed in (0, 1):
        series, epochs = results.measures(seed=seed), epochs_of(results, seed)
        assert list(series["epoch"]) == epochs
        keys = np.asarray(measures.find_keys(CONFIG, results.params(seed=seed)))
        assert KEY in fourier.frequencies_of(keys)
        assert (series["key_frequencies"]["keys"] == keys).all()
        for i in (0, len(epochs) - 1):
            split = measures.split_of(CONFIG, 0.4, seed)
            draws = DRAWS if i else 0  # the controls are measured at the last checkpoint
            alone = measures.all(CONFIG, results.params(epochs[i], seed=seed), split, keys, seed, draws)
            for name, x in subjects.flatten(alone).items():
                here = series
                for part in name.split("/"):
                    here = here[part]
                np.testing.assert_array_equal(here[i], x, err_msg=name)


def test_controls_are_measured_at_the_last_checkpoint_or_at_all(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    before = jaxgrok.load(path).measures(seed=1)
    of_controls = before["controls"]["logit_fve"]["median"]
    assert np.isnan(of_controls[:-1]).all()
    assert np.isfinite(of_controls[-1])
    n = len(epochs_of(jaxgrok.load(path)))
    assert counted(path, all_controls=True) == (2 * n, 2 * (n - 1), 2)
    after = jaxgrok.load(path).measures(seed=1)
    assert np.isfinite(after["controls"]["ablation_loss"]["mlp_on_W_L_key_directions"]["min"]).all()
    assert after["controls"]["logit_fve"]["median"][-1] == of_controls[-1]
    # Nothing else depends on whether there are controls, but by rounding: it is another program.
    np.testing.assert_allclose(after["excluded_loss"]["train"], before["excluded_loss"]["train"], rtol=1e-4)
    assert counted(path) == (2 * n, 0, 2 * n)  # more than is asked for is as good


def test_an_interrupted_analysis_resumes_and_measures_nothing_twice(path, analysed):
    with pytest.raises(KeyboardInterrupt):
        analysis.analyze(path, watch=Count(limit=3))  # in the middle of the second checkpoint
    total, measured, found = counted(path)
    assert (measured, found) == (total - 3, 3)
    assert counted(path) == (total, 0, total)
    for (_, _, one), (_, _, other) in zip(
        jaxgrok.load(path).analysed(), jaxgrok.load(analysed).analysed(), strict=True
    ):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_damaged_file_is_measured_again(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    file = path / "analysis" / "0000" / "5.npz"
    file.write_bytes(file.read_bytes()[:100])
    total, measured, found = counted(path)
    assert (measured, found) == (2, total - 2)


def test_other_final_keys_or_another_dtype_measure_again(analysed, tmp_path, monkeypatch):
    path = shutil.copytree(analysed, tmp_path / "runs")
    one_run = jaxgrok.load(path).params(seed=1)["embed"]["W_E"]
    true_keys = measures.find_keys

    def other_for_seed_1(config, params):
        others = jnp.asarray(fourier.mask_of([KEY, MORE], P))
        return jnp.where((params["embed"]["W_E"] == one_run).all(), others, true_keys(config, params))

    monkeypatch.setattr(analysis.measures, "find_keys", other_for_seed_1)
    total, measured, found = counted(path)
    assert measured == found == total // 2
    assert list(fourier.frequencies_of(jaxgrok.load(path).measures(seed=1)["key_frequencies"]["keys"][0])) == [
        KEY,
        MORE,
    ]


def test_float64_is_refused_without_x64_and_measures_again_with_it(path, analysed, monkeypatch):
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(BadInput, match="float64"):
            analysis.analyze(path, dtype="float64")
        assert not (path / "analysis").exists()
    finally:
        jax.config.update("jax_enable_x64", True)


def test_events_of_circuits_need_every_checkpoint_under_one_set_of_keys(analysed, tmp_path):
    assert jaxgrok.load(analysed).has_circuit_events
    path = shutil.copytree(analysed, tmp_path / "runs")
    files = jaxgrok.load(path).files
    early = files.load_measures(0, 5)
    other = early["key_frequencies/keys"].copy()
    other[1] = ~other[1]
    files.save_measures(0, 5, {**early, "key_frequencies/keys": other})
    assert set(jaxgrok.load(path)._restricted) == {0}
    (path / "analysis" / "0000" / "5.npz").unlink()
    assert not jaxgrok.load(path).has_circuit_events


def add_a_run_that_waits(path):
    files = SweepFiles(path)
    manifest = files.read_manifest()
    waiting = {**manifest["runs"]["1"], "seed": 7, "batch": None}
    files.write_manifest({**manifest["runs"], "2": waiting}, manifest["batches"])


def test_a_run_that_waits_has_no_networks(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    add_a_run_that_waits(path)
    results = jaxgrok.load(path)
    circuit_tables.write_circuit_tables(results)
    assert len(rows_of(path / "tables" / "networks.csv")) == 2
    with pytest.raises(BadInput, match="begun"):
        subjects.subject_of_run(results, seed=7)


# --- versions of measures ---------------------------------------------------------------------------------------------


def versions(path):
    """The schemas of a run's saved rows at all checkpoints, by run."""
    found = {}
    for record, _, saved in jaxgrok.load(path).analysed():
        found.setdefault(record.number, set()).add((int(saved.get("schema", 0)), *sorted(saved)))
    return found


def test_measures_of_another_schema_are_measured_again(analysed, tmp_path, monkeypatch):
    path = shutil.copytree(analysed, tmp_path / "runs")
    monkeypatch.setattr(analysis.measures, "SCHEMA", analysis.measures.SCHEMA + 1)
    with pytest.raises(KeyboardInterrupt):
        analysis.analyze(path, watch=Count(limit=3))
    assert len(versions(path)[0]) == 2
    total, measured, found = counted(path)
    assert (measured, found) == (total - 3, 3)
    assert {len(of_run) for of_run in versions(path).values()} == {1}
    assert {of_run[0] for of_runs in versions(path).values() for of_run in of_runs} == {analysis.measures.SCHEMA}


@pytest.mark.parametrize("change", ["added", "removed", "old"])
def test_measures_under_other_names_are_measured_again(analysed, tmp_path, change):
    path = shutil.copytree(analysed, tmp_path / "runs")
    files = jaxgrok.load(path).files
    rows = files.load_measures(0, 5)
    if change == "added":
        rows["gini/W_Q"] = rows["gini/W_E"]
    else:
        del rows["gini/W_E" if change == "removed" else "schema"]
    files.save_measures(0, 5, rows)
    total, measured, found = counted(path)
    assert (measured, found) == (2, total - 2)
    assert {len(of_run) for of_run in versions(path).values()} == {1}


def test_schema_is_no_column(analysed, tmp_path):
    circuit_tables.write_circuit_tables(jaxgrok.load(analysed), tmp_path)
    for name in ("measures", "networks", "keys"):
        assert not {"schema", "dtype"} & set(rows_of(tmp_path / f"{name}.csv")[0])


# --- steps that are missing or damaged --------------------------------------------------------------------------------


def folder_of(path, epoch):
    return path / "checkpoints" / "0000" / str(epoch)


def is_whole(steps, record, item):
    try:
        steps.load(record, item)
    except Damaged:
        return False
    return True


def damage(path, epoch):
    """Flip a bit in the parameters of a step: its record and its curves stay as they are."""
    steps = SweepFiles(path).steps(0)
    record = steps.record(epoch)
    copies = {}  # orbax keeps some files twice
    for file in (folder_of(path, epoch) / "arrays").rglob("d/*"):
        copies.setdefault(file.read_bytes(), []).append(file)
    for content in sorted(copies, key=len, reverse=True):
        for place in range(20, len(content), max(len(content) // 40, 40)):
            for file in copies[content]:
                file.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
            if not is_whole(steps, record, PARAMS) and is_whole(steps, record, CURVES):
                return
        for file in copies[content]:
            file.write_bytes(content)
    raise AssertionError("no byte is of the parameters")


def damage_record(path, epoch):
    (folder_of(path, epoch) / "record" / "metadata").write_bytes(b"")


def test_a_last_step_that_cannot_be_read_is_named_with_the_one_used_instead(path):
    damage(path, 10)
    found = analysis.analyze(path)
    line, other = found.skipped
    assert line.startswith(str(folder_of(path, 10)))
    assert "the last checkpoint of runs 0 1, is damaged (" in line
    assert line.endswith("that of epoch 5 counts as the last, and their key frequencies are found in it")
    assert other == f"{folder_of(path, 10)} is damaged: 2 of its networks are not measured"
    assert "\n" not in line
    keys = np.asarray(measures.find_keys(CONFIG, found.results.params(5, seed=1)))
    assert (found.results.measures(seed=1)["key_frequencies"]["keys"] == keys).all()
    assert list(found.results.measures(seed=1)["epoch"]) == epochs_of(found.results)[:-1]


def test_a_damaged_step_is_named_and_the_others_are_measured(path):
    damage(path, 5)
    found = analysis.analyze(path)
    (line,) = found.skipped
    assert line == f"{folder_of(path, 5)} is damaged: 2 of its networks are not measured"
    assert list(found.results.measures(seed=1)["epoch"]) == [epoch for epoch in epochs_of(found.results) if epoch != 5]
    assert not found.results.has_circuit_events


def test_a_damaged_record_is_named_and_what_follows_it_is_not_trusted(path):
    epochs = epochs_of(jaxgrok.load(path))
    damage_record(path, 5)
    found = analysis.analyze(path)
    assert found.skipped[0].startswith(f"{folder_of(path, 5)} is damaged (")
    assert all("its runs are as they were before" in line and "\n" not in line for line in found.skipped)
    before = [epoch for epoch in epochs if epoch < 5]
    assert list(found.results.measures(seed=1)["epoch"]) == epochs_of(found.results) == before
    keys = np.asarray(measures.find_keys(CONFIG, found.results.params(before[-1], seed=1)))
    assert (found.results.measures(seed=1)["key_frequencies"]["keys"] == keys).all()


def test_measures_of_damaged_steps_are_kept_until_they_are_trained_again(analysed, trained, tmp_path, monkeypatch):
    path = shutil.copytree(analysed, tmp_path / "runs")
    total = counted(path)[0]
    damage_record(path, 5)
    found = analysis.analyze(path)
    assert 10 not in found.results.measures(seed=0)["epoch"]
    seal_every_checkpoint(monkeypatch)
    sweep(make_sweep(settings_in(trained.parent)), path)
    assert counted(path) == (total, 0, total)


def test_old_measures_of_a_damaged_step_are_not_mixed_with_new_ones(analysed, tmp_path, monkeypatch):
    path = shutil.copytree(analysed, tmp_path / "runs")
    damage(path, 5)
    assert not analysis.analyze(path).skipped  # what was measured before is still valid
    monkeypatch.setattr(analysis.measures, "SCHEMA", analysis.measures.SCHEMA + 1)
    found = analysis.analyze(path)
    assert len(found.skipped) == 1
    assert {len(of_run) for of_run in versions(path).values()} == {1}
    assert 5 not in found.results.measures(seed=0)["epoch"]


def test_runs_without_any_checkpoint_are_named_and_left_out(path, monkeypatch):
    def damaged(self, step):
        raise self.steps.damaged(step, "cut short")

    monkeypatch.setattr(SavedBatch, "params", damaged)
    found = analysis.analyze(path)
    assert len(found.skipped) == len(epochs_of(found.results))
    assert all("runs 0 1 have no other checkpoint: they are not measured" in line for line in found.skipped)


def test_one_network_of_a_run_whose_last_step_is_damaged_says_so(path):
    damage_record(path, 10)
    subject = subjects.subject_of_run(jaxgrok.load(path), seed=1)
    assert subject.about["epoch"] == 5
    lines = subjects.remarks(subject, subjects.measure_subject(subject))
    assert lines[0].startswith(f"{folder_of(path, 10)} is damaged (")
    assert lines[0].endswith("the run is as it was before")
    assert "\n" not in lines[0]


def test_one_network_whose_parameters_are_damaged_is_refused(path):
    damage(path, 10)
    with pytest.raises(BadInput, match=rf"{folder_of(path, 10)}.*damaged"):
        subjects.subject_of_run(jaxgrok.load(path), seed=1)


@pytest.mark.parametrize("harm", [damage, damage_record])
def test_skipped_steps_are_printed_with_status_1(main, capsys, path, harm):
    harm(path, 10)
    assert main([str(path)]) == 1
    said = capsys.readouterr()
    assert f"{folder_of(path, 10)}" in (said.out + said.err).replace("\n", "")
    assert "damaged" in said.out + said.err


# --- a sweep that trains on -------------------------------------------------------------------------------------------


@pytest.fixture
def halfway(trained, tmp_path):
    """The same runs stopped after epoch 5, with their checkpoints in one step that is not sealed."""
    with pytest.raises(Interrupted):
        sweep(make_sweep(settings_in(trained.parent)), tmp_path / "halfway", watch=StopAt(10))
    steps = SweepFiles(tmp_path / "halfway").steps(0)
    assert not any(steps.record(epoch).sealed for epoch in steps.epochs())
    return tmp_path / "halfway"


def test_measures_of_superseded_steps_are_reused_and_their_files_removed(halfway, trained, analysed):
    stopped = jaxgrok.load(halfway).runs[0].last_epoch
    assert stopped < 10
    early = counted(halfway)
    assert early[1] == early[0] > 2
    files = SweepFiles(halfway)
    (before,) = files.measured_steps(0)
    sweep(make_sweep(settings_in(trained.parent)), halfway)
    total, measured, found = counted(halfway)
    assert (measured, found) == (total - early[0], early[0])
    assert files.measured_steps(0) == [10] != [before]
    assert counted(halfway) == (total, 0, total)
    theirs = {(record.number, epoch): found for record, epoch, found in jaxgrok.load(analysed).analysed()}
    for record, epoch, mine in jaxgrok.load(halfway).analysed():
        other = theirs[record.number, epoch]
        if epoch == stopped:  # the last when it was measured, so it has controls, and another program measured it
            assert (mine["draws"], other["draws"]) == (DRAWS, 0)
            assert np.isfinite(mine["controls/logit_fve/median"])
            for name in ("loss/all", "excluded_loss/train", "W_L_frequency_norms"):
                np.testing.assert_allclose(mine[name], other[name], rtol=1e-4, err_msg=name)
            continue
        for name in mine.keys() - {"step"}:
            np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def test_an_interruption_after_training_on_measures_nothing_twice(halfway, trained):
    early = counted(halfway)[0]
    sweep(make_sweep(settings_in(trained.parent)), halfway)
    with pytest.raises(KeyboardInterrupt):
        analysis.analyze(halfway, watch=Count(limit=1))
    total, measured, found = counted(halfway)
    assert (measured, found) == (total - early - 1, early + 1)


def test_measures_of_superseded_steps_that_cannot_be_removed_are_left(analysed, tmp_path, monkeypatch):
    path = shutil.copytree(analysed, tmp_path / "runs")
    shutil.copy(path / "analysis" / "0000" / "5.npz", path / "analysis" / "0000" / "7.npz")
    monkeypatch.setattr(SweepFiles, "save_measures", refuse)
    monkeypatch.setattr(SweepFiles, "forget_measures", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    total, measured, found = counted(path)
    assert (measured, found) == (0, total)
    assert 7 not in jaxgrok.load(path).measures(seed=0)["epoch"]


def change_params(path, run):
    """Replace the parameters of one run in the last step, as if it had been trained again elsewhere."""
    steps = SweepFiles(path).steps(0)
    record = steps.record(10)
    arrays = steps.load(record, *record.arrays)
    rows = [row for row, (_, of) in enumerate(record.saved) if of == run]
    changed = arrays[PARAMS]["embed/W_E"].copy()
    changed[rows] *= 1.001
    steps.save(Step(record, {**arrays, PARAMS: {**arrays[PARAMS], "embed/W_E": changed}}))


def test_a_network_that_has_changed_is_measured_again(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    change_params(path, 1)
    total, measured, found = counted(path)
    assert (measured, found) == (1, total - 1)
    mine, theirs = jaxgrok.load(path).measures(seed=1), jaxgrok.load(analysed).measures(seed=1)
    assert mine["gini"]["W_E"][-1] != theirs["gini"]["W_E"][-1] or mine["loss"]["all"][-1] != theirs["loss"]["all"][-1]
    assert counted(path) == (total, 0, total)


# --- beside a running sweep -------------------------------------------------------------------------------------------


class TrainsOn(Count):
    """Trains the sweep to its end once the analysis has begun, and removes the step that was there."""

    def __init__(self, path, settings, at):
        super().__init__()
        self.path, self.settings, self.at = path, settings, at

    def started(self, total):
        super().started(total)
        if self.at == "start":
            self.train()

    def advanced(self, measured, found):
        super().advanced(measured, found)
        if self.at == "step" and self.measured == 0:
            self.train()

    def train(self):
        steps = SweepFiles(self.path).steps(0)
        (before,) = steps.epochs()
        sweep(make_sweep(self.settings), self.path)
        if before in steps.epochs():
            steps.remove(before)


def test_a_step_that_was_replaced_before_its_turn_is_read_as_it_is_now(halfway, trained):
    watch = TrainsOn(halfway, settings_in(trained.parent), "start")
    found = analysis.analyze(halfway, watch=watch)
    assert (found.skipped, found.pending) == ([], [])
    assert list(found.results.measures(seed=0)["epoch"]) == epochs_of(found.results)


def test_a_step_that_is_replaced_while_it_is_measured_is_no_damage(halfway, trained, monkeypatch):
    watch = TrainsOn(halfway, settings_in(trained.parent), "step")
    load = analysis._Batch.load
    # As if another step had been read in between.
    monkeypatch.setattr(
        analysis._Batch, "load", lambda self, step: [setattr(self, "_loaded", None), load(self, step)][1]
    )
    found = analysis.analyze(halfway, watch=watch)
    assert found.skipped == []
    (line,) = found.pending
    assert "which a newer step has replaced" in line
    assert counted(halfway)[2] == 0


def test_runs_that_have_not_begun_are_counted(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    add_a_run_that_waits(path)
    found = analysis.analyze(path)
    assert found.pending == ["not measured yet: of 3 runs, 1 have not begun"]
    assert analysis.analyze(analysed).pending == []


# --- a directory that cannot be written -------------------------------------------------------------------------------


def refuse(*_):
    raise PermissionError(13, "Permission denied")


def test_a_read_only_directory_that_is_measured_has_tables_elsewhere(analysed, tmp_path, monkeypatch):
    monkeypatch.setattr(SweepFiles, "save_measures", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = {file: file.stat().st_mtime_ns for file in analysed.rglob("*")}
    found = analysis.analyze(analysed)
    circuit_tables.write_circuit_tables(found.results, tmp_path / "tables")
    assert {file.name for file in (tmp_path / "tables").iterdir()} == {
        *("measures.csv", "keys.csv", "networks.csv", "networks.md"),
    }
    assert {file: file.stat().st_mtime_ns for file in analysed.rglob("*")} == before


@pytest.mark.parametrize("known", [True, False])
def test_a_read_only_directory_with_measures_missing_is_refused_in_one_line(path, monkeypatch, known):
    monkeypatch.setattr(SweepFiles, "save_measures", refuse)
    if known:
        monkeypatch.setattr(os, "access", lambda *_: False)
    watch = Count()
    with pytest.raises(BadInput, match="a directory that can be written") as refused:
        analysis.analyze(path, watch=watch)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    assert watch.measured == (0 if known else 2)  # found out before anything is measured, if the system tells


# --- tables -----------------------------------------------------------------------------------------------------------


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_measured(analysed):
    results = jaxgrok.load(analysed)
    write_timing_tables(results)
    circuit_tables.write_circuit_tables(results)
    n = len(epochs_of(results))
    rows = rows_of(analysed / "tables" / "measures.csv")
    assert len(rows) == 2 * n
    series = results.measures(seed=1)
    mine = [row for row in rows if row["seed"] == "1"]
    assert [int(row["epoch"]) for row in mine] == list(series["epoch"])
    for column, values in {
        "restricted_loss_test": series["restricted_loss"]["test"],
        "gini_W_L": series["gini"]["W_L"],
        "controls_logit_fve_median": series["controls"]["logit_fve"]["median"],
        "attention_to_equals_mean_1": series["attention_to_equals_mean"][:, 1],
        "sum_squared_weights_total": series["sum_squared_weights"]["total"],
    }.items():
        found = [float(row[column] or "nan") for row in mine]
        np.testing.assert_allclose(found, values, rtol=1e-6, err_msg=column)
    keys = fourier.frequencies_of(series["key_frequencies"]["keys"][0])
    per_key = [row for row in rows_of(analysed / "tables" / "keys.csv") if row["seed"] == "1"]
    assert [int(row["k"]) for row in per_key] == list(keys) * n
    last = per_key[-1]
    assert float(last["alpha"]) == pytest.approx(series["alpha"][-1, keys[-1] - 1], rel=1e-6)
    assert float(last["readout_fve_sin"]) == pytest.approx(series["mlp_readout_fve"][-1, 2 * keys[-1] - 1], rel=1e-6)
    networks = rows_of(analysed / "tables" / "networks.csv")
    assert [(row["seed"], row["epoch"]) for row in networks] == [("0", "10"), ("1", "10")]
    assert networks[1]["keys"] == " ".join(map(str, keys))
    assert networks[1]["keys_by_W_L"]
    assert float(networks[1]["loss_all"]) == pytest.approx(series["loss"]["all"][-1], rel=1e-6)
    text = (analysed / "tables" / "networks.md").read_text()
    assert f"seed 1, epoch 10 | {KEY} (" in text
    assert "restricted_50_by" in rows_of(analysed / "tables" / "timings.csv")[0]
    assert "## Stages" in (analysed / "tables" / "summary.md").read_text()


def test_medians_and_ranges_pool_what_a_network_has_per_key():
    def network(keys, loss):
        found = {
            "key_frequencies/keys": fourier.mask_of(keys, P),
            "alpha": np.arange(1.0, 6),
            "loss/all": np.float64(loss),
        }
        return {**found, "neuron_clusters": np.array([0, 7, 0, 3, 0])}

    header, rows = circuit_tables.networks_table([network([2, 4], 1e-3), network([4], 3e-3), network([], 5e-3)])
    table = {row[0]: row[1] for row in rows}
    assert header[1] == "median (range)"
    assert table["key frequencies"] == "1 (0 - 2)"
    assert table["alpha, per key"] == "4.0 (2.0 - 4.0)"
    assert table["neurons in a key's cluster"] == "3 (3 - 7)"
    assert table["loss"] == "3.00e-03 (1.00e-03 - 5.00e-03)"
    assert table["logit FVE"] == "-"


def test_a_network_of_a_run_and_of_a_file_are_measured_alike(analysed, tmp_path):
    results = jaxgrok.load(analysed)
    of_run = subjects.subject_of_run(results, seed=1)
    interop.save(tmp_path / "weights.npz", of_run.config, of_run.params)
    of_file = subjects.subject_of_file(tmp_path / "weights.npz", frac=0.4, split_seed=1)
    first, second = (
        subjects.subject_to_json(subject, subjects.measure_subject(subject)) for subject in (of_run, of_file)
    )
    assert first.pop("split") == {"seed": 1, "frac_train": 0.4, "run": 1, "epoch": 10}
    assert second.pop("split") == {"seed": 1, "frac_train": 0.4, "act": "relu"}
    assert json.dumps(first) == json.dumps(second)
    earlier = subjects.subject_of_run(results, 0, seed=1)
    np.testing.assert_array_equal(earlier.params["unembed"]["W_U"], planted()["unembed"]["W_U"])
    np.testing.assert_array_equal(
        subjects.measure_subject(earlier)["key_frequencies"]["keys"],
        results.measures(seed=1)["key_frequencies"]["keys"][0],
    )


def test_coordinates_of_several_runs_and_epochs_not_saved_are_refused(analysed):
    results = jaxgrok.load(analysed)
    with pytest.raises(BadInput, match="seed"):
        subjects.subject_of_run(results)
    with pytest.raises(BadInput, match="epoch"):
        subjects.subject_of_run(results, 7, seed=0)
    with pytest.raises(BadInput, match="seed"):
        subjects.subject_of_run(results, seed=9)


def test_remarks_say_what_a_reader_must_know():
    subject = subjects.Subject(
        Config(task="x2xyy2"), {}, None, {}, 0, {"recorded_train_loss": 2.0, "recorded_test_loss": 1.0}
    )
    lines = subjects.remarks(subject, {"no_keys": True, "loss_all_classes": {"train": 1.0, "test": 1.0001}})
    assert "x2xyy2" in lines[0]
    assert "no keys" in lines[1]
    assert lines[2].startswith("train loss 1.0")
    assert lines[2].endswith("?")
    assert lines[3].startswith("test loss 1.0")
    assert not lines[3].endswith("?")


# --- the command
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def main(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.path.join(os.path.dirname(__file__), "..", "scripts"))
    import analyze

    return analyze.main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nothing.pth", "nothing.pth"),
        ("n" * 300, "one that exists"),
        (".", "a directory that sweep.py made"),
        ("RUNS --split-seed 1", "--split-seed: got 1"),
        ("RUNS --seed 1", "--seed: got 1"),
        ("RUNS --json out.json", "seed"),
        ("RUNS --seed 1 --epoch 7 --json out.json", "epoch: got 7"),
        ("RUNS --seed 1 --wd 1,2 --json out.json", "--wd: got '1,2'"),
        ("RUNS --seed 1 --json none/out.json", "--json: got 'none/out.json'"),
        ("RUNS --seed 1 --json .", "--json: got '.'"),
        ("RUNS --names authors", "--names: got 'authors'"),
        ("RUNS --seed 1 --export net.txt", "net.txt"),
        ("RUNS --seed 1 --export net.npz --names theirs", "--names: got 'theirs'"),
        ("WEIGHTS --run 1", "--run: got 1"),
        ("WEIGHTS --frac 2", "--frac: got '2'"),
        ("WEIGHTS --frac 0.001", "frac"),
        ("WEIGHTS --dtype half", "--dtype: got 'half'"),
        ("WEIGHTS --task divide", "--task: got 'divide'"),
        ("BROKEN", "damaged or cut short"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(main, capsys, tmp_path, path, trained, arguments, said):
    weights = trained.parent / "weights.npz"
    (tmp_path / "broken.npz").write_bytes(weights.read_bytes()[:300])
    before = sorted(tmp_path.rglob("*"))
    words = [
        {"RUNS": str(path), "WEIGHTS": str(weights), "BROKEN": "broken.npz"}.get(word, word)
        for word in arguments.split()
    ]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert sorted(tmp_path.rglob("*")) == before


def test_one_network_to_json_and_exported(main, capsys, tmp_path, analysed):
    arguments = [
        str(analysed),
        "--seed",
        "1",
        "--json",
        "out.json",
        "--export",
        "net.npz",
        "--names",
        "transformer_lens",
    ]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert KEY in content["key_frequencies"]["keys"]
    assert content["split"] == {"seed": 1, "frac_train": 0.4, "run": 1, "epoch": 10}
    back = interop.load(tmp_path / "net.npz", names="transformer_lens").params
    jax.tree.map(np.testing.assert_array_equal, back, jaxgrok.load(analysed).params(seed=1))
    assert "logit FVE" in capsys.readouterr().out


def test_a_directory_from_the_command_line(main, capsys, tmp_path, analysed):
    path = shutil.copytree(analysed, tmp_path / "runs")
    assert main([str(path)]) == 0
    said = capsys.readouterr()
    assert "seed 1, epoch 10" in said.out
    assert "generalisation" in said.out
    assert "networks to measure" in said.err
    drawn = {str(file.relative_to(path / "figures")) for file in (path / "figures").rglob("*.png")}
    over_training = {
        "losses.png",
        "keys.png",
        "gini.png",
        "weights.png",
        "key-spectra.png",
        "curves.png",
        "survival.png",
    }
    of_seed_0 = {f"{name}-seed=0.png" for name in ("excluded-per-key", "spectra-over-training", "alpha-over-training")}
    assert over_training | of_seed_0 | {f"circuits-seed=0/{name}.png" for name in OF_ONE_NETWORK} == drawn
    assert {file.name for file in (path / "tables").iterdir()} == {
        "timings.csv", "summary.csv", "summary.md", "measures.csv", "keys.csv", "networks.csv", "networks.md",
    }  # fmt: skip


def test_two_devices_measure_three_networks_as_one_does(tmp_path):
    interop.save(tmp_path / "weights.npz", CONFIG, planted())
    paths = [tmp_path / name for name in ("one", "two")]
    shutil.copytree(sweep(make_sweep({**settings_in(tmp_path), "seeds": 3}), paths[0]), paths[1])
    analysis.analyze(paths[0])
    program = (
        "import sys, jax; jax.config.update('jax_enable_x64', True)\n"
        "from jaxgrok.measures.checkpoints import analyze\n"
        "assert len(jax.local_devices()) == 2\n"
        "analyze(sys.argv[1])\n"
    )
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", program, str(paths[1])], check=True, env=environment)
    one, two = (
        {(record.number, epoch): found for record, epoch, found in jaxgrok.load(path).analysed()} for path in paths
    )
    assert one.keys() == two.keys()
    assert len(one) == 3 * len(epochs_of(jaxgrok.load(paths[0])))
    for place, found in one.items():
        for name, x in found.items():
            if x.dtype.kind == "U":
                assert x == two[place][name]
            else:
                np.testing.assert_allclose(x, two[place][name], rtol=1e-4, atol=1e-5, err_msg=name)
