"""How the commands use the machine: the compilation cache, a device for each core, and memory that is kept."""

import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.cli import machine
from jaxgrok.store.steps import PADDING
from jaxgrok.training.batch import LiveBatch
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.layout import prepare
from tests.conftest import COMPILED_IN_FULL, REPOSITORY

SWEEP = [sys.executable, str(REPOSITORY / "scripts" / "sweep.py"), "--p", "7", "--d-model", "8", "--seeds", "2"]
CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An environment without settings of the cache, before jax is imported, with a home of its own."""
    for name in (*CACHE, "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax")
    return tmp_path / "jaxgrok"


def test_what_is_compiled_is_kept_in_the_users_cache(fresh):
    machine.keep_compiled(wanted=True)
    assert os.environ[CACHE[0]] == str(machine.cache_folder())
    assert machine.cache_folder().parent == fresh
    assert machine.cache_folder().is_dir()
    assert os.environ[CACHE[1]] == "1000000000"
    assert "JAX_ENABLE_COMPILATION_CACHE" not in os.environ


def test_each_kind_of_processor_has_a_folder_of_its_own(fresh, monkeypatch):
    folders = set()
    for processor in ("x86_64 avx2", "x86_64 avx512f"):
        monkeypatch.setattr(machine, "_processor", lambda processor=processor: processor)
        folders.add(machine.cache_folder())
    assert len(folders) == 2


def test_a_cache_of_the_users_own_is_left_alone(fresh, monkeypatch):
    monkeypatch.setenv(CACHE[0], "/elsewhere")
    machine.keep_compiled(wanted=True)
    assert os.environ[CACHE[0]] == "/elsewhere"
    assert not fresh.exists()


def test_without_a_cache_that_can_be_written_there_is_none(fresh):
    fresh.write_text("a file where the folder should be")
    machine.keep_compiled(wanted=True)
    assert CACHE[0] not in os.environ


def test_the_flag_turns_the_cache_off_for_the_processes_below_too(fresh):
    machine.keep_compiled(wanted=False)
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert not fresh.exists()


def test_what_a_killed_process_left_half_written_is_forgotten(fresh):
    folder = machine.cache_folder()
    folder.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "torn-cache"):
        (folder / name).write_bytes(b"12345678")
    machine.keep_compiled(wanted=True)
    assert {file.name for file in folder.iterdir()} == {"whole-cache", "whole-atime"}


def test_a_kept_program_computes_the_same_bits(tmp_path):
    """Compiled anew without a cache, compiled into an empty one, and taken from it."""
    env = {**COMPILED_IN_FULL, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    cold = ["--no-compilation-cache", "--epochs", "30"]
    for name, flags in (("without", cold), ("first", cold[1:]), ("second", cold[1:])):
        subprocess.run([*SWEEP, *flags, "--out", tmp_path / name], check=True, env=env, capture_output=True)
        assert (tmp_path / "cache" / "jaxgrok").exists() == (name != "without")
    kept = sorted((tmp_path / "cache" / "jaxgrok").rglob("*-cache"))
    assert any(file.name.startswith("jit_advance") for file in kept)
    with np.load(tmp_path / "without" / "metrics.npz") as without:
        for name in ("first", "second"):
            with np.load(tmp_path / name / "metrics.npz") as other:
                for array in without.files:
                    np.testing.assert_array_equal(other[array], without[array], err_msg=array)


def test_each_core_is_a_device_and_each_run_of_a_batch_has_one(tmp_path):
    env = {name: value for name, value in COMPILED_IN_FULL.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([*SWEEP, "--epochs", "10", "--out", tmp_path], check=True, env=env, capture_output=True)
    results = jaxgrok.load(tmp_path)
    assert len(results.sessions[0]["devices"]) == machine.n_cores()
    assert results.batches[0].last.devices == min(2, machine.n_cores())


def test_few_runs_take_few_devices():
    """In a process with eight devices: as many as halving leaves, so that few of them train nothing but padding."""
    program = (
        "from tests.test_machine import live_batch\n"
        "for seeds in (1, 2, 3, 5, 9):\n"
        "    batch = live_batch(seeds)\n"
        "    print(len(batch.devices), len(batch.run))\n"
        "    batch.drop(list(batch.batch.runs[1:]))\n"
        "    print(len(batch.devices), batch.run.tolist())\n"
        "    batch.advance()\n"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, env=env, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert found.stdout.splitlines()[::2] == ["1 1", "2 2", "4 4", "8 8", "8 16"]
    assert found.stdout.splitlines()[1::2] == ["1 [0]"] * 5


def live_batch(seeds: int) -> LiveBatch:
    """A batch of so many runs that has not begun, on every device of this process."""
    sweep = make_sweep({"p": 7, "d_model": 8, "n_heads": 2, "seeds": seeds, "epochs": 10})
    plan = prepare(sweep, "nowhere", batch_runs=16, devices=jax.devices())
    batch = LiveBatch(plan, 0, plan.saved(0))
    assert (batch.run != PADDING).sum() == seeds
    return batch


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_memory_is_kept_for_the_next_program():
    program = (
        "import resource, sys\n"
        "from jaxgrok.cli.machine import keep_memory\n"
        "keep_memory() if sys.argv[1] == 'kept' else None\n"
        "bytearray(10**8)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytearray(10**8)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        name: int(subprocess.run([sys.executable, "-c", program, name], check=True, capture_output=True).stdout)
        for name in ("kept", "given back")
    }
    assert faults["kept"] < 100
    assert faults["given back"] > 100
