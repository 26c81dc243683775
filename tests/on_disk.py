"""What several tests ask of a sweep on disk."""

import os
import signal

import jax
import numpy as np

import jaxgrok
from jaxgrok.training.sweep import Silent


def curves(path):
    with np.load(path / "metrics.npz") as arrays:
        return dict(arrays)


def same_files(first, second):
    """Whether two sweeps recorded the same curves and parameters, bit for bit."""
    a, b = curves(first), curves(second)
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    one, two = jaxgrok.load(first), jaxgrok.load(second)
    for record in one.runs:
        at = {name: record[name] for name in ("task", "seed", "frac", "n_train", "wd", "lr")}
        assert one.checkpoint_epochs(**at) == two.checkpoint_epochs(**at)
        for epoch in one.checkpoint_epochs(**at):
            for x, y in zip(jax.tree.leaves(one.params(epoch, **at)), jax.tree.leaves(two.params(epoch, **at))):
                np.testing.assert_array_equal(x, y)


class StopAt(Silent):
    """Asks the sweep to stop, as Ctrl-C does, once so many run-epochs were trained."""

    def __init__(self, run_epochs, signum=signal.SIGINT):
        self.left, self.signum = run_epochs, signum

    def advanced(self, metrics, plan, run_epochs):
        self.left -= run_epochs
        if self.left <= 0:
            self.left = np.inf
            os.kill(os.getpid(), self.signum)
