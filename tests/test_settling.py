"""Sweeps whose runs end once they have settled."""

import numpy as np
import pytest

import jaxgrok
from jaxgrok.store import events
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.run import train
from jaxgrok.training.sweep import Interrupted, sweep
from tests.conftest import optimised
from tests.on_disk import StopAt, curves, same_files

SETTLING = {"p": 19, "d_model": 32, "frac": 0.9, "lr": 5e-3, "seeds": 3, "until_settled": True, "max_epochs": 1500}
LONGER = 300  # 2,000 epochs after grokking, in earnest (test_phases.py): too long for a test


@pytest.fixture(scope="module", autouse=True)
def settling_soon():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "settled_epoch", lambda grokked: max(1.5 * grokked, grokked + LONGER))
        yield


@pytest.fixture(scope="module")
def settled(tmp_path_factory, settling_soon):
    """Three runs that settle at different epochs, in one batch: it halves as they leave."""
    with optimised():
        return sweep(make_sweep(SETTLING), tmp_path_factory.mktemp("settling") / "runs", batch_runs=3)


def test_settled_runs_leave_and_the_batch_halves(settled):
    results = jaxgrok.load(settled)
    timings = [results.timing(record) for record in results.runs]
    assert all(timing.settled for timing in timings)
    every = SETTLING["max_epochs"] // 100  # epochs between checkpoints, where a run may leave
    for timing in timings:
        assert 0 <= timing.last_epoch - max(1.5 * timing.by("grokked"), timing.by("grokked") + LONGER) <= every
    # The batch has halved: its last state has no row for the runs that left first.
    assert len(results.batches[0].last.rows) == 1
    for record, timing in zip(results.runs, timings):
        assert results.checkpoint_epochs(record)[-1] == timing.last_epoch


def test_across_a_halving_runs_agree_to_rounding(settled):
    results = jaxgrok.load(settled)
    last = max(results.runs, key=lambda record: record.last_epoch)
    _, curve = train(last.config, seed=last.seed, frac=0.9, lr=5e-3, epochs=300, eval_every=10)
    # float32 over 300 epochs, in batches of another size
    np.testing.assert_allclose(results.curves(seed=last.seed).train_loss[:300], curve.train_loss, rtol=5e-3)


@pytest.mark.slow
def test_an_interrupted_settling_sweep_resumes_bit_for_bit(settled, tmp_path):
    path = tmp_path / "runs"
    trained = curves(settled)["last_epoch"]
    for stop in (int(trained.sum() * 0.5), int(trained.sum() * 0.45)):
        with pytest.raises(Interrupted):
            sweep(make_sweep(SETTLING), path, batch_runs=3, watch=StopAt(stop))
    same_files(settled, sweep(make_sweep(SETTLING), path, batch_runs=3))


@pytest.mark.slow
def test_more_max_epochs_train_only_what_had_not_settled(settled, tmp_path):
    path = tmp_path / "runs"
    shorter = int(curves(settled)["last_epoch"].max()) - 60
    sweep(make_sweep({**SETTLING, "max_epochs": shorter}), path, batch_runs=3)
    first = jaxgrok.load(path)
    open_runs = [record.seed for record in first.runs if not first.timing(record).settled]
    assert 0 < len(open_runs) < 3
    sweep(make_sweep(SETTLING), path, batch_runs=3)
    longer = jaxgrok.load(path)
    for record in longer.runs:
        assert longer.timing(record).settled
        if record.seed not in open_runs:
            assert record.last_epoch == first.record(seed=record.seed).last_epoch
