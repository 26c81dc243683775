"""What several tests ask of a sweep on disk."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.store.curves import RunCurves, SweepCurves
from jaxgrok.store.events import RunEvents, events_of
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.records import RunRecord
from jaxgrok.store.results import Results
from jaxgrok.store.steps import Step, StepRecord
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.layout import Plan
from jaxgrok.training.sweep import Silent, Standing

COORDINATES = ("task", "seed", "frac", "n_train", "wd", "lr")


def curves(path: Path) -> dict[str, np.ndarray]:
    """The arrays of metrics.npz."""
    with np.load(path / "metrics.npz") as arrays:
        return dict(arrays)


def contents(path: Path) -> dict[Path, bytes]:
    """Every file below a directory with its content, but for the lock."""
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and not file.name.startswith(".lock")}


def same_files(first: Path, second: Path) -> None:
    """Assert that two sweeps recorded the same curves and parameters, bit for bit."""
    a, b = curves(first), curves(second)
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    one, two = jaxgrok.load(first), jaxgrok.load(second)
    for record in one.runs:
        at = {name: record.coordinates[name] for name in COORDINATES}
        epochs = one.checkpoint_epochs(record)
        assert epochs == two.checkpoint_epochs(two.record(**at))
        for epoch in epochs:
            for x, y in zip(jax.tree.leaves(one.params(epoch, **at)), jax.tree.leaves(two.params(epoch, **at))):
                np.testing.assert_array_equal(x, y)


def plant(path: Path, config: dict[str, Any], records: list[RunRecord], curves: SweepCurves) -> None:
    """Write a sweep directory whose runs, all of one batch, have these curves. A run without any has not begun."""
    files = SweepFiles(path)
    files.checkpoints.mkdir(parents=True)
    files.write_config(config)
    begun = [record for record in records if curves.last_epoch[record.number]]
    rows = [record.number for record in begun]
    batched = [replace(record, batch=0 if record in begun else None) for record in records]
    epochs = max(record.epochs for record in records)
    runs = {record.number: record.to_manifest() for record in batched}
    files.write_manifest(runs, {0: {"runs": rows, "epochs": epochs}} if begun else {})
    if begun:
        of_batch = curves.of_rows(rows)
        record = StepRecord(
            start=0,
            epoch=int(of_batch.last_epoch.max()),
            parent="",
            sealed=True,
            members=rows,
            identities=[record.identity for record in begun],
            split_hashes=[""] * len(rows),
            last_epoch=of_batch.last_epoch.tolist(),
            ended=of_batch.ended.tolist(),
            rows=rows,
            devices=1,
            saved=[],
            session={"started": "now", "versions": {"jaxgrok": "0", "jax": "1"}, "devices": ["cpu"], "platform": "cpu"},
            arrays={},
        )
        arrays = {"state": {"000": np.ones((1, 1))}, "curves": of_batch.between(0, record.epoch), "params": {}}
        files.steps(0).save(Step(record, arrays))


def tables_see(
    monkeypatch: pytest.MonkeyPatch, results: Results, change: Callable[[RunRecord, RunCurves], RunCurves]
) -> None:
    """Have the tables of a sweep see other curves than are on disk: those that `change` makes of them."""

    def events(record: RunRecord) -> RunEvents:
        return events_of(record.task, change(record, results.curves_of(record)), record.run.unlimited)

    monkeypatch.setattr(results, "events", events)


def seal_every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every checkpoint saved as a step of its own, as those of large networks are."""
    monkeypatch.setattr(sweeping, "SEAL_BYTES", 1)
    monkeypatch.setattr(sweeping, "SEAL_STATES", 0)


class StopAt(Silent):
    """Asks the sweep to stop, as Ctrl-C does, once so many run-epochs were trained."""

    def __init__(self, run_epochs: float, signum: int = signal.SIGINT):
        self.left, self.signum = run_epochs, signum

    def advanced(self, standing: Standing, plan: Plan, run_epochs: int) -> None:
        self.left -= run_epochs
        if self.left <= 0:
            self.left = np.inf
            os.kill(os.getpid(), self.signum)
