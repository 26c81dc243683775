"""A sweep is killed at random moments, inside saves too, and what goes on from there is the uninterrupted sweep."""

import multiprocessing
import random

import jax
import pytest

from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import Silent, sweep
from tests.conftest import optimised
from tests.on_disk import same_files

KINDS = {
    "fixed": {"epochs": 1500},
    "until settled": {"until_settled": True, "max_epochs": 1500, "frac": 0.8, "p": 7},
    "unlimited data": {
        "task": "skip_trigram",
        "seq_len": 4,
        "d_model": 4,
        "n_heads": 1,
        "batch_size": 8,
        "epochs": 600,
    },
    "minibatches": {"batch_size": 3, "epochs": 1500},
    "dropout": {"arch": "transformer", "d_model": 4, "n_heads": 1, "d_mlp": 4, "dropout": 0.2, "epochs": 600},
}


def settings_of(kind):
    changes = KINDS[kind]
    network = {} if "task" in changes else {"arch": "mlp", "p": 5, "d_mlp": 8, "frac": 0.5}
    return {**network, "lr": 1e-2, "seeds": 2, "checkpoint_every": 50, "eval_every": 10, **changes}


class Telling(Silent):
    def __init__(self, told):
        self.told = told

    def started(self, curves, plan):
        self.told.set()


def train_in_a_process(settings, path, told):
    sweeping.SAVE_SECONDS = sweeping.SAVE_SHARE = 0  # a save is nearly always under way
    sweeping.SEAL_BYTES = 4000
    jax.config.update("jax_compilation_cache_dir", None)  # which a killed process could tear
    with optimised():
        sweep(make_sweep(settings), path, batch_runs=2, watch=Telling(told))


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_sweep_resumes_bit_for_bit(kind, tmp_path):
    kill_and_resume(kind, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_killed_forty_times_resumes_bit_for_bit(kind, tmp_path):
    kill_and_resume(kind, tmp_path, 40)


def kill_and_resume(kind, tmp_path, kills):
    """SIGKILL so many times: no handler runs, so this is what a crash or a lost node leaves.

    A sweep that ends before it was killed often enough is compared, and another is begun.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.test_kills"])
    moments = random.Random(kind)

    def child(path):
        told = processes.Event()
        process = processes.Process(target=train_in_a_process, args=(settings_of(kind), path, told))
        process.start()
        assert told.wait(120)
        return process

    def train(path):
        process = child(path)
        process.join(240)
        assert process.exitcode == 0

    train(tmp_path / "whole")
    killed = sweeps = 0
    while killed < kills:
        path = tmp_path / str(sweeps)
        sweeps += 1
        while killed < kills:
            process = child(path)
            process.join(moments.uniform(0, 2))
            if not process.is_alive():
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            killed += process.exitcode != 0  # it may have ended just before
        train(path)
        same_files(tmp_path / "whole", path)
