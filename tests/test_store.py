"""What lies on disk: curves, records, the lock and atomic writes; damaged files are named in one line."""

import contextlib
import functools
import io
import itertools
import multiprocessing
import zipfile
from dataclasses import replace

import filelock
import numpy as np
import pytest

from jaxgrok.atomic import replace_file, replace_text, write_json
from jaxgrok.config import UNDIGESTED, BadInput, Config, Run
from jaxgrok.store.curves import CURVES, LATER, SweepCurves, write_npz
from jaxgrok.store.files import VERSION, SweepFiles
from jaxgrok.store.integrity import with_digest
from jaxgrok.store.records import RunRecord, Status
from jaxgrok.store.results import Results, load, write_metrics
from tests.on_disk import plant


def curves_of(n_runs=3, epochs=40, n_parts=0, rng=None):
    """Curves with a number in every place; run 2 has trained half of its epochs."""
    rng = np.random.default_rng(0) if rng is None else rng
    curves = SweepCurves(n_runs, epochs, 5, 2, n_parts=n_parts)
    for name in curves.names:
        values = getattr(curves, name)
        values[:] = rng.random(values.shape)
    curves.last_epoch[:] = epochs
    curves.last_epoch[-1] = epochs // 2
    return curves


def write_metrics_of(curves, path, **beside):
    """A file like metrics.npz with these curves."""
    of_runs = [functools.partial(curves.of_run, row) for row in range(len(curves.last_epoch))]
    write_npz(path, curves, of_runs, {"last_epoch": curves.last_epoch, "ended": curves.ended, **beside})


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_parts", [0, 2])
def test_curves_come_back(tmp_path, n_parts):
    curves = curves_of(n_parts=n_parts)
    write_metrics_of(curves, tmp_path / "metrics.npz", seed=np.arange(3))
    more = SweepCurves(5, 60, 5, 2, n_parts=n_parts)  # more runs and more epochs
    more.copy_from(tmp_path / "metrics.npz")
    for number in range(3):
        before, after = curves.of_run(number), more.of_run(number)
        for name in set(vars(before)) - set(LATER):  # of which such a file knows nothing
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name), err_msg=name)
    assert more.last_epoch.tolist() == [40, 40, 20, 0, 0]
    assert np.isnan(more.test_loss[3:]).all()


@pytest.mark.parametrize("n_parts", [0, 2])
def test_what_was_recorded_between_epochs_is_put_back_piece_by_piece(n_parts):
    whole, pieces = curves_of(n_parts=n_parts), SweepCurves(3, 40, 5, 2, n_parts=n_parts)
    for start, stop in itertools.pairwise([0, 1, 7, 10, 30, 40]):
        pieces.put(start, stop, whole.between(start, stop))
    for name in whole.names:
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name), err_msg=name)


def test_pieces_of_other_runs_or_epochs_are_not_put_back():
    piece = curves_of().between(10, 20)
    for curves, start in (
        (SweepCurves(2, 40, 5, 2), 10),
        (SweepCurves(3, 40, 5, 2), 0),
        (SweepCurves(3, 40, 5, 1), 10),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            curves.put(start, start + 10 if start else 40, piece)
    with pytest.raises(ValueError, match="train_acc"):
        SweepCurves(3, 40, 5, 2).put(10, 20, {name: x for name, x in piece.items() if name != "train_acc"})


def test_curves_of_an_earlier_version_lack_the_zero_share():
    earlier = {name: x for name, x in curves_of().between(0, 40).items() if name != "train_zero"}
    curves = SweepCurves(3, 40, 5, 2)
    curves.put(0, 40, earlier)
    assert np.isnan(curves.train_zero).all()
    np.testing.assert_array_equal(curves.train_acc, curves_of().train_acc)


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
    write_metrics_of(curves_of(), path)
    damaged(path, how)
    with pytest.raises(BadInput) as refused:
        SweepCurves(3, 40, 5, 2).copy_from(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ("missing" if how == "missing" else "damaged") in str(refused.value)


def test_other_arrays_are_not_curves(tmp_path):
    path, arrays = tmp_path / "metrics.npz", {}
    write_metrics_of(curves_of(), path)
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


def test_a_header_that_declares_more_than_there_is_is_refused_before_it_is_allocated(tmp_path):
    path = tmp_path / "metrics.npz"
    write_metrics_of(curves_of(), path)
    with zipfile.ZipFile(path) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (1 << 40, 1000), "fortran_order": False, "descr": "<f4"})
    members["train_loss.npy"] = header.getvalue() + b"\0" * 64
    with zipfile.ZipFile(path, "w") as forged:
        for name, content in members.items():
            forged.writestr(name, content)
    with pytest.raises(BadInput, match=r"train_loss\.npy is larger than the file"):
        SweepCurves(3, 40, 5, 2).copy_from(path)


