import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.config import BadInput, Run
from jaxgrok.store import events
from jaxgrok.store.events import Outcome
from jaxgrok.store.steps import PADDING, SweepFiles
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import make_program, train
from jaxgrok.training.sweep import Interrupted, Silent, compiled, prepare, sweep
from tests.conftest import optimised
from tests.on_disk import StopAt, contents, curves, same_files

# The MLP compiles fastest; the mechanics of a sweep are the same for both networks.
SMALL = {"arch": "mlp", "p": 5, "d_mlp": 8, "dtype": "float64", "frac": 0.5, "lr": 1e-2, "eval_every": 5}

# The environment of a command that compiles what ships (see conftest.py).
COMPILED_IN_FULL = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}

# A task that draws fresh examples every step.
FRESH = {
    "task": "skip_trigram",
    "seq_len": 4,
    "d_model": 4,
    "n_heads": 1,
    "dtype": "float64",
    "lr": 1e-2,
    "eval_every": 5,
    "batch_size": 8,
}


def small(**settings):
    return make_sweep({**SMALL, "seeds": 3, "epochs": 40, **settings})


@pytest.fixture
def shipped():
    """The program that ships, compiled in full: the promise to resume bit for bit is about that one."""
    compiled.cache_clear()
    with optimised():
        yield
    compiled.cache_clear()


def test_every_run_of_a_sweep_is_the_single_run(tmp_path):
    path = sweep(small(wd="0.1,1", frac="0.4,0.6"), tmp_path / "runs", batch_runs=2)
    results = jaxgrok.load(path)
    assert len(results.runs) == 12
    for record in results.runs[::5]:
        state, alone = train(
            record.config,
            seed=record.seed,
            frac=record.run.frac,
            weight_decay=record.run.weight_decay,
            lr=1e-2,
            epochs=40,
            eval_every=5,
        )
        at = {name: record.coordinates[name] for name in ("seed", "frac", "wd")}
        ours = results.curves(**at)
        # The same float64 sums, batched in another shape.
        np.testing.assert_allclose(ours.train_loss, alone.train_loss, rtol=1e-9)
        np.testing.assert_allclose(ours.test_loss, alone.test_loss, rtol=1e-9)
        np.testing.assert_array_equal(ours.train_acc, alone.train_acc[alone.epoch_eval])
        np.testing.assert_array_equal(ours.epoch_eval, alone.epoch_eval)
        for a, b in zip(jax.tree.leaves(results.params(**at)), jax.tree.leaves(state.params)):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_permuting_the_seeds_permutes_the_runs(tmp_path):
    one = jaxgrok.load(sweep(small(seeds="0,1,2"), tmp_path / "a", batch_runs=3))
    two = jaxgrok.load(sweep(small(seeds="2,0,1"), tmp_path / "b", batch_runs=3))
    for seed in range(3):
        np.testing.assert_array_equal(one.curves(seed=seed).train_loss, two.curves(seed=seed).train_loss)


def test_a_run_that_turns_nan_leaves_the_others_alone(tmp_path):
    healthy = jaxgrok.load(sweep(small(lr="0.01,0.02", seeds=2), tmp_path / "a", batch_runs=4))
    planted = jaxgrok.load(sweep(small(lr="0.01,1e300", seeds=2), tmp_path / "b", batch_runs=4))
    for seed in (0, 1):
        np.testing.assert_array_equal(
            healthy.curves(seed=seed, lr=0.01).train_loss, planted.curves(seed=seed, lr=0.01).train_loss
        )
        for a, b in zip(
            jax.tree.leaves(healthy.params(seed=seed, lr=0.01)), jax.tree.leaves(planted.params(seed=seed, lr=0.01))
        ):
            np.testing.assert_array_equal(a, b)
        assert planted.timing(planted.record(seed=seed, lr=1e300)).outcome is Outcome.DIVERGED


