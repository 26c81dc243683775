"""A batch as it stands on disk: how far its runs have come, their curves, and the networks that were saved.

`SavedBatch` reads the steps of a batch as far as they are whole. What is damaged is listed, and the batch is as it was
at the last good step before it. `jaxgrok.store.old` reads the same from a directory of version 0.1.0.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxgrok.config import Config
from jaxgrok.store.curves import SweepCurves
from jaxgrok.store.events import RunEvents, definitions, events_of
from jaxgrok.store.records import RunRecord
from jaxgrok.store.steps import CURVES, PARAMS, STATE, BatchSteps, Damaged, StepRecord
from jaxgrok.tasks import make_task


def curves_for(config: Config, runs: int, epochs: int, eval_every: int, train_every: int) -> SweepCurves:
    """Empty curves for the runs of a batch."""
    n_parts = len(make_task(config).parts)
    return SweepCurves(runs, epochs, eval_every, train_every, "float64" if config.needs_x64 else "float32", n_parts)


def events_of_batch(records: Sequence[RunRecord], curves: SweepCurves) -> list[RunEvents]:
    """The events in the curves of the runs of a batch, in their order."""
    of_runs = ((record, curves.of_run(row)) for row, record in enumerate(records))
    return [events_of(record.task, of_run, record.run.unlimited) for record, of_run in of_runs]


class SavedBatch:
    """What is on disk of one batch, as far as it is whole.

    records: of its runs, as of the last good step. chain: the records of the steps that lead there, oldest first; all
    but the last are sealed. damage: what was found to be damaged or missing.
    """

    def __init__(self, steps: BatchSteps, records: Sequence[RunRecord], epochs: int, eval_every: int, train_every: int):
        self.steps, self.epochs, self.eval_every, self.train_every = steps, epochs, eval_every, train_every
        self._planned = list(records)
        self._found, self.damage = steps.records()
        last = steps.last_known
        if last is not None and not steps.path(last).exists():
            self.damage.append(steps.damaged(last, "it is missing"))
        self._link()

    # --- the chain of steps -------------------------------------------------------------------------------------------

    def _link(self) -> None:
        """Find the steps that lead to the newest whole one."""
        chain: list[StepRecord] = []
        for record in list(self._found.values()):
            before = [step for step in chain if step.sealed]
            expected = (before[-1].epoch, before[-1].digest) if before else (0, "")
            if why := self._foreign(record):
                self._distrust(record.epoch, self.steps.damaged(record.epoch, why))
            elif (record.start, record.parent) == expected:
                chain = [*before, record]
            else:
                self._set_aside(record)
        self.chain = chain

    def _foreign(self, record: StepRecord) -> str:
        """Why a step is not one of this batch; "" if it is."""
        if record.members != [of_run.number for of_run in self._planned]:
            return "it holds other runs than the manifest says"
        for number, identity, of_run in zip(record.members, record.identities, self._planned):
            if identity != of_run.identity:
                return f"its run {number} is another one than the manifest says"
        return ""

    def _set_aside(self, record: StepRecord) -> None:
        """Distrust a step that does not follow the one before it. If that one is damaged, this has been said of it."""
        if record.start and not self.steps.path(record.start).exists():
            why = f"it is missing, and the step {record.epoch} follows it"
            self._distrust(record.start, self.steps.damaged(record.start, why))
        elif not self.damage:
            self._distrust(record.epoch, self.steps.damaged(record.epoch, "it follows another step"))
        self._found.pop(record.epoch, None)

    def _distrust(self, epoch: int, damage: Damaged) -> None:
        self._found.pop(epoch, None)
        if str(damage) not in {str(known) for known in self.damage}:
            self.damage.append(damage)

    def verify(self) -> None:
        """Read everything, and fall back to the last step of which all is whole."""
        for record in list(self.chain):
            try:
                self.steps.load(record, STATE, CURVES, PARAMS)
            except Damaged as damage:
                self._distrust(record.epoch, damage)
                self._link()
                self.verify()
                return

    def current(self) -> "SavedBatch":
        """The batch as it stands now, if training has replaced a step since it was read; else this one."""
        if all(self.steps.path(step.epoch).exists() for step in self.chain):
            return self
        again = SavedBatch(self.steps, self._planned, self.epochs, self.eval_every, self.train_every)
        again.curves()  # falls back if some are damaged
        return again

    # --- what the steps hold ------------------------------------------------------------------------------------------

    @property
    def last(self) -> StepRecord | None:
        """The record of the last good step; None if there is none."""
        return self.chain[-1] if self.chain else None

    @property
    def records(self) -> list[RunRecord]:
        """The records of its runs, as of the last good step."""
        last = self.last
        if last is None:
            return [replace(record, split_hash="") for record in self._planned]
        progress = zip(self._planned, last.last_epoch, last.ended, last.split_hashes)
        return [record.as_of(epoch, ended, split_hash) for record, epoch, ended, split_hash in progress]

    @property
    def is_finished(self) -> bool:
        """Whether every run has trained to its end."""
        last = self.last
        done = [] if last is None else zip(last.last_epoch, last.ended)
        return last is not None and all(ended or epoch >= self.epochs for epoch, ended in done)

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read once after it had trained to its end, and no file has changed since."""
        return not self.damage and self.is_finished and self.steps.are_whole

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions that trained it, oldest first."""
        return list({step.session["started"]: step.session for step in self.chain}.values())

    def curves(self, room: int = 0) -> SweepCurves:
        """The curves of its runs, in their order, with room to record so many epochs.

        If some are damaged, the batch falls back to the step before.
        """
        while True:
            epochs = max([room, *(step.epoch for step in self.chain)])
            curves = curves_for(self._planned[0].config, len(self._planned), epochs, self.eval_every, self.train_every)
            try:
                for step in self.chain:
                    self._put(curves, step)
            except Damaged as damage:
                self._distrust(step.epoch, damage)
                self._link()
                continue
            if self.last is not None:
                curves.last_epoch[:], curves.ended[:] = self.last.last_epoch, self.last.ended
            return curves

    def save_events(self, curves: SweepCurves) -> None:
        """Keep the events in the curves of its last step."""
        events = [of_run.to_json() for of_run in events_of_batch(self.records, curves)]
        self.steps.save_events({**self._origin(), "runs": events})

    def stored_events(self) -> list[RunEvents] | None:
        """The events of its runs, in their order, as `save_events` kept them; None if they are of another step, or
        were found by other definitions."""
        content = self.steps.load_events()
        if content is None or {**content, **self._origin()} != content:
            return None
        try:
            events = [RunEvents.from_json(of_run) for of_run in content["runs"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return events if len(events) == len(self._planned) else None

    def _origin(self) -> dict[str, str]:
        """The step from which events are found, and how."""
        return {"step": self.source, "definitions": definitions(self._planned[0].task)}

    @property
    def source(self) -> str:
        """The digest of its last good step, which names all before it; "" if there is none."""
        return self.last.digest if self.last else ""

    def _put(self, curves: SweepCurves, step: StepRecord) -> None:
        try:
            curves.put(step.start, step.epoch, self.steps.load(step, CURVES)[CURVES])
        except Damaged:
            raise
        except ValueError as error:
            raise self.steps.damaged(step.epoch, error) from None

    def networks(self) -> dict[int, list[tuple[int, int]]]:
        """{step: [(epoch, run), ...]}: the networks that each step of the chain holds, in order."""
        return {step.epoch: step.saved for step in self.chain}

    def digest_of_step(self, epoch: int) -> str:
        return next(step.digest for step in self.chain if step.epoch == epoch)

    def params(self, step: int) -> dict[str, Any]:
        """The parameters in a step of the chain, [network, ...]. Raises Damaged, and names the step."""
        (record,) = (of_step for of_step in self.chain if of_step.epoch == step)
        return unflatten_dict(self.steps.load(record, PARAMS)[PARAMS], sep="/")

    def state(self, record: StepRecord) -> list[np.ndarray]:
        """The leaves of the state in a step, each [row, ...]. Raises Damaged, and names the step."""
        leaves = self.steps.load(record, STATE)[STATE]
        return [leaves[name] for name in sorted(leaves)]
