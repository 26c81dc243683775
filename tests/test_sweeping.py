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
from jaxgrok.store.events import Outcome
from jaxgrok.store.records import Status
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.batch import MOST_INTERVALS, Dispatched, Interval, most_intervals
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import make_program, train
from jaxgrok.training.sweep import Interrupted, Silent, compiled, prepare, sweep
from tests.conftest import COMPILED_IN_FULL, assert_equal_in_any_row, optimised
from tests.on_disk import StopAt, curves, same_files

# The MLP compiles fastest; the mechanics of a sweep are the same for both networks.
SMALL = {"arch": "mlp", "p": 5, "d_mlp": 8, "dtype": "float64", "frac": 0.5, "lr": 1e-2, "eval_every": 5}

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
        assert_equal_in_any_row(one.curves(seed=seed).train_loss, two.curves(seed=seed).train_loss)


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
    functions = (programs.init, programs.advance)
    path = sweep(small(seeds="0:2"), tmp_path / "a")
    counts = [f._cache_size() for f in functions]
    assert min(counts) >= 1
    sweep(small(seeds="5:7", wd=0.3), tmp_path / "b")
    assert [f._cache_size() for f in functions] == counts
    before = {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")}
    sweep(small(seeds="0:2"), tmp_path / "a")
    assert {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")} == before


@pytest.mark.usefixtures("shipped")
def test_intervals_that_are_dispatched_together_give_the_same_bits(tmp_path, monkeypatch):
    """However long the machine took for those before: here always one by one, then as many as may be."""
    advance, lengths = sweeping.LiveBatch.advance, []

    def counted(self, most_steps):
        before = self.epoch
        dispatched = advance(self, most_steps)
        assert not self.checkpoints & set(range(before + 1, self.epoch))
        assert sum(interval.steps for interval in dispatched.intervals) == self.epoch - before
        lengths.append(len(dispatched.intervals))
        return dispatched

    monkeypatch.setattr(sweeping.LiveBatch, "advance", counted)
    paths = []
    for seconds in (0, 1e9):
        monkeypatch.setattr(sweeping, "SHORT_SECONDS", seconds)
        # A checkpoint is due where no evaluation is.
        paths.append(sweep(small(epochs=423, checkpoint_every=212), tmp_path / str(seconds), batch_runs=2))
        assert max(lengths) == (1 if seconds == 0 else MOST_INTERVALS)
        lengths.clear()
    same_files(*paths)


def test_slow_intervals_are_dispatched_one_by_one(tmp_path, monkeypatch):
    advance, joined, lengths = sweeping.LiveBatch.advance, sweeping.joined, []

    def counted(self, most_steps):
        dispatched = advance(self, most_steps)
        lengths.append(len(dispatched.intervals))
        return dispatched

    def slowly(groups):
        time.sleep(0.02)
        return joined(groups)

    monkeypatch.setattr(sweeping.LiveBatch, "advance", counted)
    monkeypatch.setattr(sweeping, "joined", slowly)
    monkeypatch.setattr(sweeping, "SHORT_SECONDS", 0.01)
    sweep(small(epochs=100, checkpoint_every=50), tmp_path / "runs", batch_runs=3)
    assert set(lengths) == {1}


@pytest.mark.parametrize(("eval_every", "most"), [(1, 32), (10, 32), (16, 32), (100, 5), (512, 1), (40_000, 1)])
def test_few_long_intervals_are_dispatched_together(eval_every, most):
    assert most_intervals(eval_every) == most


def test_the_time_of_a_step_is_that_of_dispatches_that_were_waited_for(monkeypatch):
    training = object.__new__(sweeping._Training)
    training.step_seconds, training.recorded_at = np.inf, 0.0
    dispatched = Dispatched([Interval(0, 3, True), Interval(3, 7, True)], [])

    def timed(began, now):
        monkeypatch.setattr(sweeping.time, "monotonic", lambda: now)
        training._time(dispatched, began)
        return training.step_seconds

    assert timed(None, 50.0) == np.inf  # it compiled
    assert timed(49.0, 51.0) == pytest.approx(0.1)
    assert timed(49.5, 53.0) == pytest.approx(0.2)  # it began in earnest when the one before was done
    assert timed(50.0, 53.0) == pytest.approx(0.1)  # it was done while the host did something else
    assert timed(52.0, 53.0) == pytest.approx(0.05)
    assert timed(53.0, 56.0) == pytest.approx(0.3)


@pytest.mark.parametrize(("stop", "signum"), [(1, signal.SIGINT), (61, signal.SIGTERM), (150, signal.SIGINT)])
@pytest.mark.usefixtures("shipped")
def test_an_interrupted_sweep_resumes_bit_for_bit(tmp_path, stop, signum, monkeypatch):
    whole = sweep(small(seeds=4), tmp_path / "whole", batch_runs=2)
    monkeypatch.setattr(sweeping, "SHORT_SECONDS", 0)  # so it stops in the middle, and dispatches are others
    with pytest.raises(Interrupted) as stopped:
        sweep(small(seeds=4), tmp_path / "parts", batch_runs=2, watch=StopAt(stop, signum))
    assert stopped.value.path == tmp_path / "parts"
    assert curves(tmp_path / "parts")["last_epoch"].sum() < 160
    monkeypatch.undo()
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
    while not any((parts / "checkpoints" / "0000").glob("[1-9]*[0-9]")) and child.poll() is None:
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


@pytest.mark.parametrize("written", [["config.json"], ["config.json", "manifest.json"]])
def test_a_sweep_killed_while_it_writes_its_first_files_starts_over(tmp_path, written):
    path = sweep(small(seeds=1, epochs=2), tmp_path / "runs")
    shutil.rmtree(path / "checkpoints" / "0000")
    for name in {"config.json", "manifest.json", "metrics.npz"} - set(written):
        (path / name).unlink()
    again = sweep(small(seeds=1, epochs=2), path)
    same_files(again, sweep(small(seeds=1, epochs=2), tmp_path / "straight"))


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
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", program, tmp_path / "eight", tmp_path / "fresh"], check=True, env=environment)
    eight = jaxgrok.load(tmp_path / "eight")
    assert len(eight.sessions[0]["devices"]) == 8
    assert len(eight.batches[0].last.rows) == 16
    cpu = {"batch_runs": 16, "devices": jax.devices("cpu")[:1]}
    one = jaxgrok.load(sweep(small(seeds=11, epochs=20), tmp_path / "one", **cpu))
    for seed in range(11):
        # The same float64 sums in batches of another size.
        np.testing.assert_allclose(eight.curves(seed=seed).train_loss, one.curves(seed=seed).train_loss, rtol=1e-10)
    fresh = jaxgrok.load(tmp_path / "fresh")
    unlimited = jaxgrok.load(sweep(make_sweep({**FRESH, "seeds": 11, "epochs": 20}), tmp_path / "fresh-one", **cpu))
    for seed in range(11):
        np.testing.assert_allclose(
            fresh.curves(seed=seed).train_loss, unlimited.curves(seed=seed).train_loss, rtol=1e-10
        )
    # What eight devices began, one goes on with.
    sweep(small(seeds=11, epochs=30), tmp_path / "eight", **cpu)
    longer = jaxgrok.load(sweep(small(seeds=11, epochs=30), tmp_path / "one", **cpu))
    for seed in range(11):
        both = (jaxgrok.load(tmp_path / "eight").curves(seed=seed), longer.curves(seed=seed))
        np.testing.assert_allclose(both[0].train_loss, both[1].train_loss, rtol=1e-9)


def test_the_steps_say_what_made_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/jaxgrok/__main__.py", "sweep", "--seeds", "2"])
    path = sweep(small(seeds=2), tmp_path / "runs")
    results = jaxgrok.load(path)
    assert results.sessions[0]["command"] == ["jaxgrok", "sweep", "--seeds", "2"]
    assert {"jax", "optax", "flax", "jaxgrok", "python"} <= set(results.sessions[0]["versions"])
    assert len({record.split_hash for record in results.runs}) == 2
    fixed = jaxgrok.load(sweep(small(seeds=2, split_seed=4), tmp_path / "fixed"))
    assert len({record.split_hash for record in fixed.runs}) == 1
    assert all(record.status is Status.TRAINED for record in results.runs)


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
