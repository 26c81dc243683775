"""What is on disk is broken in every way, and nothing but the right result or a clear refusal comes of it."""

import itertools
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxgrok
from jaxgrok.atomic import write_json
from jaxgrok.cli import sweep as cli_sweep
from jaxgrok.config import BadInput
from jaxgrok.store import results as store_results
from jaxgrok.store.events import events_of
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.integrity import check_array, described, with_digest, without_digest
from jaxgrok.store.records import Status
from jaxgrok.store.results import write_metrics
from jaxgrok.store.steps import BatchSteps, Damaged
from jaxgrok.tables.parts import write_part_tables
from jaxgrok.tables.timing import write_timing_tables
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import SaveFailed, Silent, sweep
from tests.on_disk import contents, curves, same_files, seal_every_checkpoint

SMALL = {"arch": "mlp", "p": 5, "d_mlp": 8, "frac": 0.5, "lr": 1e-2, "eval_every": 5, "checkpoint_every": 10}


def small(**settings):
    return make_sweep({**SMALL, "seeds": 2, "epochs": 40, **settings})


class Heard(Silent):
    """Collects what a sweep warns of."""

    def __init__(self):
        self.lines = []

    def warned(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep of one batch, each of whose checkpoints is a sealed step."""
    with pytest.MonkeyPatch.context() as patch:
        seal_every_checkpoint(patch)
        return sweep(small(), tmp_path_factory.mktemp("whole") / "runs", batch_runs=2)


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "runs")


@pytest.fixture
def read(monkeypatch):
    """What is read of steps: (epoch, item), item by item."""
    read, load = [], BatchSteps.load

    def loading(steps, record, *items):
        read.extend((record.epoch, item) for item in items)
        return load(steps, record, *items)

    monkeypatch.setattr(BatchSteps, "load", loading)
    return read


def step_of(path, epoch):
    return path / "checkpoints" / "0000" / str(epoch)


# --- few files, whole steps -------------------------------------------------------------------------------------------


def test_checkpoints_of_small_networks_share_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "SAVE_SECONDS", 1e6)  # a slow machine would save once more
    path = sweep(small(checkpoint_every=1, epochs=200), tmp_path / "runs", batch_runs=2)
    results = jaxgrok.load(path)
    assert len(results.checkpoint_epochs(results.runs[0])) > 40
    assert sum(file.is_file() for file in path.rglob("*")) < 25


def test_every_checkpoint_of_a_large_network_is_a_sealed_step(whole):
    assert SweepFiles(whole).steps(0).epochs() == [0, 5, 10, 20, 30, 40]
    results = jaxgrok.load(whole)
    assert all(step.sealed for step in results.batches[0].chain)
    assert results.checkpoint_epochs(results.runs[0]) == [0, 5, 10, 20, 30, 40]


def test_sealed_and_unsealed_steps_hold_the_same(whole, tmp_path, monkeypatch):
    same_files(whole, sweep(small(), tmp_path / "one", batch_runs=2))
    monkeypatch.setattr(sweeping, "SAVE_SECONDS", 0)
    monkeypatch.setattr(sweeping, "SAVE_SHARE", 0)
    path = sweep(small(), tmp_path / "often", batch_runs=2)
    same_files(whole, path)
    assert len(SweepFiles(path).steps(0).epochs()) <= 2  # what was superseded is gone


def test_a_sealed_step_is_not_written_again_by_those_who_resume_from_it(tmp_path, monkeypatch, whole):
    """It was replaced by a step that is not sealed, and then removed as superseded."""
    path = sweep(small(epochs=20), tmp_path / "runs", batch_runs=2)
    often(monkeypatch)
    before = (step_of(path, 20) / "record" / "metadata").read_bytes()
    sweep(small(), path, batch_runs=2)
    assert (step_of(path, 20) / "record" / "metadata").read_bytes() == before
    assert jaxgrok.load(path).damage == []
    for name in ("train_loss", "last_epoch"):
        np.testing.assert_array_equal(curves(path)[name], curves(whole)[name])


# --- damage -----------------------------------------------------------------------------------------------------------


def harm(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        place = len(content) // 2 if how == "flipped" else len(content) - 1
        content[place] ^= 1 << 3
        file.write_bytes(content)


def is_right_or_named(path: Path, truth: Path) -> bool:
    """Whether every number that can be read is the right one. Returns whether anything was found to be damaged."""
    results, right = jaxgrok.load(path), jaxgrok.load(truth)
    named = bool(results.damage)
    for record in results.runs:
        last = record.last_epoch
        for name in ("train_loss", "test_loss", "test_acc"):
            mine, theirs = (getattr(of.curves_of(of.runs[record.number]), name) for of in (results, right))
            np.testing.assert_array_equal(mine, theirs[: len(mine)])
        assert last == 40 or named
        for epoch in results.checkpoint_epochs(record):
            try:
                mine = results.network(record, epoch)
            except Damaged:
                named = True
            else:
                jax.tree.map(np.testing.assert_array_equal, mine, right.network(right.runs[record.number], epoch))
    return named


HARMS = ("flipped", "end", "cut", "deleted", "emptied")
FAST = [(10, "flipped"), (10, "deleted")]
CASES = [*itertools.product((0, 10, 40), HARMS)]


@pytest.mark.parametrize(
    ("epoch", "how"), [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_damage_in_any_file_of_a_step_is_named_and_trained_again(whole, tmp_path, epoch, how):
    """Every file of a step in turn: what is read is right, and the same command makes all of it right again."""
    files = sorted(file.relative_to(whole) for file in step_of(whole, epoch).rglob("*") if file.is_file())
    assert len(files) > 8
    for number, file in enumerate(files):
        path = shutil.copytree(whole, tmp_path / str(number))
        harm(path / file, how)
        named = is_right_or_named(path, whole)
        if file.parts[-2:] == ("record", "metadata"):
            assert named
    # One of them, mended.
    heard = Heard()
    harmed = tmp_path / "harmed"
    shutil.copytree(whole, harmed)
    harm(harmed / next(file for file in files if file.parts[-2:] == ("record", "metadata")), how)
    sweep(small(), harmed, batch_runs=2, watch=heard)
    assert any(f"0000/{epoch} is damaged" in line for line in heard.lines)
    same_files(whole, harmed)


def test_a_flipped_bit_of_any_array_is_found(copied, whole):
    """Orbax would return the wrong value without a word."""
    biggest = max((f for f in step_of(copied, 20).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(biggest.read_bytes())
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.integers(0, len(content), 12):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        biggest.write_bytes(flipped)
        found += is_right_or_named(copied, whole)
    assert found > 4


def test_a_step_that_is_missing_is_named(copied, whole):
    shutil.rmtree(step_of(copied, 10))
    results = jaxgrok.load(copied)
    assert [record.last_epoch for record in results.runs] == [5, 5]
    assert "10 is damaged (it is missing, and the step 20 follows it)" in results.damage[0].said
    sweep(small(), copied, batch_runs=2)
    same_files(whole, copied)


def test_a_last_step_that_is_missing_is_named(copied, whole):
    """No other step follows it, so that only `whole.json` knows of it."""
    shutil.rmtree(step_of(copied, 40))
    results = jaxgrok.load(copied)
    assert [record.last_epoch for record in results.runs] == [30, 30]
    assert "40 is damaged (it is missing)" in results.damage[0].said
    sweep(small(), copied, batch_runs=2)
    same_files(whole, copied)
    assert jaxgrok.load(copied).damage == []


def test_a_finished_batch_is_read_again_only_if_a_file_has_changed(copied, whole, read):
    networks = {(epoch, "params") for epoch in (0, 5, 10, 20, 30, 40)}
    sweep(small(), copied, batch_runs=2)  # the copy is new
    assert networks <= set(read)
    read.clear()
    sweep(small(), copied, batch_runs=2)
    assert not networks & set(read)
    # A bit that flips without a trace is found by whoever reads it. From then on the same command reads everything.
    biggest = max((f for f in step_of(copied, 20).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    before = biggest.stat()
    content = bytearray(biggest.read_bytes())
    for place in range(len(content) // 4, len(content), len(content) // 20):
        content[place] ^= 16
    biggest.write_bytes(content)
    os.utime(biggest, ns=(before.st_atime_ns, before.st_mtime_ns))
    results = jaxgrok.load(copied)
    if not results.damage:
        with pytest.raises(Damaged):
            results.network(results.runs[0], 20)
    sweep(small(), copied, batch_runs=2)
    same_files(whole, copied)
    assert (copied / "checkpoints" / "0000" / "whole.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"../../x": [1, 2]}', '{"40": 3}', "null", "[" * 100_000])
def test_a_damaged_note_that_all_is_whole_has_everything_read_again(copied, whole, content):
    (copied / "checkpoints" / "0000" / "whole.json").write_text(content)
    assert jaxgrok.load(copied).damage == []
    sweep(small(), copied, batch_runs=2)
    same_files(whole, copied)


def test_tables_of_a_finished_sweep_read_no_curves(tmp_path, read):
    """So the tables of a large sweep take time for what has changed alone."""
    fields = {"task": "addition1", "d_model": 4, "n_heads": 1, "batch_size": 4, "n_test": 8, "epochs": 60}
    path = sweep(make_sweep({**fields, "seeds": 3, "eval_every": 5}), tmp_path / "runs", batch_runs=1)
    read.clear()
    results = jaxgrok.load(path)
    write_timing_tables(results)
    write_part_tables(results)
    assert sweep(make_sweep({**fields, "seeds": 3, "eval_every": 5}), path, batch_runs=1) == path
    assert read == []
    for record in results.runs:
        found = events_of(record.task, results.curves_of(record), unlimited=True)
        assert results.events(record) == found
        assert len(found.parts) == 2
    # One more epoch in one of the batches, and that one alone is read.
    longer = make_sweep({**fields, "seeds": 1, "epochs": 70, "eval_every": 5})
    sweep(longer, path, batch_runs=1)
    read.clear()
    results = jaxgrok.load(path)
    assert [results.timing(record).last_epoch for record in results.runs] == [70, 60, 60]
    assert read == []


@pytest.mark.parametrize("change", ["garbage", "another step", "other definitions", "a digit", "no runs"])
def test_events_that_are_not_of_these_curves_are_not_believed(copied, change):
    file = copied / "checkpoints" / "0000" / "events.json"
    content = without_digest(json.loads(file.read_text()))
    assert content["runs"][0]["timing"]["last_epoch"] == 40
    if change == "garbage":
        file.write_text("[" * 100_000)
    elif change == "a digit":
        file.write_text(file.read_text().replace('"last_epoch": 40', '"last_epoch": 41'))
    else:
        changes = {"another step": {"step": "0"}, "other definitions": {"definitions": "0"}, "no runs": {"runs": 7}}
        content["runs"][0]["timing"]["last_epoch"] = 41
        write_json(file, with_digest({**content, **changes[change]}))
    results = jaxgrok.load(copied)
    assert [results.timing(record).last_epoch for record in results.runs] == [40, 40]
    sweep(small(), copied, batch_runs=2)  # leaves what it found anew
    assert without_digest(json.loads(file.read_text()))["runs"][0]["timing"]["last_epoch"] == 40


def test_the_curves_of_many_batches_are_not_in_memory_at_once(tmp_path, monkeypatch):
    path = sweep(small(seeds=4), tmp_path / "runs", batch_runs=1)
    everything = curves(path)
    monkeypatch.setattr(store_results, "KEPT_BYTES", 0)
    results = jaxgrok.load(path)
    (path / "metrics.npz").unlink()
    write_metrics(results)
    assert len(results._read) == 1
    for name, array in curves(path).items():
        np.testing.assert_array_equal(array, everything[name], err_msg=name)


def test_metrics_of_the_same_steps_are_left_alone_unless_they_are_damaged(copied, whole):
    sweep(small(), copied, batch_runs=2)
    file = copied / "metrics.npz"
    before, content = file.stat(), file.read_bytes()
    sweep(small(), copied, batch_runs=2)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for place in range(0, len(content), len(content) // 8):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        write_metrics(jaxgrok.load(copied))
        same_files(whole, copied)
    sweep(small(epochs=50), copied, batch_runs=2)
    assert curves(copied)["last_epoch"].tolist() == [50, 50]


def test_damage_that_left_no_trace_is_named_by_whoever_reads_it_and_mended_by_the_next_command(
    tmp_path, monkeypatch, capsys
):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "seeds": 2, "epochs": 40}.items()]
    command = [*flags, "--out", str(tmp_path / "runs")]
    assert cli_sweep.main(command) == 0
    load = BatchSteps.load

    def failing(steps, record, *items):
        if "curves" in items:
            steps.mark_doubtful()
            raise steps.damaged(record.epoch, "the values of curves/test_loss have changed")
        return load(steps, record, *items)

    with monkeypatch.context() as patch:
        patch.setattr(BatchSteps, "load", failing)
        assert cli_sweep.main(command) == 2
        error = capsys.readouterr().err
        assert "40 is damaged (the values of curves/test_loss have changed)" in error.splitlines()[-1]
        assert "Traceback" not in error
    assert cli_sweep.main(command) == 0
    assert [record.last_epoch for record in jaxgrok.load(tmp_path / "runs").runs] == [40, 40]


def test_a_step_of_another_sweep_is_not_taken_for_ours(copied, tmp_path, monkeypatch):
    seal_every_checkpoint(monkeypatch)
    other = sweep(small(seeds="5:7"), tmp_path / "other", batch_runs=2)
    shutil.rmtree(step_of(copied, 40))
    shutil.copytree(step_of(other, 40), step_of(copied, 40))
    results = jaxgrok.load(copied)
    assert results.runs[0].last_epoch == 30
    assert "is another one than the manifest says" in results.damage[0].why


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_changed_digit_in_a_record_is_refused_and_nothing_is_changed(copied, name):
    text = (copied / name).read_text()
    digits = [i for i, character in enumerate(text) if character.isdigit()]
    for place in random.Random(0).sample(digits, 40):
        (copied / name).write_text(text[:place] + str(9 - int(text[place])) + text[place + 1 :])
        before = contents(copied)
        for read in (lambda: jaxgrok.load(copied), lambda: sweep(small(epochs=50), copied, batch_runs=2)):
            with pytest.raises(BadInput, match=name) as refused:
                read()
            assert "\n" not in str(refused.value)
        assert contents(copied) == before


def test_a_manifest_of_other_runs_is_found_by_the_steps(copied):
    """Somebody has changed the manifest, and its digest with it."""
    content = without_digest(json.loads((copied / "manifest.json").read_text()))
    content["runs"]["1"]["seed"] = 5
    write_json(copied / "manifest.json", with_digest(content))
    results = jaxgrok.load(copied)
    assert [record.status for record in results.runs] == [Status.WAITING] * 2
    assert "its run 1 is another one than the manifest says" in results.damage[0].why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": {"0": {"runs": [0, 7], "epochs": 40}}}, "names the run 7, which does not exist"),
        ({"batches": {"0": {"runs": [0, -1], "epochs": 40}}}, "names the run -1, which does not exist"),
        ({"batches": {"0": {"runs": [0, 0], "epochs": 40}}}, "a run is in two batches"),
        ({"batches": [0]}, "a manifest that sweep.py wrote"),
        ({"version": 3}, "A newer jaxgrok made it"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copied, change, said):
    content = without_digest(json.loads((copied / "manifest.json").read_text()))
    write_json(copied / "manifest.json", with_digest({**content, **change}))
    for read in (lambda: jaxgrok.load(copied), lambda: sweep(small(epochs=50), copied, batch_runs=2)):
        with pytest.raises(BadInput, match=said):
            read()


def test_metrics_are_made_from_the_steps(copied, whole):
    """They are for others to read: nothing reads them here, and they are written anew at the end of a command."""
    (copied / "metrics.npz").write_bytes(b"mine")
    sweep(small(), copied, batch_runs=2)
    assert curves(copied)["last_epoch"].tolist() == [40, 40]
    for name, array in curves(whole).items():
        np.testing.assert_array_equal(curves(copied)[name], array)


def test_digests_tell_values_shapes_and_dtypes_apart():
    array = np.arange(6.0)
    (description,) = described({"a": array}).values()
    check_array("a", array.copy(), description)
    flipped = array.copy()
    flipped.view(np.uint8)[11] ^= 4
    for other in (flipped, array[:5], array.astype("float32"), array.reshape(2, 3)):
        with pytest.raises(ValueError, match="a"):
            check_array("a", other, description)


# --- disks that fail --------------------------------------------------------------------------------------------------


def often(monkeypatch):
    monkeypatch.setattr(sweeping, "SAVE_SECONDS", 0)
    monkeypatch.setattr(sweeping, "SAVE_SHARE", 0)


class Then(Silent):
    """Does something once, after so many run-epochs."""

    def __init__(self, run_epochs, what):
        self.left, self.what = run_epochs, what

    def advanced(self, curves, plan, run_epochs):
        self.left -= run_epochs
        if self.left <= 0 and self.what is not None:
            what, self.what = self.what, None
            what()


def test_a_folder_made_anew_with_the_inode_of_the_old_one_is_noticed(tmp_path, monkeypatch):
    """A file system may give a folder that orbax makes anew the number of the one that has gone."""
    often(monkeypatch)
    monkeypatch.setattr(sweeping, "_identity", lambda folder: (1, 1))
    path = tmp_path / "runs"
    with pytest.raises(SaveFailed, match="removed or renamed during training"):
        sweep(small(epochs=4000), path, batch_runs=2, watch=Then(20, lambda: shutil.rmtree(path, ignore_errors=True)))


def test_a_directory_that_is_being_removed_is_said_to_be(tmp_path, monkeypatch):
    """`rm -r` takes the steps before the manifest, so a save may fail while all that tells the directory is there."""
    often(monkeypatch)
    monkeypatch.setattr(sweeping._Saver, "_is_home", lambda saver: True)
    path = tmp_path / "runs"

    def gone(steps, step):
        raise FileNotFoundError(2, "No such file or directory", str(path / "checkpoints"))

    monkeypatch.setattr(BatchSteps, "save", gone)
    with pytest.raises(SaveFailed, match="removed or renamed during training"):
        sweep(small(), path, batch_runs=2)


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_directory_that_vanishes_is_noticed_and_not_made_anew(tmp_path, monkeypatch, how):
    often(monkeypatch)
    path = tmp_path / "runs"

    def vanish():
        path.rename(tmp_path / "elsewhere")
        if how == "removed":
            shutil.rmtree(tmp_path / "elsewhere")
        if how == "replaced":
            (path / "checkpoints").mkdir(parents=True)

    with pytest.raises(SaveFailed, match="removed or renamed during training"):
        sweep(small(epochs=4000), path, batch_runs=2, watch=Then(20, vanish))
    assert not [file for file in path.rglob("*") if file.is_file()]
    assert how == "replaced" or not path.exists()


def test_a_directory_that_vanishes_between_two_batches_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "runs"
    open_batch = sweeping._Training._open

    def vanish(self, saved):
        if self.number == 1:
            path.rename(tmp_path / "elsewhere")
        return open_batch(self, saved)

    monkeypatch.setattr(sweeping._Training, "_open", vanish)
    with pytest.raises(SaveFailed, match="removed or renamed during training"):
        sweep(small(), path, batch_runs=1)
    assert not path.exists()


def test_a_step_that_cannot_be_read_is_kept_beside_what_replaces_it(copied, whole, monkeypatch):
    """A network disk that fails for a moment must not cost what it holds."""
    read, failed = sweeping.SavedBatch.verify, []

    def failing(self):
        if not failed:
            failed.append(True)
            self._distrust(20, self.steps.damaged(20, OSError(5, "Input/output error")))
            self._link()
        read(self)

    before = {file.read_bytes() for file in step_of(copied, 20).rglob("*") if file.is_file()}
    monkeypatch.setattr(sweeping.SavedBatch, "verify", failing)
    sweep(small(), copied, batch_runs=2)
    (kept,) = (copied / "checkpoints" / "0000").glob("damaged-20-*")
    assert {file.read_bytes() for file in kept.rglob("*") if file.is_file()} == before
    assert len(list((copied / "checkpoints" / "0000").glob("damaged-*"))) == 3  # the steps 30 and 40 followed it
    same_files(whole, copied)


def test_a_damaged_step_that_was_superseded_is_put_aside(tmp_path, monkeypatch):
    often(monkeypatch)
    path = sweep(small(epochs=4000), tmp_path / "runs", batch_runs=2)
    before, last = SweepFiles(path).steps(0).epochs()
    harm(step_of(path, before) / "record" / "metadata", "cut")
    assert jaxgrok.load(path).damage
    sweep(small(epochs=4000), path, batch_runs=2)
    assert SweepFiles(path).steps(0).epochs() == [last]
    assert not jaxgrok.load(path).damage


def test_a_save_that_fails_says_why_and_the_same_command_goes_on(tmp_path, monkeypatch, whole):
    path, save = tmp_path / "runs", ocp.CheckpointManager.save
    seal_every_checkpoint(monkeypatch)
    calls = []

    def full(self, epoch, *arguments, **options):
        calls.append(epoch)
        if len(calls) == 3:
            raise ValueError("UNKNOWN: Error writing: No space left on device")  # as orbax reports it
        return save(self, epoch, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(SaveFailed) as failed:
        sweep(small(), path, batch_runs=2)
    assert failed.value.strerror == "No space left on device"
    assert jaxgrok.load(path).runs[0].last_epoch > 0
    sweep(small(), path, batch_runs=2)
    same_files(whole, path)


def test_what_cannot_be_deleted_is_left(tmp_path, monkeypatch):
    often(monkeypatch)
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
    path = sweep(small(epochs=4000), tmp_path / "runs", batch_runs=2)
    assert list(path.rglob("removed-*"))
    monkeypatch.undo()
    results = jaxgrok.load(path)
    assert [record.last_epoch for record in results.runs] == [4000, 4000]
    assert results.damage == []
    sweep(small(epochs=4010), path, batch_runs=2)
    assert not list(path.rglob("removed-*"))


def test_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxgrok.training.plan.free_bytes", lambda path: 1000)
    with pytest.raises(BadInput, match=r"out: .*a disk with room: .* MB more, of 0\.0 MB free") as refused:
        sweep(small(), tmp_path / "runs")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


# --- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives a file system of so many kilobytes, and makes it larger when called again."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def sized(kilobytes):
        how = [f"remount,size={kilobytes}k"] if mounted else [f"size={kilobytes}k"]
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", *how, "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip("only root can mount a small file system")
        mounted.append(place)
        return place

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [*range(40, 240, 20), *range(240, 840, 60)])
def test_a_full_disk_is_one_line_and_loses_nothing(small_disk, tmp_path, monkeypatch, kilobytes):
    often(monkeypatch)
    monkeypatch.setattr(sweeping, "SEAL_BYTES", 20_000)
    monkeypatch.setattr("jaxgrok.training.layout.check_disk", lambda plan: None)
    settings = {"epochs": 1500, "checkpoint_every": 5}
    path, failed = small_disk(kilobytes) / "runs", None
    try:
        sweep(small(**settings), path, batch_runs=2)
    except (OSError, BadInput) as error:
        failed = str(error)
    assert failed is None or "No space left on device" in failed
    if SweepFiles(path).exists():
        assert jaxgrok.load(path).damage == []
    small_disk(64_000)
    sweep(small(**settings), path, batch_runs=2)
    same_files(sweep(small(**settings), tmp_path / "whole", batch_runs=2), path)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: CUDA_ERROR_OUT_OF_MEMORY"])
def test_a_batch_that_does_not_fit_trains_in_groups(tmp_path, monkeypatch, whole, said):
    advance = sweeping.LiveBatch.advance
    heard = Heard()

    def short_of_memory(self, most_steps):
        if self.n_groups == 1 and self.epoch >= 20:
            raise jax.errors.JaxRuntimeError(f"{said} while trying to allocate 1 bytes.")
        return advance(self, most_steps)

    monkeypatch.setattr(sweeping.LiveBatch, "advance", short_of_memory)
    path = sweep(small(), tmp_path / "runs", batch_runs=2, watch=heard)
    assert heard.lines == ["batch 0 did not fit into the device's memory: 1 of its runs at a time"]
    for name in ("train_loss", "test_loss"):  # float32, in batches of another size
        np.testing.assert_allclose(curves(path)[name], curves(whole)[name], rtol=1e-4)


# --- directories of version 0.1.0 -------------------------------------------------------------------------------------


@pytest.fixture
def old(copied):
    """A directory as version 0.1.0 wrote it."""
    results = jaxgrok.load(copied)
    records = {
        record.number: {
            **record.run.coordinates(),
            **{"split_hash": record.split_hash, "epochs": 40, "batch": 0, "status": "trained", "last_epoch": 40},
        }
        for record in results.runs
    }
    networks = {
        epoch: jax.tree.map(lambda *leaves: np.stack(leaves), *(results.network(run, epoch) for run in results.runs))
        for epoch in results.checkpoint_epochs(results.runs[0])
    }
    config = without_digest(json.loads((copied / "config.json").read_text()))
    write_json(copied / "config.json", config)
    manifest = {"sessions": results.sessions, "batches": {"0": {"runs": [0, 1], "epochs": 40}}, "runs": records}
    write_json(copied / "manifest.json", manifest)
    shutil.rmtree(copied / "checkpoints")
    with ocp.StandardCheckpointer() as saver:
        for epoch, params in networks.items():
            saver.save(step_of(copied, epoch).absolute(), {"run": np.arange(2), "params": params})
            saver.wait_until_finished()
    return copied


def test_an_old_directory_opens_for_reading(old, whole):
    mine, theirs = jaxgrok.load(old), jaxgrok.load(whole)
    assert mine.runs == theirs.runs
    assert mine.sessions == theirs.sessions
    for record in mine.runs:
        np.testing.assert_array_equal(mine.curves_of(record).train_loss, theirs.curves_of(record).train_loss)
        assert mine.timing(record) == theirs.timing(record)
        for epoch in theirs.checkpoint_epochs(record):
            jax.tree.map(np.testing.assert_array_equal, mine.network(record, epoch), theirs.network(record, epoch))


def test_an_old_directory_is_not_extended(old):
    before = contents(old)
    with pytest.raises(BadInput, match=r"out: .*made by version 0\.1\.0"):
        sweep(small(epochs=50), old, batch_runs=2)
    assert contents(old) == before


def test_damage_in_an_old_directory_is_named(old):
    for file in step_of(old, 40).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    results = jaxgrok.load(old)
    with pytest.raises(Damaged, match=f"{step_of(old, 40)}.*damaged"):
        results.network(results.runs[0], 40)