def test_the_same_shapes_compile_once_and_a_finished_sweep_is_left_alone(tmp_path):
    programs = compiled(small().configs[0], 5, tuple(jax.local_devices()))
    functions = (programs.init, programs.advance, programs.evaluate)
    path = sweep(small(seeds="0:2"), tmp_path / "a")
    counts = [f._cache_size() for f in functions]
    assert min(counts) >= 1
    sweep(small(seeds="5:7", wd=0.3), tmp_path / "b")
    assert [f._cache_size() for f in functions] == counts
    before = {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")}
    sweep(small(seeds="0:2"), tmp_path / "a")
    assert {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")} == before


@pytest.mark.parametrize(("stop", "signum"), [(1, signal.SIGINT), (61, signal.SIGTERM), (150, signal.SIGINT)])
@pytest.mark.usefixtures("shipped")
def test_an_interrupted_sweep_resumes_bit_for_bit(tmp_path, stop, signum):
    whole = sweep(small(seeds=4), tmp_path / "whole", batch_runs=2)
    with pytest.raises(Interrupted) as stopped:
        sweep(small(seeds=4), tmp_path / "parts", batch_runs=2, watch=StopAt(stop, signum))
    assert stopped.value.path == tmp_path / "parts"
    assert curves(tmp_path / "parts")["last_epoch"].sum() < 160
    same_files(whole, sweep(small(seeds=4), tmp_path / "parts", batch_runs=2))


def test_a_killed_sweep_resumes_bit_for_bit(tmp_path):
    """SIGKILL at any moment: no handler runs, so this is what a crash or a lost node leaves."""
    program = (
        "import jax, sys, numpy as np; jax.config.update('jax_enable_x64', True)\n"
        "from jaxgrok.training import sweep as sweeping\n"
        "from jaxgrok.training.grid import make_sweep\n"
        "sweeping.SAVE_SECONDS = 0.05\n"
        f"settings = { {**SMALL, 'seeds': 4, 'epochs': 400, 'checkpoint_every': 40}!r}\n"
        "sweeping.sweep(make_sweep(settings), sys.argv[1], batch_runs=2)\n"
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run([sys.executable, "-c", program, whole], check=True, env=COMPILED_IN_FULL)
    child = subprocess.Popen([sys.executable, "-c", program, parts], env=COMPILED_IN_FULL)
    while not (parts / "checkpoints" / "0000" / "120").exists() and child.poll() is None:
        time.sleep(0.01)
    assert child.poll() is None, "it was killed too late"
    child.kill()
    child.wait()
    subprocess.run([sys.executable, "-c", program, parts], check=True, env=COMPILED_IN_FULL)
    same_files(whole, parts)


@pytest.mark.usefixtures("shipped")
def test_more_seeds_values_and_epochs_extend_a_sweep(tmp_path):
    path = tmp_path / "runs"
    sweep(small(seeds=2), path, batch_runs=2)
    first = curves(path)
    sweep(small(seeds=3, wd="1,0.1", epochs=60), path, batch_runs=2)
    results = jaxgrok.load(path)
    assert len(results.runs) == 6
    np.testing.assert_array_equal(curves(path)["train_loss"][:2, :40], first["train_loss"])
    assert curves(path)["last_epoch"].tolist() == [60] * 6
    straight = jaxgrok.load(sweep(small(seeds=2, epochs=60), tmp_path / "straight", batch_runs=2))
    for seed in (0, 1):
        np.testing.assert_array_equal(
            results.curves(seed=seed, wd=1.0).train_loss, straight.curves(seed=seed).train_loss
        )
    # A shorter command leaves what is longer as it is.
    sweep(small(seeds=2, epochs=10), path)
    assert curves(path)["last_epoch"].tolist() == [60] * 6


# What files held before fields were added.
OLD_FIELDS = {
    "task",
    "p",
    "arch",
    "n_layers",
    "n_heads",
    "d_model",
    "d_mlp",
    "act",
    "loss",
    "dtype",
    "matmul_precision",
    "warmup_steps",
}
OLD_FIELDS |= {"b1", "b2", "eps", "split_seed"}
OLD_CONFIG = OLD_FIELDS | {"until_settled", "train_every", "eval_every"}
OLD_RECORD = OLD_FIELDS | {
    "seed",
    "frac",
    "wd",
    "lr",
    "n_train",
    "split_hash",
    "epochs",
    "batch",
    "status",
    "last_epoch",
}


def test_a_directory_from_before_the_later_fields_resumes(tmp_path):
    path = sweep(small(seeds=2, wd="1,0.1"), tmp_path / "runs", batch_runs=2)
    assert set(json.loads((path / "config.json").read_text())) == OLD_CONFIG
    manifest = json.loads((path / "manifest.json").read_text())
    for number, record in manifest["runs"].items():
        manifest["runs"][number] = {name: record[name] for name in OLD_RECORD}
    (path / "manifest.json").write_text(json.dumps(manifest))
    arrays = curves(path)
    axes = OLD_RECORD - {"split_seed", "split_hash", "epochs", "batch", "status", "last_epoch", "n_train"}
    measured = {"train_loss", "test_loss", "train_acc", "test_acc", "epoch_train", "epoch_eval", "last_epoch", "ended"}
    np.savez(path / "metrics.npz", **{name: arrays[name] for name in axes | measured})
    results = jaxgrok.load(path)
    assert [record.config for record in results.runs] == list(small().configs) * 4
    assert results.varying == ["wd"]
    assert [cell.name for cell in results.cells] == ["wd=1", "wd=0.1"]
    again = sweep(small(seeds=4, wd="1,0.1", epochs=60), path, batch_runs=2)
    straight = tmp_path / "straight"
    for settings in ({"seeds": 2}, {"seeds": 4, "epochs": 60}):
        sweep(small(wd="1,0.1", **settings), straight, batch_runs=2)
    same_files(straight, again)


@pytest.mark.parametrize("written", [["config.json"], ["config.json", "manifest.json"]])
def test_a_sweep_killed_while_it_writes_its_first_files_starts_over(tmp_path, written):
    path = sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    shutil.rmtree(path / "checkpoints" / "0000")
    # The first manifest says that nothing has trained. Only then are missing curves made anew.
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["runs"]["0"] |= {"status": "waiting", "last_epoch": 0}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for name in {"config.json", "manifest.json", "metrics.npz"} - set(written):
        (path / name).unlink()
    again = sweep(small(seeds=1, epochs=2), path)
    same_files(again, sweep(small(seeds=1, epochs=2), tmp_path / "straight"))


def test_a_sweep_killed_between_the_files_of_a_save_resumes(tmp_path):
    path = sweep(small(seeds=2), tmp_path / "runs", batch_runs=2)
    metrics = (path / "metrics.npz").read_bytes()
    sweep(small(seeds=3, epochs=60), path, batch_runs=2)
    # The longer sweep's manifest and checkpoints, with the curves of the shorter one.
    (path / "metrics.npz").write_bytes(metrics)
    assert len(jaxgrok.load(path).runs) == 3
    sweep(small(seeds=3, epochs=60), path, batch_runs=2)
    assert curves(path)["last_epoch"].tolist() == [60] * 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"p": 7}, "p"),
        ({"d_mlp": 9}, "d_mlp"),
        ({"loss": "float64"}, "loss"),
        ({"split_seed": 3}, "split_seed"),
        ({"eval_every": 4}, "eval_every"),
        ({"train_every": 2}, "train_every"),
        ({"epochs": None, "until_settled": True}, "until_settled"),
        ({"b2": 0.999}, "b2"),
        ({"regulariser": "l2"}, "regulariser"),
        ({"batch_size": 3}, "batch_size"),
    ],
)
def test_a_changed_field_is_refused_by_name_and_nothing_is_written(tmp_path, change, field):
    path = sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    settings = {**SMALL, "seeds": 1, "epochs": 2, **change}
    with pytest.raises(BadInput) as error:
        sweep(make_sweep({name: value for name, value in settings.items() if value is not None}), path)
    assert error.value.name == field
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match="out"):
        sweep(small(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="out"):
        sweep(small(), tmp_path / "file" / "runs")


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "runs"

    class Second(Silent):
        def started(self, curves, plan):
            with pytest.raises(BadInput, match="no other running sweep"):
                sweep(small(seeds=1, epochs=2), path)

    sweep(small(seeds=1, epochs=2), path, watch=Second())


def test_eight_devices_give_the_same_as_one(tmp_path):
    """Eight virtual CPU devices, and more rows than runs."""
    program = (
        "import jax, sys; jax.config.update('jax_enable_x64', True)\n"
        "from jaxgrok.training.grid import make_sweep\n"
        "from jaxgrok.training.sweep import sweep\n"
        f"sweep(make_sweep({ {**SMALL, 'seeds': 11, 'epochs': 20}!r}), sys.argv[1], batch_runs=16)\n"
        f"sweep(make_sweep({ {**FRESH, 'seeds': 11, 'epochs': 20}!r}), sys.argv[2], batch_runs=16)\n"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "eight", tmp_path / "fresh"], check=True, env=environment)
    eight = jaxgrok.load(tmp_path / "eight")
    assert len(eight.sessions[0]["devices"]) == 8
    assert len(eight.batches["0"]["layouts"][0]["rows"]) == 16
    one = jaxgrok.load(sweep(small(seeds=11, epochs=20), tmp_path / "one", batch_runs=16))
    for seed in range(11):
        # The same float64 sums in batches of another size.
        np.testing.assert_allclose(eight.curves(seed=seed).train_loss, one.curves(seed=seed).train_loss, rtol=1e-10)
    fresh = jaxgrok.load(tmp_path / "fresh")
    unlimited = jaxgrok.load(
        sweep(make_sweep({**FRESH, "seeds": 11, "epochs": 20}), tmp_path / "fresh-one", batch_runs=16)
    )
    for seed in range(11):
        np.testing.assert_allclose(
            fresh.curves(seed=seed).train_loss, unlimited.curves(seed=seed).train_loss, rtol=1e-10
        )
    # What eight devices began, one goes on with.
    sweep(small(seeds=11, epochs=30), tmp_path / "eight")
    longer = jaxgrok.load(sweep(small(seeds=11, epochs=30), tmp_path / "one", batch_runs=16))
    for seed in range(11):
        both = (jaxgrok.load(tmp_path / "eight").curves(seed=seed), longer.curves(seed=seed))
        np.testing.assert_allclose(both[0].train_loss, both[1].train_loss, rtol=1e-9)


