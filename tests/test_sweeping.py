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
from jaxgrok.config import BadInput
from jaxgrok.tables import timing as report
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import train
from jaxgrok.training.sweep import Interrupted, Silent, compiled, prepare, sweep
from tests.on_disk import StopAt, curves, same_files

# The MLP compiles fastest; the mechanics of a sweep are the same for both networks.
SMALL = {"arch": "mlp", "p": 5, "d_mlp": 8, "dtype": "float64", "frac": 0.5, "lr": 1e-2, "eval_every": 5}

# A task that draws fresh examples every step.
FRESH = {"task": "skip_trigram", "seq_len": 4, "d_model": 4, "n_heads": 1, "dtype": "float64", "lr": 1e-2, "eval_every": 5, "batch_size": 8}


def small(**settings):
    return make_sweep({**SMALL, "seeds": 3, "epochs": 40, **settings})


def test_every_run_of_a_sweep_is_the_single_run(tmp_path):
    path = sweep(small(wd="0.1,1", frac="0.4,0.6"), tmp_path / "runs", batch_runs=2)
    results = jaxgrok.load(path)
    assert len(results.runs) == 12
    for record in results.runs[::5]:
        state, alone = train(
            results.config(record), seed=record["seed"], frac=record["frac"], weight_decay=record["wd"], lr=1e-2, epochs=40, eval_every=5
        )
        at = {name: record[name] for name in ("seed", "frac", "wd")}
        ours = results.curves(**at)
        # The same float64 sums, batched in another shape.
        np.testing.assert_allclose(ours["train_loss"], alone.train_loss, rtol=1e-9)
        np.testing.assert_allclose(ours["test_loss"], alone.test_loss, rtol=1e-9)
        np.testing.assert_array_equal(ours["train_acc"], alone.train_acc[alone.epoch_eval])
        np.testing.assert_array_equal(ours["epoch_eval"], alone.epoch_eval)
        for a, b in zip(jax.tree.leaves(results.params(**at)), jax.tree.leaves(state.params)):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_permuting_the_seeds_permutes_the_runs(tmp_path):
    one = jaxgrok.load(sweep(small(seeds="0,1,2"), tmp_path / "a", batch_runs=3))
    two = jaxgrok.load(sweep(small(seeds="2,0,1"), tmp_path / "b", batch_runs=3))
    for seed in range(3):
        np.testing.assert_array_equal(one.curves(seed=seed)["train_loss"], two.curves(seed=seed)["train_loss"])


def test_a_run_that_turns_nan_leaves_the_others_alone(tmp_path):
    healthy = jaxgrok.load(sweep(small(lr="0.01,0.02", seeds=2), tmp_path / "a", batch_runs=4))
    planted = jaxgrok.load(sweep(small(lr="0.01,1e300", seeds=2), tmp_path / "b", batch_runs=4))
    for seed in (0, 1):
        np.testing.assert_array_equal(healthy.curves(seed=seed, lr=0.01)["train_loss"], planted.curves(seed=seed, lr=0.01)["train_loss"])
        for a, b in zip(jax.tree.leaves(healthy.params(seed=seed, lr=0.01)), jax.tree.leaves(planted.params(seed=seed, lr=0.01))):
            np.testing.assert_array_equal(a, b)
        (record,) = planted.select(seed=seed, lr=1e300)
        assert planted.timing(record).outcome == "diverged"


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
def test_an_interrupted_sweep_goes_on_bit_for_bit(tmp_path, stop, signum):
    whole = sweep(small(seeds=4), tmp_path / "whole", batch_runs=2)
    with pytest.raises(Interrupted) as stopped:
        sweep(small(seeds=4), tmp_path / "parts", batch_runs=2, watch=StopAt(stop, signum))
    assert stopped.value.path == tmp_path / "parts"
    assert curves(tmp_path / "parts")["last_epoch"].sum() < 160
    same_files(whole, sweep(small(seeds=4), tmp_path / "parts", batch_runs=2))


