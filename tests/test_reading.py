"""A directory is read while it is trained in, or after somebody has changed what is in it."""

import errno
import json
import os
import shutil

import filelock
import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.atomic import write_json
from jaxgrok.cli import analyze as cli_analyze
from jaxgrok.cli import sweep as cli_sweep
from jaxgrok.config import BadInput
from jaxgrok.figures import write_figures
from jaxgrok.measures import checkpoints as analysis
from jaxgrok.store import results as store_results
from jaxgrok.store.batches import SavedBatch
from jaxgrok.store.events import RunEvents
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.integrity import with_digest, without_digest
from jaxgrok.store.results import write_metrics
from jaxgrok.store.steps import BatchSteps
from jaxgrok.tables.timing import write_timing_tables
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import Interrupted, sweep
from tests.on_disk import StopAt, contents, curves, seal_every_checkpoint

SMALL = {
    "arch": "mlp",
    "p": 5,
    "d_mlp": 8,
    "frac": 0.5,
    "lr": 1e-2,
    "eval_every": 5,
    "checkpoint_every": 10,
    "seeds": 2,
}


def small(**settings):
    return make_sweep({**SMALL, "epochs": 40, **settings})


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """A finished and analysed sweep of one batch, each of whose checkpoints is a sealed step."""
    with pytest.MonkeyPatch.context() as patch:
        seal_every_checkpoint(patch)
        path = sweep(small(), tmp_path_factory.mktemp("analysed") / "runs", batch_runs=2)
    analysis.analyze(path)
    return path


