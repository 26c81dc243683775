"""When things happen in a run: the events in its curves, its outcome, and whether it has settled (spec: MEASURES.md).

`time_run` finds them in the curves of one run, or of one part of its task. `events_of` collects what the tables say of
a run, in a form that is kept on disk, so that tables need no curves of runs that have ended.

Plain numpy on the curves of one run. An event is the first evaluation at which its criterion holds and keeps holding
for the next 5 evaluations, or to the end of the run. It is stored as a bracket (after, by]: not yet at `after`, there
at `by`.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import median_filter

from jaxgrok.stats import Arrival
from jaxgrok.store.curves import RunCurves
from jaxgrok.tasks import Criterion, Task

HOLD = 5  # evaluations for which an event must keep holding
PEAK_WINDOW = 11  # evaluations of the running median that finds the test-loss peak
LAST = 10  # evaluations whose median is the bottom of a fall of the test loss
FLOOR = 1e-12  # losses below this count as this in a fall of the log loss
MEMORISED_ACCURACY = 0.99
SENSITIVITY = {"grokked_90": 0.90, "grokked_95": 0.95}  # test accuracies reported beside `grokked`
SHARES = (10, 50, 90)  # per cent of a fall
EVENTS = (
    *("memorised", "grokked_90", "grokked_95", "grokked", "lost"),
    *("test_loss_peak", "drop_10", "drop_50", "drop_90"),
)
# The falls of the restricted loss, and when both losses have fallen: known only once the checkpoints were analysed.
CIRCUIT_EVENTS = ("restricted_10", "restricted_50", "restricted_90", "stable")
FALLS = ("drop_10", "drop_50", "drop_90", *CIRCUIT_EVENTS)  # events that are known only of settled runs
# stage: (the event it starts with, the event it ends with). None: the start or the end of the run.
STAGES = {
    "memorisation": (None, "test_loss_peak"),
    "interpolation": ("test_loss_peak", "restricted_10"),
    "generalisation": ("restricted_10", "restricted_90"),
    "clean-up": ("drop_10", "drop_90"),
    "stability": ("stable", None),
}
SETTLED_FACTOR, SETTLED_EPOCHS = 1.5, 2000

Bracket = tuple[int, int]  # (after, by] in epochs


class Outcome(StrEnum):
    """What became of a run by its last epoch. `learned` is what `grokked` is called on unlimited data."""

    GROKKED = "grokked"
    LOST = "lost"
    MEMORISED_ONLY = "memorised only"
    NOT_MEMORISED = "not memorised"
    LEARNED = "learned"
    NOT_LEARNED = "not learned"
    DIVERGED = "diverged"


class RestrictedLoss(NamedTuple):
    """The restricted loss over all pairs at a run's checkpoints."""

    epoch: Int[np.ndarray, "C"]
    loss: Float[np.ndarray, "C"]