def test_a_killed_sweep_goes_on_bit_for_bit(tmp_path):
    """SIGKILL at any moment: no handler runs, so this is what a crash or a lost node leaves."""
    program = (
        "import jax, sys, numpy as np; jax.config.update('jax_enable_x64', True)\n"
        "from jaxgrok.training import sweep as sweeping\n"
        "from jaxgrok.training.grid import make_sweep\n"
        "sweeping.SAVE_SECONDS = 0.05\n"
        f"sweeping.sweep(make_sweep({ {**SMALL, 'seeds': 4, 'epochs': 400, 'checkpoint_every': 40}!r}), sys.argv[1], batch_runs=2)\n"
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run([sys.executable, "-c", program, whole], check=True)
    child = subprocess.Popen([sys.executable, "-c", program, parts])
    while not (parts / "checkpoints" / "0000" / "120").exists() and child.poll() is None:
        time.sleep(0.01)
    assert child.poll() is None, "it was killed too late"
    child.kill()
    child.wait()
    subprocess.run([sys.executable, "-c", program, parts], check=True)
    same_files(whole, parts)


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
        np.testing.assert_array_equal(results.curves(seed=seed, wd=1.0)["train_loss"], straight.curves(seed=seed)["train_loss"])
    # A shorter command leaves what is longer as it is.
    sweep(small(seeds=2, epochs=10), path)
    assert curves(path)["last_epoch"].tolist() == [60] * 6


# What files held before fields were added.
OLD_FIELDS = {"task", "p", "arch", "n_layers", "n_heads", "d_model", "d_mlp", "act", "loss", "dtype", "matmul_precision", "warmup_steps"}
OLD_FIELDS |= {"b1", "b2", "eps", "split_seed"}
OLD_CONFIG = OLD_FIELDS | {"until_settled", "train_every", "eval_every"}
OLD_RECORD = OLD_FIELDS | {"seed", "frac", "wd", "lr", "n_train", "split_hash", "epochs", "batch", "status", "last_epoch"}


def test_a_directory_from_before_the_later_fields_goes_on(tmp_path):
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
    assert [results.config(record) for record in results.runs] == list(small().configs) * 4
    assert results.varying() == ["wd"]
    assert [cell.name for cell in report.write_tables(results)] == ["wd=1", "wd=0.1"]
    again = sweep(small(seeds=4, wd="1,0.1", epochs=60), path, batch_runs=2)
    straight = tmp_path / "straight"
    for settings in ({"seeds": 2}, {"seeds": 4, "epochs": 60}):
        sweep(small(wd="1,0.1", **settings), straight, batch_runs=2)
    same_files(straight, again)


@pytest.mark.parametrize("written", [["config.json"], ["config.json", "manifest.json"]])
def test_a_sweep_killed_while_it_writes_its_first_files_starts_over(tmp_path, written):
    path = sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    shutil.rmtree(path / "checkpoints" / "0000")
    for name in {"config.json", "manifest.json", "metrics.npz"} - set(written):
        (path / name).unlink()
    again = sweep(small(seeds=1, epochs=2), path)
    same_files(again, sweep(small(seeds=1, epochs=2), tmp_path / "straight"))


def test_a_sweep_killed_between_the_files_of_a_save_goes_on(tmp_path):
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
        def started(self, metrics, plan):
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
        np.testing.assert_allclose(eight.curves(seed=seed)["train_loss"], one.curves(seed=seed)["train_loss"], rtol=1e-10)
    fresh = jaxgrok.load(tmp_path / "fresh")
    unlimited = jaxgrok.load(sweep(make_sweep({**FRESH, "seeds": 11, "epochs": 20}), tmp_path / "fresh-one", batch_runs=16))
    for seed in range(11):
        np.testing.assert_allclose(fresh.curves(seed=seed)["train_loss"], unlimited.curves(seed=seed)["train_loss"], rtol=1e-10)
    # What eight devices began, one goes on with.
    sweep(small(seeds=11, epochs=30), tmp_path / "eight")
    longer = jaxgrok.load(sweep(small(seeds=11, epochs=30), tmp_path / "one", batch_runs=16))
    for seed in range(11):
        both = (jaxgrok.load(tmp_path / "eight").curves(seed=seed), longer.curves(seed=seed))
        np.testing.assert_allclose(both[0]["train_loss"], both[1]["train_loss"], rtol=1e-9)


def test_the_manifest_says_what_made_the_runs(tmp_path):
    path = sweep(small(seeds=2), tmp_path / "runs")
    manifest = json.loads((path / "manifest.json").read_text())
    assert {"jax", "optax", "flax", "jaxgrok", "python"} <= set(manifest["sessions"][0]["versions"])
    hashes = [record["split_hash"] for record in manifest["runs"].values()]
    assert len(set(hashes)) == 2
    fixed = sweep(small(seeds=2, split_seed=4), tmp_path / "fixed")
    assert len({record["split_hash"] for record in json.loads((fixed / "manifest.json").read_text())["runs"].values()}) == 1
    assert all(record["status"] == "trained" for record in manifest["runs"].values())


def test_curves_on_a_cadence(tmp_path):
    every = curves(sweep(small(seeds=1), tmp_path / "a"))
    third = curves(sweep(small(seeds=1, train_every=3), tmp_path / "b"))
    assert third["epoch_train"].tolist() == list(range(0, 40, 3))
    np.testing.assert_array_equal(third["train_loss"][0], every["train_loss"][0, ::3])


def test_checkpoints_on_request(tmp_path):
    path = sweep(small(seeds=1, checkpoint_every=7), tmp_path / "runs")
    assert jaxgrok.load(path).checkpoint_epochs(seed=0) == [0, 5, 7, 14, 21, 28, 35, 40]


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
    assert [plan.runs[run].seed for number in plan.todo for run in plan.batches[number].runs] == [3]
    sweep(small(seeds="3:4", epochs=60), path)
    trained = {(record["wd"], record["seed"]): record["last_epoch"] for record in jaxgrok.load(path).runs}
    assert trained[1.0, 3] == 60
    assert 0 < trained[1.0, 0] == trained[1.0, 1] < 400
    assert [trained[0.1, seed] for seed in range(4)] == [0] * 4
    assert [len(cell) for cell in jaxgrok.load(path).cells().values()] == [3]
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
    assert 41 not in jaxgrok.load(path).checkpoint_epochs(seed=0)


def test_float64_without_x64_is_refused_before_anything_is_written(tmp_path):
    sweeping.make_train.cache_clear()
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