def test_the_manifest_says_what_made_the_runs(tmp_path):
    path = sweep(small(seeds=2), tmp_path / "runs")
    manifest = json.loads((path / "manifest.json").read_text())
    assert {"jax", "optax", "flax", "jaxgrok", "python"} <= set(manifest["sessions"][0]["versions"])
    hashes = [record["split_hash"] for record in manifest["runs"].values()]
    assert len(set(hashes)) == 2
    fixed = sweep(small(seeds=2, split_seed=4), tmp_path / "fixed")
    assert (
        len({record["split_hash"] for record in json.loads((fixed / "manifest.json").read_text())["runs"].values()})
        == 1
    )
    assert all(record["status"] == "trained" for record in manifest["runs"].values())


def test_curves_on_a_cadence(tmp_path):
    every = curves(sweep(small(seeds=1), tmp_path / "a"))
    third = curves(sweep(small(seeds=1, train_every=3), tmp_path / "b"))
    assert third["epoch_train"].tolist() == list(range(0, 40, 3))
    np.testing.assert_array_equal(third["train_loss"][0], every["train_loss"][0, ::3])


def test_checkpoints_on_request(tmp_path):
    path = sweep(small(seeds=1, checkpoint_every=7), tmp_path / "runs")
    results = jaxgrok.load(path)
    assert results.checkpoint_epochs(results.runs[0]) == [0, 5, 7, 14, 21, 28, 35, 40]