def test_a_flipped_bit_is_found_or_changes_no_curve(tmp_path):
    """A flipped bit can make a member of the file look encrypted, for which zipfile raises RuntimeError."""
    path, curves = tmp_path / "metrics.npz", curves_of(n_runs=1, epochs=10)
    curves.last_epoch[:] = 10
    write_metrics_of(curves, path)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found = SweepCurves(1, 10, 5, 2)
        with contextlib.suppress(BadInput):
            found.copy_from(path)
            for name in CURVES:
                np.testing.assert_array_equal(getattr(found, name), getattr(curves, name))


# --- records
# ------------------------------------------------------------------------------------------------------------

RECORD = RunRecord(0, Run(Config(p=7), seed=3, frac=0.5, n_train=24), 100, 0, Status.WAITING, 0)


def test_a_record_comes_back():
    assert RunRecord.from_manifest(0, RECORD.to_manifest()) == RECORD
    assert RECORD.coordinates["wd"] == RECORD.run.weight_decay == 1.0
    assert RECORD.task.p == 7


def test_a_record_of_version_0_1_0_has_its_status():
    theirs = {**RECORD.to_manifest(), "status": "trained", "last_epoch": 100, "split_hash": "abc"}
    assert RunRecord.from_manifest(0, theirs) == replace(
        RECORD, status=Status.TRAINED, last_epoch=100, split_hash="abc"
    )


def test_the_status_follows_from_the_epoch_and_whether_the_run_has_ended():
    found = [RECORD.as_of(epoch, ended, "abc") for epoch, ended in ((0, False), (60, False), (100, False), (60, True))]
    assert [record.status for record in found] == [Status.WAITING, Status.TRAINING, Status.TRAINED, Status.ENDED]
    assert [record.last_epoch for record in found] == [0, 60, 100, 60]
    assert {record.split_hash for record in found} == {"abc"}


def test_the_identity_of_a_run_is_of_its_coordinates_alone():
    assert replace(RECORD, number=4, epochs=200, batch=1, last_epoch=7).identity == RECORD.identity
    assert replace(RECORD, run=replace(RECORD.run, seed=4)).identity != RECORD.identity


def test_a_new_field_of_config_changes_no_identity_at_its_default():
    """The digests are in every step that is on somebody's disk: those of version 0.2, before the last fields came."""
    assert RECORD.identity == "d7d610b2a9cb67c7edc4837fb0b317fe"
    mainline = replace(RECORD, run=Run(Config(), frac=0.3))
    assert mainline.identity == "cbb292ba3dfcb82afb4bd5d332b6df0b"
    for field in UNDIGESTED:
        others = {"sequence": "xy", "attention": "full", "attn_coeff": 0.5, "tied": "yes", "grokfast": 2.0}
        others |= {"grokfast_alpha": 0.9, "orthograd": "yes", "max_norm": 10.0, "label_smoothing": 0.1}
        others |= {"grokfast_window": 5, "norm": "rmsnorm"}
        needed = {"grokfast": 2.0} if field in ("grokfast_alpha", "grokfast_window") else {}
        before, after = (Run(Config(**needed, **given), frac=0.3) for given in ({}, {field: others[field]}))
        assert replace(mainline, run=before).identity != replace(mainline, run=after).identity


