"""What several tests ask of a sweep on disk."""

import os
import signal
from pathlib import Path

import jax
import numpy as np

import jaxgrok
from jaxgrok.store.curves import SweepCurves
from jaxgrok.training.layout import Plan
from jaxgrok.training.sweep import Silent

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


class StopAt(Silent):
    """Asks the sweep to stop, as Ctrl-C does, once so many run-epochs were trained."""

    def __init__(self, run_epochs: float, signum: int = signal.SIGINT):
        self.left, self.signum = run_epochs, signum

    def advanced(self, curves: SweepCurves, plan: Plan, run_epochs: int) -> None:
        self.left -= run_epochs
        if self.left <= 0:
            self.left = np.inf
            os.kill(os.getpid(), self.signum)
