"""Many processes fill one directory: shards, hosts, and devices that come and go."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.cli import sweep as command
from jaxgrok.config import BadInput
from jaxgrok.store.files import Shard, SweepFiles
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import Silent, prepare, sweep
from tests.conftest import COMPILED_IN_FULL, REPOSITORY
from tests.on_disk import curves, same_files

SMALL = {"arch": "mlp", "p": 5, "d_mlp": 8, "frac": 0.5, "lr": 1e-2, "eval_every": 5}
FLAGS = ["--arch", "mlp", "--p", "5", "--d-mlp", "8", "--frac", "0.5", "--lr", "0.01", "--eval-every", "5"]
SCRIPT = [sys.executable, str(REPOSITORY / "scripts" / "sweep.py"), *FLAGS]


def small(**settings):
    return make_sweep({**SMALL, "seeds": 5, "epochs": 40, **settings})


def test_shards_fill_one_directory(tmp_path):
    whole = sweep(small(), tmp_path / "whole", batch_runs=2)
    for index in (1, 0, 2):
        path = sweep(small(), tmp_path / "runs", batch_runs=2, shard=Shard(index, 3))
        results = jaxgrok.load(path)
        assert len(curves(path)["last_epoch"]) == 5  # whoever comes may aggregate what is there
        assert len(results.runs) == 5
    same_files(whole, path)


def test_shards_part_the_batches_and_there_are_enough(tmp_path):
    plans = [prepare(small(seeds=64), tmp_path / "runs", shard=Shard(index, 16)) for index in range(16)]
    assert all(len(plan.batches) >= 16 for plan in plans)
    assert all(plan.todo for plan in plans)
    trained = sorted(number for plan in plans for number in plan.todo)
    assert trained == sorted(plans[0].batches)


def test_a_shard_that_died_is_run_again_alone(tmp_path):
    path = tmp_path / "runs"
    sweep(small(), path, batch_runs=2, shard=Shard(0, 3))
    before = {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")}
    sweep(small(), path, batch_runs=2, shard=Shard(0, 3))
    assert {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")} == before
    sweep(small(), path, batch_runs=2, shard=Shard(2, 3))
    assert sorted(curves(path)["last_epoch"].tolist()) == [0, 0, 40, 40, 40]


def test_who_writes_beside_a_shard(tmp_path):
    path = tmp_path / "runs"

    class Others(Silent):
        def started(self, standing, plan):
            with pytest.raises(BadInput, match="no other running sweep"):
                sweep(small(), path, batch_runs=2, shard=Shard(0, 3))  # the same shard
            with pytest.raises(BadInput, match="no other running sweep"):
                sweep(small(), path, batch_runs=2, shard=Shard(1, 4))  # another division
            with pytest.raises(BadInput, match="no other running sweep"):
                sweep(small(), path, batch_runs=2)  # all of it
            sweep(small(), path, batch_runs=2, shard=Shard(1, 3))

    sweep(small(), path, batch_runs=2, shard=Shard(0, 3), watch=Others())
    assert (curves(path)["last_epoch"] == 40).sum() >= 3


@pytest.mark.parametrize("value", ["3", "3/3", "-1/4", "1/0", "a/b", "1/2/3", "", "/", "1/99999999", "²/3"])
def test_a_shard_that_cannot_be_is_refused(value, capsys):
    assert command.main([*FLAGS, f"--shard={value}", "--plan"]) == 2
    assert "--shard: got" in capsys.readouterr().err


def test_flags_of_hosts_need_distributed(capsys):
    assert command.main([*FLAGS, "--process-id", "1", "--plan"]) == 2
    assert "--process-id: got '1'; accepted: with --distributed" in capsys.readouterr().err
    assert command.main([*FLAGS, "--distributed", "--shard", "0/2", "--plan"]) == 2
    assert "--shard" in capsys.readouterr().err


def test_two_shards_at_once(tmp_path):
    whole = sweep(small(), tmp_path / "whole", batch_runs=2)
    words = [*SCRIPT, "--seeds", "5", "--epochs", "40", "--batch-runs", "2", "--out", "runs", "--shard"]
    children = [
        subprocess.Popen([*words, f"{index}/2"], cwd=tmp_path, env=COMPILED_IN_FULL, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    for child in children:
        _, error = child.communicate(timeout=240)
        assert child.returncode == 0, error
    results = jaxgrok.load(tmp_path / "runs")
    assert [record.last_epoch for record in results.runs] == [40] * 5
    assert len(results.sessions) == 2
    for record in results.runs:  # the same program, compiled with and without XLA's optimisations
        ours, theirs = (jaxgrok.load(path).curves(seed=record.seed) for path in (tmp_path / "runs", whole))
        np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-4)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def hosts(tmp_path, epochs):
    """Two processes of one job on this machine."""
    words = [*SCRIPT, "--seeds", "4", "--epochs", str(epochs), "--out", "runs", "--distributed"]
    words += ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [
        subprocess.Popen([*words, str(index)], cwd=tmp_path, env=COMPILED_IN_FULL, text=True, **pipes)
        for index in range(2)
    ]


def test_a_shard_joins_another_that_writes_its_plan_meanwhile(tmp_path, monkeypatch):
    """One asks whether a sweep was begun there; before it asks what else is there, the other begins it."""
    holds = SweepFiles.holds_something_else

    def meanwhile(files):
        monkeypatch.undo()
        other = prepare(small(), tmp_path / "runs", batch_runs=1, shard=Shard(1, 2))
        other.files.checkpoints.mkdir(parents=True)
        other.write()
        return holds(files)

    monkeypatch.setattr(SweepFiles, "holds_something_else", meanwhile)
    assert prepare(small(), tmp_path / "runs", batch_runs=1, shard=Shard(0, 2)).todo == (0, 2, 4)


def test_two_processes_of_one_job_each_take_a_shard(tmp_path):
    for child in hosts(tmp_path, 40):
        _, error = child.communicate(timeout=240)
        assert child.returncode == 0, error
    results = jaxgrok.load(tmp_path / "runs")
    assert [record.last_epoch for record in results.runs] == [40] * 4
    assert len({session["process"] for session in results.sessions}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_of_a_job_is_killed_and_run_again_alone(tmp_path, killed):
    children = hosts(tmp_path, 30_000)
    while len(list((tmp_path / "runs" / "checkpoints").glob("*"))) < 2:
        assert all(child.poll() is None for child in children)
    children[killed].kill()
    children[killed].communicate()
    _, error = children[1 - killed].communicate(timeout=500)
    assert children[1 - killed].returncode == 0, error
    runs = jaxgrok.load(tmp_path / "runs").runs
    survived = [record.last_epoch for record in runs if record.batch is not None and record.batch % 2 != killed]
    assert survived == [30_000] * 2
    words = [*SCRIPT, "--seeds", "4", "--epochs", "30000", "--out", "runs", "--shard", f"{killed}/2"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert [record.last_epoch for record in jaxgrok.load(tmp_path / "runs").runs] == [30_000] * 4


def test_what_eight_devices_began_three_and_one_go_on_with(tmp_path):
    program = (
        "import sys, jax\n"
        "from jaxgrok.training.grid import make_sweep\n"
        "from jaxgrok.training.sweep import sweep\n"
        f"settings = { {**SMALL, 'seeds': 11}!r}\n"
        "sweep(make_sweep({**settings, 'epochs': int(sys.argv[2])}), sys.argv[1], batch_runs=16)\n"
        "print(len(jax.local_devices()))\n"
    )
    for devices, epochs in ((8, 20), (3, 30), (1, 40)):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
        subprocess.run([sys.executable, "-c", program, tmp_path / "runs", str(epochs)], check=True, env=environment)
    results = jaxgrok.load(tmp_path / "runs")
    assert results.batches[0].last.devices == 1
    assert len(results.batches[0].last.rows) == 11  # the padding of eight devices is left behind
    one = jaxgrok.load(sweep(small(seeds=11), tmp_path / "one", batch_runs=16))
    for seed in range(11):  # float32, in batches of another size
        ours, theirs = results.curves(seed=seed).train_loss, one.curves(seed=seed).train_loss
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert len(jax.tree.leaves(results.params(seed=3))) == len(jax.tree.leaves(one.params(seed=3)))