def write_manifest(path, manifest, version):
    """Write a manifest in this layout, with its digest, or as version 0.1.0 did."""
    if version is None:
        manifest = {name: value for name, value in manifest.items() if name != "version"}
    write_json(path / "manifest.json", manifest if version is None else with_digest(manifest))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", None),
        ("epochs", "100"),
        ("epochs", 10_000_001),
        ("epochs", True),
        ("last_epoch", -1),
        ("last_epoch", 10_000_001),
        ("status", "finished"),
        ("split_hash", 7),
        ("batch", "0"),
        ("batch", -1),
        ("batch", False),
        ("batch", [0]),
        ("task", "add2"),
        ("p", 0),
    ],
)
@pytest.mark.parametrize("version", [None, VERSION])
def test_a_manifest_that_no_sweep_wrote_is_refused(tmp_path, name, value, version):
    path = directory(tmp_path / "runs", 1)
    manifest = SweepFiles(path).read_manifest()
    manifest["runs"]["0"][name] = value
    if value is None:
        del manifest["runs"]["0"][name]
    write_manifest(path, manifest, version)
    with pytest.raises(BadInput, match=r"manifest\.json") as refused:
        load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "batch",
    [
        {"runs": [0], "epochs": 10_000_001},
        {"runs": [0], "epochs": "2"},
        {"runs": [0], "epochs": -1},
        {"runs": [False], "epochs": 2},
        {"runs": [0.0], "epochs": 2},
        {"runs": [], "epochs": 2},
        {"runs": 0, "epochs": 2},
        {"runs": [0]},
        [0],
    ],
)
def test_batches_that_no_sweep_wrote_are_refused(tmp_path, batch):
    path = directory(tmp_path / "runs", 1)
    write_manifest(path, {**SweepFiles(path).read_manifest(), "batches": {"0": batch}}, VERSION)
    with pytest.raises(BadInput, match=r"manifest\.json") as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_a_run_whose_batch_is_not_in_the_manifest_is_refused(tmp_path):
    path = directory(tmp_path / "runs", 2)
    manifest = SweepFiles(path).read_manifest()
    write_manifest(path, {**manifest, "batches": {}}, VERSION)
    with pytest.raises(BadInput, match=r"manifest\.json"):
        load(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"runs": {}}', '{"a":' * 3000, '{"sessions": [], "batches": {}, "runs": {}}']
)
def test_a_manifest_cut_short_is_refused(tmp_path, text):
    path = directory(tmp_path / "runs", 1)
    (path / "manifest.json").write_text(text)
    with pytest.raises(BadInput) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def directory(path, n_runs, n_decays=1):
    """A sweep directory of runs with two evaluations each."""
    runs = [replace(RECORD.run, seed=i // n_decays, weight_decay=float(i % n_decays)) for i in range(n_runs)]
    records = [RunRecord(i, run, 2, None, Status.WAITING, 0) for i, run in enumerate(runs)]
    curves = SweepCurves(n_runs, 2, 1, 1)
    for name in curves.names:
        getattr(curves, name)[:] = 0.5
    curves.last_epoch[:] = 2
    plant(path, {"eval_every": 1, "train_every": 1}, records, curves)
    return path


def test_metrics_hold_the_curves_of_all_runs_and_their_coordinates(tmp_path):
    results = load(directory(tmp_path / "runs", 4, 2))
    write_metrics(results)
    with np.load(results.files.metrics_npz) as arrays:
        assert arrays["wd"].tolist() == [0, 1, 0, 1]
        assert arrays["last_epoch"].tolist() == [2] * 4
        assert (arrays["test_loss"] == 0.5).all()


def test_what_varies_is_asked_once_for_all_runs(tmp_path):
    """It was asked for every run: 5 seconds for 2,000 runs, 133 for 8,000."""
    results = load(directory(tmp_path / "runs", 200, 4))
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
    path = directory(tmp_path / "runs", 1)
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
    path = directory(tmp_path / "runs", 1)
    with SweepFiles(path).locked():
        assert (path / ".lock-held").exists()
        with pytest.raises(BadInput, match=r"if none is, remove .*\.lock-held"), SweepFiles(path).locked():
            pass
    assert not (path / ".lock-held").exists()


# --- steps ------------------------------------------------------------------------------------------------------------


def test_steps_are_listed_in_order_of_epoch(tmp_path):
    files = SweepFiles(tmp_path)
    for name in ("900", "1000", "90", "90.orbax-checkpoint-tmp-7", "removed-80-ab"):
        (files.batch_dir(0) / name).mkdir(parents=True)
    assert files.steps(0).epochs() == [90, 900, 1000]


def test_measures_are_listed_in_order_of_epoch(tmp_path):
    files = SweepFiles(tmp_path)
    for step in (900, 1000, 90):
        files.save_measures(2, step, {"run": np.arange(2), "epoch": np.arange(2)})
    assert files.measured_steps(2) == [90, 900, 1000]
    files.forget_measures(2, 900)
    files.forget_measures(2, 900)
    assert files.measured_steps(2) == [90, 1000]
    assert files.measured_steps(0) == []
