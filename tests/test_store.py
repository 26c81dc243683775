"""What lies on disk: curves, records, the lock and atomic writes; damaged files are named in one line."""

import itertools
import multiprocessing
from dataclasses import replace

import filelock
import numpy as np
import pytest

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.store.atomic import replace_file, replace_text, write_json
from jaxgrok.store.curves import SweepCurves
from jaxgrok.store.results import Results, RunRecord, Status, load
from jaxgrok.store.steps import SweepFiles


def curves_of(n_runs=3, epochs=40, n_parts=0, rng=None):
    """Curves with a number in every place; run 2 has trained half of its epochs."""
    rng = np.random.default_rng(0) if rng is None else rng
    curves = SweepCurves(n_runs, epochs, 5, 2, n_parts=n_parts)
    for name in curves.names:
        values = getattr(curves, name)
        values[:] = rng.random(values.shape)
    curves.last_epoch[:] = epochs
    curves.rewind(np.array([n_runs - 1]), epochs // 2)
    return curves


# --- curves
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_parts", [0, 2])
def test_curves_come_back(tmp_path, n_parts):
    curves = curves_of(n_parts=n_parts)
    curves.save(tmp_path / "metrics.npz", {"seed": np.arange(3)})
    more = SweepCurves(5, 60, 5, 2, n_parts=n_parts)  # more runs and more epochs
    more.copy_from(tmp_path / "metrics.npz")
    for number in range(3):
        before, after = curves.of_run(number), more.of_run(number)
        for name in vars(before):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name), err_msg=name)
    assert more.last_epoch.tolist() == [40, 40, 20, 0, 0]
    assert np.isnan(more.test_loss[3:]).all()


def test_the_curves_of_one_run_are_views():
    """They were copied at each refresh of the live line."""
    curves = curves_of()
    one = curves.of_run(2)
    assert np.shares_memory(one.test_loss, curves.test_loss)
    assert np.shares_memory(one.train_loss, curves.train_loss)
    assert one.epoch_eval.tolist() == [epoch for epoch in curves.epoch_eval if epoch < 20]
    assert one.epoch_train.tolist() == list(range(0, 20, 2))


def damaged(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "end":
        path.write_bytes(content[:-10])
    elif how == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(content)))
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "end", "noise", "flipped"])
def test_a_damaged_file_of_curves_is_named_in_one_line(tmp_path, how):
    path = tmp_path / "metrics.npz"
    curves_of().save(path, {})
    damaged(path, how)
    with pytest.raises(BadInput) as refused:
        SweepCurves(3, 40, 5, 2).copy_from(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ("missing" if how == "missing" else "damaged") in str(refused.value)


def test_other_arrays_are_not_curves(tmp_path):
    path, arrays = tmp_path / "metrics.npz", {}
    curves_of().save(path, {})
    with np.load(path) as stored:
        arrays = dict(stored)
    wrong = {
        "train_loss": arrays["train_loss"][:, :-1],
        "test_loss": np.zeros(arrays["test_loss"].shape, int),
        "test_acc": arrays["test_acc"][:2],
        "last_epoch": -arrays["last_epoch"],
        "ended": arrays["ended"][:-1],
        "epoch_eval": arrays["epoch_eval"][None],
    }
    for name, array in wrong.items():
        np.savez(path, **{**arrays, name: array})
        with pytest.raises(BadInput, match="damaged"):
            SweepCurves(3, 40, 5, 2).copy_from(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "train_acc"})
    with pytest.raises(BadInput, match="train_acc"):
        SweepCurves(3, 40, 5, 2).copy_from(path)


# --- records
# ------------------------------------------------------------------------------------------------------------

RECORD = RunRecord(0, Run(Config(p=7), seed=3, frac=0.5, n_train=24), 100, 0, Status.TRAINED, 100, "abc")