@dataclass(frozen=True)
class Timing:
    """When the events of one run happened.

    events: {event: its bracket}, without the events that the run did not reach.
    last_epoch: updates done, and so the censoring time of what was not reached; for a diverged run, its last finite
    evaluation.
    """

    outcome: Outcome
    last_epoch: int
    settled: bool
    unlimited: bool = False
    events: dict[str, Bracket] = field(default_factory=dict)

    def by(self, event: str) -> int | None:
        """The upper end of an event's bracket; None if the run did not reach it."""
        return self.events[event][1] if event in self.events else None

    def arrival(self, event: str) -> Arrival | None:
        """When the run reached an event, or how long it was watched without reaching it. None if that cannot be known:
        the falls of the loss are known only of settled runs, and on unlimited data nothing is memorised."""
        by = self.by(event)
        if by is not None:
            return Arrival(by, True)
        if event in FALLS or (event == "memorised" and self.unlimited):
            return None
        return self._not_reached(self.last_epoch)

    def _not_reached(self, watched: int) -> Arrival:
        return Arrival(watched, False, ruled_out=self.outcome is Outcome.DIVERGED)

    @property
    def delay(self) -> int | None:
        """Epochs from memorised to grokked."""
        memorised, grokked = self.by("memorised"), self.by("grokked")
        return None if memorised is None or grokked is None else grokked - memorised

    @property
    def delay_arrival(self) -> Arrival | None:
        """The delay, or how long the run was watched after it memorised. None for a run that never memorised."""
        memorised = self.by("memorised")
        if memorised is None:
            return None
        return self._not_reached(self.last_epoch - memorised) if self.delay is None else Arrival(self.delay, True)

    @property
    def drop_width(self) -> int | None:
        """Epochs from drop_10 to drop_90. None unless the run has settled."""
        start, end = self.by("drop_10"), self.by("drop_90")
        return None if start is None or end is None else end - start

    @property
    def watched(self) -> int | None:
        """Epochs that the run was trained after it grokked."""
        grokked = self.by("grokked")
        return None if grokked is None else self.last_epoch - grokked

    def stages(self) -> dict[str, tuple[int, int]]:
        """{stage: (start, end)} in epochs, for the stages whose bounds are known. Stages may overlap."""
        bounds = {
            stage: (0 if start is None else self.by(start), self.last_epoch if end is None else self.by(end))
            for stage, (start, end) in STAGES.items()
        }
        return {stage: (start, end) for stage, (start, end) in bounds.items() if start is not None and end is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Timing":
        """The timing that `asdict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        events = {event: (after, by) for event, (after, by) in content["events"].items()}
        timing = cls(**{**content, "outcome": Outcome(content["outcome"]), "events": events})
        epochs = [timing.last_epoch, *(epoch for bracket in events.values() for epoch in bracket)]
        if not all(type(epoch) is int for epoch in epochs) or not set(events) <= set(EVENTS):
            raise ValueError("an event or an epoch is none")
        if not type(timing.settled) is type(timing.unlimited) is bool:
            raise TypeError("a switch is none")
        return timing


def first_held(holds: Bool[np.ndarray, "T"]) -> int | None:
    """The first index from which `holds` is true for HOLD more entries, or to the end; None if there is none."""
    n = len(holds)
    stops = np.append(np.flatnonzero(~holds), n)  # each stretch of true entries ends before one of these
    starts = np.append(0, stops[:-1] + 1)
    held = (stops - starts > HOLD) | ((stops == n) & (stops > starts))
    return int(starts[np.argmax(held)]) if held.any() else None


def _lost_index(holds: Bool[np.ndarray, "T"]) -> int | None:
    """The first index from which `holds` is false to the end, if that is for at least HOLD entries; else None."""
    held = np.flatnonzero(holds)
    first = int(held[-1]) + 1 if len(held) else 0
    return first if len(holds) - first >= HOLD else None


def settled_epoch(grokked_by: int) -> float:
    """A run that grokked by this epoch has settled once it has trained to the returned one."""
    return max(SETTLED_FACTOR * grokked_by, grokked_by + SETTLED_EPOCHS)


def _bracket(epochs: np.ndarray, index: int) -> Bracket:
    return int(epochs[max(index - 1, 0)]), int(epochs[index])


def _peak(test_loss: np.ndarray, before: int) -> tuple[int, float] | None:
    """The index and height of the largest running median before an index. None if it is within the curve's last HOLD
    evaluations, where it may not be the peak yet."""
    if not before:
        return None
    smooth = median_filter(test_loss, PEAK_WINDOW, mode="nearest")
    index = int(np.argmax(smooth[:before]))
    return None if index >= len(test_loss) - HOLD else (index, float(smooth[index]))


def _falls(name: str, epochs, loss, index: int, top: float, bottom: float) -> dict[str, Bracket]:
    """{name_10, name_50, name_90}: when the log loss has fallen by these shares from `top`, at `index`, to `bottom`."""
    top, bottom, log_loss = (np.log(np.maximum(x, FLOOR)) for x in (top, bottom, loss))
    events = {}
    for share in SHARES:
        held = first_held(log_loss[index + 1 :] <= top - share / 100 * (top - bottom))
        if top > bottom and held is not None:
            events[f"{name}_{share}"] = _bracket(epochs, index + 1 + held)
    return events


def _drop(epochs, test_loss, index: int, top: float) -> dict[str, Bracket]:
    """The fall of the test loss from its peak, at `index`, to the geometric median of its last evaluations."""
    bottom = np.exp(np.median(np.log(np.maximum(test_loss[-LAST:], FLOOR))))
    return _falls("drop", epochs, test_loss, index, top, bottom)


def _restricted_falls(restricted: RestrictedLoss, grokked_by: int) -> dict[str, Bracket]:
    """The fall of the restricted loss at checkpoints, from its largest value to its last.

    Checkpoints are tens of evaluations apart on a smooth curve: a running median over 11 of them would span whole
    stages.
    """
    epochs, loss = restricted
    before = int(np.searchsorted(epochs, grokked_by))
    if not before or not np.isfinite(loss).all():
        return {}
    index = int(np.argmax(loss[:before]))
    return _falls("restricted", epochs, loss, index, loss[index], loss[-1])


@dataclass(frozen=True)
class Spike:
    """A slingshot. start, end: its first and last epoch above the threshold. peak, peak_epoch: the largest train loss
    in it. factor: the peak over the level before the spike."""

    start: int
    end: int
    peak_epoch: int
    peak: float
    factor: float


SPIKE_WINDOW, SPIKE_FACTOR = 50, 10  # entries of the level before a spike, and how far above it a spike is


def spikes(epochs: Int[np.ndarray, "T"], train_loss: Float[np.ndarray, "T"]) -> list[Spike]:
    """The slingshots of a train loss with one entry an epoch: where it is above SPIKE_FACTOR times the median of the
    SPIKE_WINDOW entries before. Stretches no more than a window apart are one spike."""
    loss = np.asarray(train_loss)
    if len(loss) <= SPIKE_WINDOW:
        return []
    before = np.median(np.lib.stride_tricks.sliding_window_view(loss, SPIKE_WINDOW)[:-1], axis=1)
    high = SPIKE_WINDOW + np.flatnonzero(loss[SPIKE_WINDOW:] > SPIKE_FACTOR * before)
    found = []
    for stretch in np.split(high, np.flatnonzero(np.diff(high) > SPIKE_WINDOW) + 1) if len(high) else []:
        peak = stretch[np.argmax(loss[stretch])]
        level = before[stretch[0] - SPIKE_WINDOW]
        start, end, peak_epoch = (int(epochs[i]) for i in (stretch[0], stretch[-1], peak))
        found.append(Spike(start, end, peak_epoch, float(loss[peak]), float(loss[peak] / level)))
    return found


def with_restricted(timing: Timing, restricted: RestrictedLoss) -> Timing:
    """The timing of a run with the falls of its restricted loss, and when it became stable, if it has settled."""
    grokked = timing.by("grokked")
    if not timing.settled or grokked is None:
        return timing
    events = timing.events | _restricted_falls(restricted, grokked)
    if "drop_90" in events and "restricted_90" in events:
        events["stable"] = max((events["drop_90"], events["restricted_90"]), key=lambda bracket: bracket[1])
    return replace(timing, events=events)


def time_run(curves: RunCurves, criterion: Criterion, *, unlimited: bool = False) -> Timing:
    """The events of one run, or of one part of its task (`RunCurves.of_part`).

    criterion: when it counts as grokked. unlimited: whether the data were, so that nothing can be memorised. A
    non-finite loss means divergence.
    """
    finite = np.isfinite(curves.test_loss) & np.isfinite(curves.train_acc)
    diverged = not finite.all() or not np.isfinite(curves.train_loss).all()
    stop = len(finite) if finite.all() else int(np.argmin(finite))
    epochs, test_loss = np.asarray(curves.epoch_eval)[:stop], curves.test_loss[:stop]
    train_acc, test_acc = curves.train_acc[:stop], curves.test_acc[:stop]
    last_epoch = (int(epochs[-1]) if stop else 0) if diverged else curves.last_epoch

    events, grokking = {}, criterion.holds(test_acc, test_loss)
    holds = {name: test_acc >= accuracy for name, accuracy in SENSITIVITY.items()} | {"grokked": grokking}
    if not unlimited:
        holds = {"memorised": train_acc >= MEMORISED_ACCURACY} | holds
    for event, held in holds.items():
        if (index := first_held(held)) is not None:
            events[event] = _bracket(epochs, index)
    grokked = events["grokked"][1] if "grokked" in events else None
    lost = None if grokked is None or diverged else _lost_index(grokking)
    if lost is not None:
        events["lost"] = _bracket(epochs, lost)
    settled = not diverged and grokked is not None and lost is None and last_epoch >= settled_epoch(grokked)

    peak = _peak(test_loss, len(epochs) if grokked is None else int(np.searchsorted(epochs, grokked)))
    if peak is not None:
        events["test_loss_peak"] = _bracket(epochs, peak[0])
        if settled:
            events |= _drop(epochs, test_loss, *peak)
    return Timing(_outcome(events, diverged, unlimited), last_epoch, settled, unlimited, events)


def _outcome(events: dict[str, Bracket], diverged: bool, unlimited: bool) -> Outcome:
    if diverged:
        return Outcome.DIVERGED
    if "lost" in events:
        return Outcome.LOST
    if unlimited:
        return Outcome.LEARNED if "grokked" in events else Outcome.NOT_LEARNED
    if "grokked" in events:
        return Outcome.GROKKED
    return Outcome.MEMORISED_ONLY if "memorised" in events else Outcome.NOT_MEMORISED


# --- what is kept on disk ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartEvents:
    """What tables say of one part of a run's task.

    timing: its events (`Task.part_criterion`); None for a part that the loss does not count, or of which the run's test
    set has no target. final_loss, final_accuracy: the medians over the last evaluations; None before the first.
    """

    timing: Timing | None
    final_loss: float | None
    final_accuracy: float | None


@dataclass(frozen=True)
class RunEvents:
    """What tables say of one run: its events, and those of the parts of its task by name."""

    timing: Timing
    parts: dict[str, PartEvents]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunEvents":
        """The events that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        parts = {}
        for name, part in content["parts"].items():
            timing = None if part["timing"] is None else Timing.from_json(part["timing"])
            final = part["final_loss"], part["final_accuracy"]
            if not all(value is None or type(value) is float for value in final):
                raise TypeError("a loss or an accuracy is none")
            parts[name] = PartEvents(timing, *final)
        return cls(Timing.from_json(content["timing"]), parts)


def events_of(task: Task, curves: RunCurves, unlimited: bool) -> RunEvents:
    """The events in the curves of one run. unlimited: whether its data were."""
    parts = {}
    for i, name in enumerate(task.parts):
        of_part, timing = curves.of_part(i), None
        has_targets = not len(of_part.test_loss) or not np.isnan(of_part.test_loss).all()
        if i < task.counted and has_targets:
            timing = time_run(of_part, task.part_criterion(name), unlimited=unlimited)
        parts[name] = PartEvents(timing, _final(of_part.test_loss), _final(of_part.test_acc))
    return RunEvents(time_run(curves, task.criterion, unlimited=unlimited), parts)


def _final(curve: Float[np.ndarray, "T"]) -> float | None:
    """The median over the last evaluations; None before the first."""
    return float(np.median(curve[-LAST:])) if len(curve) else None


@functools.cache
def definitions(task: Task) -> str:
    """A digest of how events are defined for a task. Events on disk that were found by other definitions are not used.

    It is taken of this module's own text, so that no change of a definition can be forgotten.
    """
    criteria = [task.criterion, *(task.part_criterion(part) for part in task.parts[: task.counted])]
    return hashlib.sha256(Path(__file__).read_bytes() + repr(criteria).encode()).hexdigest()[:16]