def test_prepare_writes_nothing(tmp_path):
    plan = prepare(small(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert sum(len(batch.runs) for batch in plan.batches.values()) == 3


@pytest.mark.slow
def test_a_smaller_command_trains_only_what_it_asks_for(tmp_path):
    """Too long, stopped, asked again for less: the rest of the first command waits."""
    path = tmp_path / "runs"
    with pytest.raises(Interrupted):
        sweep(small(seeds=4, wd="1,0.1", epochs=400), path, batch_runs=2, watch=StopAt(100))
    plan = prepare(small(seeds="3:4", epochs=60), path)
    assert [plan.records[run].seed for number in plan.todo for run in plan.batches[number].runs] == [3]
    sweep(small(seeds="3:4", epochs=60), path)
    results = jaxgrok.load(path)
    trained = {(record.run.weight_decay, record.seed): record.last_epoch for record in results.runs}
    assert trained[1.0, 3] == 60
    assert 0 < trained[1.0, 0] == trained[1.0, 1] < 400
    assert [trained[0.1, seed] for seed in range(4)] == [0] * 4
    assert [len(cell.records) for cell in results.cells] == [3]
    # The first command, again, finds all of it.
    sweep(small(seeds=4, wd="1,0.1", epochs=400), path, batch_runs=2)
    assert curves(path)["last_epoch"].tolist() == [400] * 8


def test_parameters_past_the_last_state_are_not_kept(tmp_path):
    path = sweep(small(seeds=1), tmp_path / "runs")
    files = jaxgrok.load(path).files
    run, params = files.load_params(0, 40)
    files.save_params(0, 41, run, jax.tree.map(lambda x: x + 1, params))
    files.wait()
    sweep(small(seeds=1, epochs=80), path)
    results = jaxgrok.load(path)
    assert 41 not in results.checkpoint_epochs(results.runs[0])


def test_float64_without_x64_is_refused_before_anything_is_written(tmp_path):
    make_program.cache_clear()
    with jax.enable_x64(False), pytest.raises(BadInput, match="x64"):
        sweep(small(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["config.json", "manifest.json"])
def test_a_damaged_directory_is_named(tmp_path, damage):
    path = sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    (path / damage).write_text("{")
    with pytest.raises(BadInput, match=damage):
        sweep(small(seeds=1, epochs=2), path)
    with pytest.raises(BadInput):
        sweep(small(), tmp_path / ("x" * 300))


def test_curves_have_a_coordinate_for_every_axis(tmp_path):
    arrays = curves(sweep(small(seeds=1, epochs=2, d_mlp=[8, 9]), tmp_path / "runs"))
    assert arrays["d_mlp"].tolist() == [8, 9]
    assert {"seed", "frac", "wd", "lr", "task", "arch", "p", "loss", "act"} <= set(arrays)


def test_loading_by_coordinates(tmp_path):
    results = jaxgrok.load(sweep(small(seeds=2, wd="0.1,1"), tmp_path / "runs"))
    assert results.params(seed=1, weight_decay=0.1)["W_in"].shape == (5, 8)
    for wrong, named in [({"seed": 9}, "seed"), ({"seed": 0}, "wd"), ({"colour": 1}, "colour"), ({}, "seed")]:
        with pytest.raises(BadInput, match=named):
            results.params(**wrong)
    with pytest.raises(BadInput, match="epoch"):
        results.params(3, seed=0, wd=0.1)
    with pytest.raises(BadInput, match="run directory"):
        jaxgrok.load(tmp_path / "nowhere")


def test_signal_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    assert signal.getsignal(signal.SIGINT) is before
    assert sweeping.SAVE_SECONDS == 60


# --- what a crash or a copy leaves that does not fit together ---------------------------------------------------------


def states(path):
    """The names of the saved states of batch 0."""
    return sorted(folder.name for folder in (path / "checkpoints" / "0000").glob("state-*"))


@pytest.fixture
def interrupted(tmp_path, monkeypatch, shipped):
    """(the path of a sweep, a function that trains it on to a number of epochs and keeps metrics.npz as it was).

    The older curves beside newer states are what a power loss leaves, or a copy of a directory that is being written.
    """
    monkeypatch.setattr(sweeping, "SAVE_SECONDS", np.inf)  # on a slow machine too, states are those of the ends alone
    path = tmp_path / "runs"
    sweep(small(seeds=2, epochs=20), path, batch_runs=2)

    def train_past_the_curves(*lengths):
        metrics = (path / "metrics.npz").read_bytes()
        for epochs in lengths:
            sweep(small(seeds=2, epochs=epochs), path, batch_runs=2)
        (path / "metrics.npz").write_bytes(metrics)

    return path, train_past_the_curves


@pytest.mark.parametrize(
    ("lengths", "left"),
    [
        ((40,), ["state-20-rows-2", "state-40-rows-2"]),  # the older state is one that the curves know
        ((30, 40), ["state-30-rows-2", "state-40-rows-2"]),  # neither is, so that the batch starts over
    ],
)
def test_a_state_ahead_of_its_curves_is_not_resumed_from(tmp_path, interrupted, lengths, left):
    path, train_past_the_curves = interrupted
    train_past_the_curves(*lengths)
    assert states(path) == left
    assert curves(path)["last_epoch"].tolist() == [20, 20]
    sweep(small(seeds=2, epochs=60), path, batch_runs=2)
    # Every curve is whole: a hole of NaN would read as a diverged run.
    found = curves(path)
    assert found["last_epoch"].tolist() == [60, 60]
    for name in ("train_loss", "test_loss", "train_acc", "test_acc"):
        assert np.isfinite(found[name]).all(), name
    whole = tmp_path / "whole"
    for epochs in (20, *lengths, 60):
        sweep(small(seeds=2, epochs=epochs), whole, batch_runs=2)
    same_files(whole, path)
    assert all(jaxgrok.load(path).timing(record).outcome is not Outcome.DIVERGED for record in jaxgrok.load(path).runs)


def test_states_of_a_longer_timeline_are_forgotten(interrupted):
    path, train_past_the_curves = interrupted
    train_past_the_curves(30, 40)
    sweep(small(seeds=2, epochs=25), path, batch_runs=2)
    assert states(path) == ["state-25-rows-2"]


def test_a_run_that_the_state_no_longer_holds_has_ended(tmp_path, monkeypatch):
    """A power loss between the curves that a run ended with and their saving, after the batch has halved."""
    monkeypatch.setattr(events, "settled_epoch", lambda grokked: grokked)
    settings = {"seeds": 2, "epochs": None, "until_settled": True, "max_epochs": 40}
    settings = {name: value for name, value in {**SMALL, **settings}.items() if value is not None}
    path = sweep(make_sweep({**settings, "max_epochs": 20}), tmp_path / "runs", batch_runs=2)
    files, before = SweepFiles(path), curves(path)
    assert not before["ended"].any()
    saved = files.load_state(0, state_structure(), 20)
    files.save_state(0, 20, np.array([0]), jax.tree.map(lambda x: x[:1], saved.state))
    sweep(make_sweep(settings), path, batch_runs=2)
    assert curves(path)["ended"].tolist() == [False, True]
    assert curves(path)["last_epoch"].tolist() == [40, 20]


def state_structure():
    config = small().configs[0]
    return jax.tree.structure(jax.eval_shape(make_program(config, 5).init, Run(config).hyper()))


@pytest.mark.parametrize("damage", ["missing", "cut short", "text"])
def test_curves_that_are_missing_or_damaged_are_refused_and_nothing_is_changed(tmp_path, damage):
    path = sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    metrics = path / "metrics.npz"
    if damage == "missing":
        metrics.unlink()
    else:
        metrics.write_bytes(metrics.read_bytes()[:300] if damage == "cut short" else b"mine")
    before = contents(path)
    with pytest.raises(BadInput) as caught:
        sweep(small(seeds=1, epochs=4), path)
    assert str(metrics) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(path) == before


def planted_in(part, change):
    """A function that changes a part of manifest.json, found by its keys."""

    def plant(manifest):
        *keys, last = part
        for key in keys:
            manifest = manifest[key]
        manifest[last] = change

    return plant


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (planted_in(("batches", "0", "runs"), [0, 7]), "names the run 7, which does not exist"),
        (planted_in(("batches", "0", "runs"), [0, -1]), "names the run -1, which does not exist"),
        (planted_in(("batches", "0", "runs"), [0, 0]), "a run is in two batches"),
        (planted_in(("batches", "0", "runs"), []), "of a batch"),
        (planted_in(("batches", "0", "layouts"), {"from": 0}), "the layouts"),
        (planted_in(("batches", "0", "layouts"), [{"from": 0, "rows": 3, "devices": 1}]), "a layout is"),
        (planted_in(("batches", "0", "layouts"), [[0]]), "a manifest that sweep.py wrote"),
        (planted_in(("batches",), [0]), "a manifest that sweep.py wrote"),
        (planted_in(("runs", "1", "frac"), 0.4), "differ in their config or number of train examples|split_hash"),
        (planted_in(("runs", "1", "seed"), 5), r"run 1 \(seed 5\) has split_hash"),
        (planted_in(("runs", "1", "split_hash"), "0" * 12), r"run 1 \(seed 1\) has split_hash"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_and_nothing_is_changed(tmp_path, plant, said):
    path = sweep(small(seeds=2, epochs=2), tmp_path / "runs", batch_runs=2)
    manifest = json.loads((path / "manifest.json").read_text())
    plant(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    before = contents(path)
    with pytest.raises(BadInput, match=said) as caught:
        sweep(small(seeds=2, epochs=4), path, batch_runs=2)
    assert str(path / "manifest.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(path) == before


@pytest.mark.parametrize(
    "rows", [lambda run: run + 1, lambda run: np.full_like(run, PADDING), lambda run: np.zeros_like(run)]
)
def test_a_state_of_other_runs_is_refused_by_name(tmp_path, rows):
    path = sweep(small(seeds=2, epochs=2), tmp_path / "runs", batch_runs=2)
    files = SweepFiles(path)
    saved = files.load_state(0, state_structure(), 2)
    shutil.rmtree(path / "checkpoints" / "0000" / "state-2-rows-2")
    files.save_state(0, 2, rows(saved.run), saved.state)
    with pytest.raises(BadInput, match=r"state-2-rows-2.*a state of runs among 0 1"):
        sweep(small(seeds=2, epochs=4), path, batch_runs=2)


def test_a_state_of_another_network_is_refused_by_name(tmp_path):
    path, other = (sweep(small(seeds=1, epochs=2, d_mlp=width), tmp_path / str(width)) for width in (8, 9))
    state = "checkpoints/0000/state-2-rows-1"
    shutil.rmtree(path / state)
    shutil.copytree(other / state, path / state)
    with pytest.raises(BadInput, match=r"state-2-rows-1.*a state of this sweep's network"):
        sweep(small(seeds=1, epochs=4), path)


def test_a_state_of_more_than_a_thousand_arrays_comes_back_in_order(tmp_path):
    leaves = [np.full(1, i) for i in range(1100)]
    with SweepFiles(tmp_path / "runs").locked() as files:
        files.save_state(0, 3, np.array([0]), leaves)
        saved = files.load_state(0, jax.tree.structure(leaves), 3)
    assert [int(leaf[0]) for leaf in saved.state] == list(range(1100))


# --- watching ---------------------------------------------------------------------------------------------------------


class Noting(Silent):
    """Notes what a sweep calls, in order."""

    def __init__(self):
        self.called = []

    def started(self, curves, plan):
        self.called.append("started")

    def compiling(self):
        self.called.append("compiling")

    def compiled(self):
        self.called.append("compiled")

    def advanced(self, curves, plan, run_epochs):
        self.called.append(run_epochs)


def test_a_watcher_hears_of_each_compilation_once(tmp_path):
    compiled.cache_clear()
    # Batches of 2, 2 and 1 runs: two shapes. Each has the intervals 0-1, 1-2, 2-4, 4-5, 5-10.
    lengths = [1, 1, 2, 1, 5]
    first = Noting()
    sweep(small(seeds=5, epochs=10, checkpoint_every=5), tmp_path / "a", batch_runs=2, watch=first)
    called = first.called
    assert called.count("compiling") == called.count("compiled") == 2
    assert called[:3] == ["started", "compiling", "compiled"]
    assert [x for x in called if isinstance(x, int)] == [2 * n for n in lengths] * 2 + lengths
    second = Noting()
    sweep(small(seeds=5, epochs=10, checkpoint_every=5, wd=0.3), tmp_path / "b", batch_runs=2, watch=second)
    assert "compiling" not in second.called