def test_a_record_comes_back():
    assert RunRecord.from_manifest(0, RECORD.to_manifest()) == RECORD
    assert RECORD.coordinates["wd"] == RECORD.run.weight_decay == 1.0
    assert RECORD.task.p == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", None), ("epochs", "100"), ("last_epoch", -1), ("status", "finished"), ("task", "add2"), ("p", 0)],
)
def test_a_manifest_that_no_sweep_wrote_is_refused(tmp_path, name, value):
    path = directory(tmp_path, 1)
    manifest = SweepFiles(path).read_manifest()
    manifest["runs"]["0"][name] = value
    if value is None:
        del manifest["runs"]["0"][name]
    write_json(path / "manifest.json", manifest)
    with pytest.raises(BadInput, match=r"manifest\.json") as refused:
        load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"runs": {}}', '{"a":' * 3000, '{"sessions": [], "batches": {}, "runs": {}}']
)
def test_a_manifest_cut_short_is_refused(tmp_path, text):
    path = directory(tmp_path, 1)
    (path / "manifest.json").write_text(text)
    with pytest.raises(BadInput) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def directory(path, n_runs, n_decays=1):
    """A sweep directory of runs with one evaluation each."""
    runs = [replace(RECORD.run, seed=i // n_decays, weight_decay=float(i % n_decays)) for i in range(n_runs)]
    records = {i: RunRecord(i, run, 2, None, Status.TRAINED, 2).to_manifest() for i, run in enumerate(runs)}
    files = SweepFiles(path)
    write_json(files.config_json, {"eval_every": 1, "train_every": 1})
    session = {"versions": {}, "devices": ["cpu"]}
    write_json(files.manifest_json, {"sessions": [session], "batches": {}, "runs": records})
    curves = SweepCurves(n_runs, 2, 1, 1)
    for name in curves.names:
        getattr(curves, name)[:] = 0.5
    curves.last_epoch[:] = 2
    curves.save(files.metrics_npz, {})
    return path


def test_what_varies_is_asked_once_for_all_runs(tmp_path):
    """It was asked for every run: 5 seconds for 2,000 runs, 133 for 8,000."""
    results = load(directory(tmp_path, 200, 4))
    asked = 0

    class Counting(Results):
        @property
        def varying(self):
            nonlocal asked
            asked += 1
            return ["wd"]

    results.__class__ = Counting
    assert [(cell.name, len(cell.records)) for cell in results.cells] == [(f"wd={wd}", 50) for wd in range(4)]
    assert asked == 1


# --- atomic writes and the lock
# -----------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    replace_text(path, "old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def hold(path, ready, done):
    with SweepFiles(path).locked():
        ready.set()
        done.wait(60)


def test_one_process_writes_and_reading_needs_no_lock(tmp_path):
    path = directory(tmp_path, 1)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path, ready, done))
    other.start()
    try:
        assert ready.wait(120)
        with pytest.raises(BadInput, match="no other running sweep"), SweepFiles(path).locked():
            pass
        assert len(load(path).runs) == 1
    finally:
        done.set()
        other.join()
    with SweepFiles(path).locked():
        pass


def test_a_file_system_without_locks_is_no_dead_end(tmp_path, monkeypatch):
    def unsupported(self, *arguments, **options):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    path = directory(tmp_path, 1)
    with SweepFiles(path).locked():
        assert (path / ".lock-held").exists()
        with pytest.raises(BadInput, match=r"if none is, remove .*\.lock-held"), SweepFiles(path).locked():
            pass
    assert not (path / ".lock-held").exists()


def test_the_end_of_the_lock_waits_for_what_is_being_saved_even_after_an_error(tmp_path):
    files = SweepFiles(tmp_path / "runs")
    params = {"W": np.arange(1_000_000.0)}

    def interrupted():
        with files.locked():
            files.save_params(0, 5, np.array([0]), params)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    rows, restored = SweepFiles(tmp_path / "runs").load_params(0, 5)
    assert rows.tolist() == [0]
    np.testing.assert_array_equal(restored["W"], params["W"])


def test_steps_are_listed_in_order_of_epoch(tmp_path):
    files = SweepFiles(tmp_path)
    for epoch, name in itertools.product((900, 1000, 90), ("{}", "state-{}-rows-4")):
        (files.batch_dir(0) / name.format(epoch)).mkdir(parents=True)
    assert files.checkpoint_epochs(0) == [90, 900, 1000]
    assert [epoch for epoch, _ in files._states(0)] == [90, 900, 1000]
