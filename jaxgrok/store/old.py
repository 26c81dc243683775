"""Directories of version 0.1.0, for reading: the same as `jaxgrok.store.batches`, from the layout of that version.

    runs/NAME/manifest.json         runs with their status, batches, versions
              metrics.npz           the curves of all runs
              checkpoints/B/E/      the parameters of batch B after E updates (orbax), and the run of each row

Such a directory holds no digests, so only damage that makes a file unreadable is noticed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxgrok.store.curves import SweepCurves
from jaxgrok.store.records import RunRecord
from jaxgrok.store.steps import BatchSteps, Damaged


class OldBatch:
    """One batch of an old directory. curves: of all runs of the directory."""

    is_whole, source = False, ""  # nothing tells

    def __init__(self, steps: BatchSteps, records: Sequence[RunRecord], curves: SweepCurves, sessions: list[Any]):
        self.steps, self.records, self._curves, self.sessions = steps, list(records), curves, sessions
        self.damage: list[Damaged] = []
        last = {record.number: int(curves.last_epoch[record.number]) for record in records}
        self._runs = {epoch: [run for run in last if epoch <= last[run]] for epoch in steps.epochs()}

    def curves(self) -> SweepCurves:
        return self._curves.of_rows([record.number for record in self.records])

    def stored_events(self) -> None:
        """Nothing: an old directory keeps no events."""

    def networks(self) -> dict[int, list[tuple[int, int]]]:
        return {epoch: [(epoch, run) for run in runs] for epoch, runs in self._runs.items() if runs}

    def current(self) -> "OldBatch":
        """The batch itself: nothing trains in an old directory."""
        return self

    def digest_of_step(self, epoch: int) -> str:
        return ""

    def params(self, step: int) -> dict[str, Any]:
        path = self.steps.path(step)
        try:
            tree = _restore(path)
            rows = [tree["run"].tolist().index(run) for run in self._runs[step]]
            return jax.tree.map(lambda leaf: leaf[rows], tree["params"])
        except Exception as error:  # a damaged checkpoint makes orbax and tensorstore raise nearly anything
            raise Damaged(path, error) from None


def _restore(path: Path) -> dict[str, Any]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path.absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path.absolute(), restore_args=as_numpy)