@pytest.fixture
def path(analysed, tmp_path):
    return shutil.copytree(analysed, tmp_path / "runs")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A sweep that was stopped half way, and whose last step is not sealed. The next command supersedes it."""
    monkeypatch.setattr(sweeping, "SAVE_SECONDS", 0)
    monkeypatch.setattr(sweeping, "SAVE_SHARE", 0)
    with pytest.raises(Interrupted):
        sweep(small(epochs=4000), tmp_path / "begun", batch_runs=2, watch=StopAt(600))
    return tmp_path / "begun"


# --- while it is trained in -------------------------------------------------------------------------------------------


def test_what_was_read_stays_together_while_training_goes_on(begun):
    results = jaxgrok.load(begun)
    record = results.runs[1]
    epoch, last = results.checkpoint_epochs(record)[-1], record.last_epoch
    expected = results.network(record, epoch)
    results = jaxgrok.load(begun)
    results._read.clear()  # as if it had not fitted into memory
    sweep(small(epochs=4000), begun, batch_runs=2)
    assert not SweepFiles(begun).steps(0).path(last).exists()
    assert results.curves_of(record).last_epoch == last < jaxgrok.load(begun).runs[1].last_epoch
    jax.tree.map(np.testing.assert_array_equal, results.network(record, epoch), expected)
    assert results.damage == []
    write_metrics(results)
    assert curves(begun)["last_epoch"].tolist() == [last, last]
    assert np.isnan(curves(begun)["train_loss"][:, last:]).all()


def test_a_step_that_is_replaced_while_it_is_read_is_not_damaged(begun, monkeypatch):
    last, read = jaxgrok.load(begun).runs[0].last_epoch, BatchSteps.record

    def replaced(steps, epoch):
        if epoch == last:
            shutil.rmtree(steps.path(epoch), ignore_errors=True)
        return read(steps, epoch)

    monkeypatch.setattr(BatchSteps, "record", replaced)
    found, damage = SweepFiles(begun).steps(0).records()
    assert last not in found
    assert damage == []


def test_a_step_that_is_replaced_before_its_curves_are_read_is_not_damaged(begun, monkeypatch):
    """Between the records and the curves of a large sweep, minutes pass."""
    read, begin = store_results.Results._saved_batches, small(epochs=4000)

    def then_train(results, manifest):
        batches = read(results, manifest)
        sweep(begin, begun, batch_runs=2)
        return batches

    with monkeypatch.context() as patch:
        patch.setattr(store_results.Results, "_saved_batches", then_train)
        monkeypatch.setattr(sweeping, "_write_metrics", lambda files: None)
        results = jaxgrok.load(begun)
    assert results.damage == []
    assert [record.last_epoch for record in results.runs] == [4000, 4000]


def test_readers_take_no_memory_for_epochs_that_are_not_trained(begun):
    content = without_digest(json.loads((begun / "manifest.json").read_text()))
    for part in (*content["runs"].values(), *content["batches"].values()):
        part["epochs"] = 10_000_000
    write_json(begun / "manifest.json", with_digest(content))
    results = jaxgrok.load(begun)
    assert results.batches[0].curves().train_loss.shape == (2, results.runs[0].last_epoch)


def test_what_sums_up_all_shards_is_read_and_written_under_one_lock(tmp_path, monkeypatch):
    """Else a shard that has read them before could write after one that has read more."""
    locked = []

    def noted(name, of):
        def call(*arguments, **options):
            other = filelock.FileLock(tmp_path / "runs" / ".lock-summary")
            try:
                other.acquire(timeout=0)
            except filelock.Timeout:
                locked.append(name)
            else:
                other.release()
            return of(*arguments, **options)

        return call

    monkeypatch.setattr(sweeping, "load", noted("load", sweeping.load))
    monkeypatch.setattr(sweeping, "write_metrics", noted("write_metrics", sweeping.write_metrics))
    for name in (
        "jaxgrok.store.results.load",
        "jaxgrok.tables.timing.write_timing_tables",
        "jaxgrok.figures.write_figures",
    ):
        module, function = name.rsplit(".", 1)
        found = __import__(module, fromlist=[function])
        monkeypatch.setattr(found, function, noted(function, getattr(found, function)))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "epochs": 10}.items()]
    assert cli_sweep.main([*flags, "--shard", "0/1", "--out", str(tmp_path / "runs")]) == 0
    assert locked == ["load", "write_metrics", "load", "write_timing_tables", "write_figures"]


def test_an_analysis_shows_what_it_measured_though_training_goes_on(begun, monkeypatch):
    """Each save replaces the step beside which the measures are."""
    analyze_batch = analysis._Batch.analyze
    last = jaxgrok.load(begun).runs[0].last_epoch

    def then_train(batch, watch):
        analyze_batch(batch, watch)
        sweep(small(epochs=4000), begun, batch_runs=2)

    monkeypatch.setattr(analysis._Batch, "analyze", then_train)
    found = analysis.analyze(begun)
    assert not SweepFiles(begun).steps(0).path(last).exists()
    assert found.results.runs[0].last_epoch == last
    epochs = found.results.checkpoint_epochs(found.results.runs[0])
    assert found.results.measures(seed=0)["epoch"].tolist() == epochs
    assert found.results.curves(seed=0).last_epoch == last
    found = analysis.analyze(begun)
    assert found.results.measures(seed=0)["epoch"][-1] == 4000


# --- measures ---------------------------------------------------------------------------------------------------------


def change_measures(path, epoch, change):
    """Write the measures of a step anew, changed by a function {name: array} -> the same."""
    files = SweepFiles(path)
    files.save_measures(0, epoch, change(files.load_measures(0, epoch)))


def with_origin(digest):
    return lambda measures: {**measures, "step": np.full(2, digest)}


def test_measures_of_another_step_are_not_believed(path):
    """The step was trained anew, in another version perhaps, since it was measured."""
    change_measures(path, 40, lambda measures: {**with_origin("0" * 32)(measures), "network": np.full(2, "0" * 32)})
    before = jaxgrok.load(path)
    assert before.measures(seed=0)["epoch"].tolist() == [0, 5, 10, 20, 30]
    assert [found["epoch"] for found in before.last_analysed(before.runs)] == [30, 30]
    assert not before.has_circuit_events
    assert analysis.analyze(path).results.measures(seed=0)["epoch"][-1] == 40


def test_measures_of_the_same_network_in_another_step_are_taken_over(path, analysed):
    digest = jaxgrok.load(path).batches[0].digest_of_step(40)
    change_measures(path, 40, with_origin("0" * 32))
    analysis.analyze(path)
    assert SweepFiles(path).load_measures(0, 40)["step"].tolist() == [digest] * 2
    before = contents(path)
    analysis.analyze(path)
    assert contents(path) == before


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "other"])
def test_measures_that_are_damaged_are_named_and_measured_again(path, analysed, how):
    file = path / "analysis" / "0000" / "20.npz"
    content = file.read_bytes()
    broken = {
        "cut": content[:-500],
        "emptied": b"",
        "flipped": bytes([*content[:300], content[300] ^ 1, *content[301:]]),
    }
    if how == "other":
        np.savez(file, run=np.zeros((2, 2)), epoch=np.zeros(3))
    else:
        file.write_bytes(broken[how])
    results = jaxgrok.load(path)
    assert 20 not in results.measures(seed=0)["epoch"]
    (damage,) = results.damage
    assert damage.line.startswith(f"{file} is damaged (")
    assert damage.line.endswith(": its networks count as not measured. analyze.py measures its networks again")
    found = analysis.analyze(path)
    (line,) = found.mended
    assert line.startswith(f"measured again: {file} is damaged (")
    assert found.skipped == found.results.damage == []
    right = jaxgrok.load(analysed).measures(seed=0)
    jax.tree.map(np.testing.assert_array_equal, found.results.measures(seed=0), right)


# --- what no sweep wrote ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_file_that_is_missing_is_named(path, name):
    (path / name).unlink()
    before = contents(path)
    for read in (lambda: jaxgrok.load(path), lambda: sweep(small(epochs=50), path, batch_runs=2)):
        with pytest.raises(BadInput, match=rf"{name} is missing"):
            read()
    assert contents(path) == before


def test_a_config_without_its_digest_is_refused(path):
    """Beside a manifest of this version, it has lost it."""
    config = without_digest(json.loads((path / "config.json").read_text()))
    write_json(path / "config.json", {**config, "eval_every": 1})
    for read in (lambda: jaxgrok.load(path), lambda: sweep(small(epochs=50), path, batch_runs=2)):
        with pytest.raises(BadInput, match=r"config\.json: it has no digest"):
            read()


def test_what_was_known_of_whole_files_is_not_believed_once_it_has_changed(path):
    # Copies have other inodes, so that a copy is read again; a sweep that finds nothing to do writes the file anew.
    sweep(small(), path, batch_runs=2)
    steps, file = SweepFiles(path).steps(0), path / "checkpoints" / "0000" / "whole.json"
    assert steps.are_whole
    content = json.loads(file.read_text())
    content["files"] = {name: known for name, known in content["files"].items() if not name.startswith("40/")}
    file.write_text(json.dumps(content))
    assert not steps.are_whole
    assert steps.last_known is None


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "40"},
        {"epoch": 40.0},
        {"start": None},
        {"members": [0, None]},
        {"members": [0, True]},
        {"rows": ["0", "1"]},
        {"last_epoch": [40, 1e400]},
        {"last_epoch": [40, 41]},
        {"ended": [0, 1]},
        {"identities": [0, 1]},
        {"saved": [[40, 7]]},
        {"saved": [40, 0]},
        {"saved": 3},
        {"session": {}},
        {"session": [1]},
        {"arrays": {}},
        {"arrays": {"state": {}, "curves": {}, "params": []}},
        {"arrays": {"state": {}, "curves": {}, "params": {"a": {"dtype": "float32", "shape": [-1], "digest": ""}}}},
        {"arrays": {"state": {}, "curves": {}, "params": {"a": {"dtype": "no", "shape": [1], "digest": ""}}}},
        {"arrays": {"state": {}, "curves": {}, "params": {"a": {"dtype": "float32", "shape": [1]}}}},
        {"other": 1},
    ],
)
def test_a_record_that_says_what_no_sweep_says_is_damaged(path, change):
    """Somebody has written it, and its digest with it."""
    file = path / "checkpoints" / "0000" / "40" / "record" / "metadata"
    content = without_digest(json.loads(file.read_text()))
    file.write_text(json.dumps(with_digest({**content, **change})))
    results = jaxgrok.load(path)
    assert results.damage[0].said.startswith(f"{file.parent.parent} is damaged (")
    assert [record.last_epoch for record in results.runs] == [30, 30]


def test_events_that_say_what_no_sweep_says_are_found_anew(path):
    sweep(small(), path, batch_runs=2)
    file = path / "checkpoints" / "0000" / "events.json"
    content = without_digest(json.loads(file.read_text()))
    (batch,) = jaxgrok.load(path).batches.values()
    right = batch.stored_events()
    assert len(right) == 2
    timing = content["runs"][0]["timing"]
    changes = [
        {"last_epoch": "40"},
        {"settled": 1},
        {"outcome": "gone"},
        {"events": {"grokked": [0]}},
        {"events": {"grokked": [0, 1e400]}},
        {"events": {"unheard": [0, 5]}},
        {"events": []},
    ]
    wrong = [[{**content["runs"][0], "timing": {**timing, **change}}, content["runs"][1]] for change in changes]
    for runs in [*wrong, content["runs"][:1], [], 7, [[], []], [{"timing": timing, "parts": {"a": 1}}] * 2]:
        write_json(file, with_digest({**content, "runs": runs}))
        assert batch.stored_events() is None
    write_json(file, with_digest(content))
    assert batch.stored_events() == right == [RunEvents.from_json(of_run) for of_run in content["runs"]]


def test_a_link_in_place_of_a_figure_or_table_is_replaced_and_not_followed(path, tmp_path):
    """A directory that somebody else has made must not make us write elsewhere."""
    elsewhere = tmp_path / "mine.txt"
    elsewhere.write_text("mine")
    results = jaxgrok.load(path)
    for folder, name in (("figures", "survival.png"), ("tables", "summary.csv"), ("tables", "summary.md")):
        (path / folder).mkdir(exist_ok=True)
        (path / folder / name).unlink(missing_ok=True)
        (path / folder / name).symlink_to(elsewhere)
    write_figures(results)
    write_timing_tables(results)
    assert elsewhere.read_text() == "mine"
    for file in (path / "figures" / "survival.png", path / "tables" / "summary.csv", path / "tables" / "summary.md"):
        assert not file.is_symlink()
        assert file.stat().st_size > 100


# --- disks that fail --------------------------------------------------------------------------------------------------


def test_a_step_comes_back_if_the_one_that_replaces_it_cannot_be_written(path, monkeypatch):
    steps = SweepFiles(path).steps(0)
    saved = SavedBatch(steps, jaxgrok.load(path).runs, 40, 5, 1)
    before = contents(path)
    record = saved.chain[-1]
    arrays = steps.load(record, *record.arrays)

    def full(self, epoch, *arguments, **options):
        steps.path(epoch).mkdir()  # half of it
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(OSError, match="No space left"):
            steps.save(sweeping.Step(record, arrays))
    assert contents(path) == before
    steps.save(sweeping.Step(record, arrays))
    assert jaxgrok.load(path).damage == []
    assert not list(steps.folder.glob("removed-*"))


def test_what_reads_back_as_something_else_is_no_success(tmp_path, monkeypatch):
    """The disk took every byte, and kept other ones."""
    save, flags = BatchSteps.save, {**SMALL, "epochs": 20}

    def kept_otherwise(steps, step):
        record = save(steps, step)
        for file in steps.path(record.epoch).rglob("d/*"):
            file.write_bytes(file.read_bytes()[:-1])
        return record

    path = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(BatchSteps, "save", kept_otherwise)
        with pytest.raises(sweeping.SaveFailed, match=r"what was written is not what is there: .*20 is damaged"):
            sweep(make_sweep(flags), path, batch_runs=2)
    assert not SweepFiles(path).steps(0).are_whole
    sweep(make_sweep(flags), path, batch_runs=2)
    assert SweepFiles(path).steps(0).are_whole
    assert jaxgrok.load(path).damage == []


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (errno.ENOSPC, 1, "could not be written: No space left on device; everything saved before is intact"),
        (errno.EDQUOT, 1, "could not be written: Disk quota exceeded; everything saved before is intact"),
        (errno.EACCES, 2, "tables directory: got '{tables}'; accepted: a directory that can be written (Permission"),
    ],
)
def test_a_disk_that_fails_in_tables_is_told_from_a_directory_that_cannot_be_written(
    path, monkeypatch, capsys, code, status, said
):
    def failing(file, write):
        raise OSError(code, os.strerror(code), str(file))

    monkeypatch.setattr("jaxgrok.tables.write.replace_file", failing)
    assert cli_analyze.main([str(path)]) == status
    error = capsys.readouterr().err
    assert said.format(tables=path / "tables") in error.splitlines()[-1]
    assert "Traceback" not in error


def test_damage_that_only_a_figure_meets_is_named_and_the_rest_is_drawn(path, monkeypatch, capsys):
    def damaged(results):
        def load(batch, step):
            raise results.batches[batch].steps.damaged(step, "cut short")

        return load

    monkeypatch.setattr(store_results.Results, "_load_params", property(damaged))
    assert cli_analyze.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith(f"skipped: {path / 'checkpoints' / '0000' / '40'} is damaged (cut short)") for line in lines
    )
    assert (path / "figures" / "losses.png").exists()
    assert not list((path / "figures").glob("circuits*"))
