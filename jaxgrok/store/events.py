"""When things happen in a run: events from its curves, its outcome, and whether it has settled (spec: MEASURES.md).

Plain numpy on one run's curves. An event is the first evaluation at which its criterion holds and goes on holding for
the next 5, or to the end of the run; it is kept as a bracket (after, by]: not yet at `after`, there at `by`.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import median_filter

HOLD = 5  # evaluations that an event must go on holding for
WINDOW = 11  # evaluations of the running median that finds the test-loss peak
FLOOR = 1e-12  # losses below this count as this, in the fall of the log loss
ACCURACIES = {"memorised": ("train", 0.99), "grokked_90": ("test", 0.90), "grokked_95": ("test", 0.95), "grokked": ("test", 0.99)}
EVENTS = ("memorised", "grokked_90", "grokked_95", "grokked", "test_loss_peak", "drop_10", "drop_50", "drop_90")
# The same of the restricted loss, and when both have fallen: only where checkpoints were analysed.
CIRCUIT_EVENTS = ("restricted_10", "restricted_50", "restricted_90", "stable")
FALLS = ("drop_", "restricted_", "stable")  # events that only a grokked and settled run has
# stage: (the event it starts with, the event it ends with); None: the start or the end of the run
STAGES = {
    "memorisation": (None, "test_loss_peak"),
    "interpolation": ("test_loss_peak", "restricted_10"),
    "generalisation": ("restricted_10", "restricted_90"),
    "clean-up": ("drop_10", "drop_90"),
    "stability": ("stable", None),
}
OUTCOMES = ("grokked", "memorised only", "not memorised", "learned", "not learned", "diverged")  # learned: on unlimited data


@dataclass(frozen=True)
class Timing:
    """One run, timed. events: {event: (after, by)} in epochs, absent where the event was not reached.

    last_epoch: updates done, and the censoring time of what was not reached; for a diverged run its last finite
    evaluation. width: drop_90 - drop_10 in epochs, None unless the run grokked and settled.
    """

    outcome: str
    last_epoch: int
    settled: bool
    events: dict[str, tuple[int, int]] = field(default_factory=dict)

    def by(self, event: str) -> int | None:
        return self.events[event][1] if event in self.events else None

    @property
    def delay(self) -> int | None:
        """Epochs from memorised to grokked."""
        if "memorised" in self.events and "grokked" in self.events:
            return self.by("grokked") - self.by("memorised")

    @property
    def width(self) -> int | None:
        if "drop_10" in self.events and "drop_90" in self.events:
            return self.by("drop_90") - self.by("drop_10")

    def stages(self) -> dict[str, tuple[int, int]]:
        """{stage: (start, end)} in epochs, of the stages whose bounds are known; they may overlap."""
        bounds = {
            stage: (0 if start is None else self.by(start), self.last_epoch if end is None else self.by(end))
            for stage, (start, end) in STAGES.items()
        }
        return {stage: (start, end) for stage, (start, end) in bounds.items() if start is not None and end is not None}


def first_held(holds: np.ndarray) -> int | None:
    """The first index from which `holds` [T] is true for HOLD more entries or to the end; None if there is none."""
    n = len(holds)
    stops = np.append(np.flatnonzero(~holds), n)  # each stretch of true entries ends before one of these
    starts = np.append(0, stops[:-1] + 1)
    held = (stops - starts > HOLD) | ((stops == n) & (stops > starts))
    return int(starts[np.argmax(held)]) if held.any() else None


def settled_epoch(grokked_by: int) -> float:
    """A run that grokked here has settled once trained to this epoch."""
    return max(1.5 * grokked_by, grokked_by + 2000)


def _bracket(epochs, index) -> tuple[int, int]:
    return int(epochs[max(index - 1, 0)]), int(epochs[index])


def _peak(test_loss, before: int) -> tuple[int, float] | None:
    """Index and height of the largest running median before an index; None within the last HOLD evaluations of the curve."""
    if not before:
        return None
    smooth = median_filter(test_loss, WINDOW, mode="nearest")
    index = int(np.argmax(smooth[:before]))
    return None if index >= len(test_loss) - HOLD else (index, float(smooth[index]))


def _falls(name, epochs, loss, index, top, bottom) -> dict:
    """{name_10, name_50, name_90}: when the log loss has fallen by these shares from `top`, at `index`, to `bottom`."""
    top, bottom, log_loss = (np.log(np.maximum(x, FLOOR)) for x in (top, bottom, loss))
    events = {}
    for share in (10, 50, 90):
        held = first_held(log_loss[index + 1 :] <= top - share / 100 * (top - bottom))
        if top > bottom and held is not None:
            events[f"{name}_{share}"] = _bracket(epochs, index + 1 + held)
    return events


def _restricted_falls(epochs, loss, grokked_by: int) -> dict:
    """Of the restricted loss at checkpoints. They stand tens of evaluations apart on a smooth curve, so the peak is its
    largest value and the bottom its last: a running median over 11 checkpoints would span whole stages."""
    before = int(np.searchsorted(epochs, grokked_by))
    if not before or not np.isfinite(loss).all():
        return {}
    index = int(np.argmax(loss[:before]))
    return _falls("restricted", epochs, loss, index, loss[index], loss[-1])


@dataclass(frozen=True)
class Spike:
    """A slingshot: epochs start to end (the last above) and the peak of the train loss in it, and its height over the level before."""

    start: int
    end: int
    peak_epoch: int
    peak: float
    factor: float


def spikes(epochs, train_loss, window: int = 50, factor: float = 10) -> list[Spike]:
    """Where the train loss is above `factor` times the median of the `window` entries before; stretches no more than a window
    apart are one spike. epochs, train_loss [T], one entry an epoch; a window of them must come first."""
    loss = np.asarray(train_loss)
    if len(loss) <= window:
        return []
    before = np.median(np.lib.stride_tricks.sliding_window_view(loss, window)[:-1], axis=1)
    high = window + np.flatnonzero(loss[window:] > factor * before)
    found = []
    for stretch in np.split(high, np.flatnonzero(np.diff(high) > window) + 1) if len(high) else []:
        peak = stretch[np.argmax(loss[stretch])]
        level = before[stretch[0] - window]
        bounds = (int(epochs[i]) for i in (stretch[0], stretch[-1], peak))
        found.append(Spike(*bounds, float(loss[peak]), float(loss[peak] / level)))
    return found


def has_learned(test_acc, test_loss, grokked_loss: float | None) -> np.ndarray:
    """Whether the criterion of `grokked` holds: test accuracy, or for a task with a `grokked_loss` a test loss below it."""
    return test_acc >= ACCURACIES["grokked"][1] if grokked_loss is None else test_loss < grokked_loss


def time_run(
    epoch_eval,
    train_acc,
    test_acc,
    test_loss,
    last_epoch: int,
    train_loss=(),
    epoch_train=(),
    restricted: tuple | None = None,
    grokked_loss: float | None = None,
    unlimited: bool = False,
) -> Timing:
    """The events of one run, from its curves up to last_epoch (`checkpoint.Metrics.of_run`); or of one part of its task.

    epoch_eval, train_acc, test_acc, test_loss: [evaluations]; train_loss [*]: a non-finite value means divergence;
    last_epoch: updates done. restricted: (epochs, restricted loss over all pairs) [checkpoints], where they were analysed.
    grokked_loss: see `has_learned`. unlimited: of data; then nothing can be memorised.
    """
    epochs = np.asarray(epoch_eval)
    finite = np.isfinite(test_loss) & np.isfinite(train_acc)
    diverged = not finite.all() or not np.isfinite(train_loss).all()
    if not finite.all():
        stop = int(np.argmin(finite))
        epochs, train_acc, test_acc, test_loss = (x[:stop] for x in (epochs, train_acc, test_acc, test_loss))
    if diverged:
        last_epoch = int(epochs[-1]) if len(epochs) else 0
    if not len(epochs):
        return Timing("diverged" if diverged else "not learned" if unlimited else "not memorised", last_epoch, False)

    holds = {event: (train_acc if curve == "train" else test_acc) >= least for event, (curve, least) in ACCURACIES.items()}
    holds["grokked"] = has_learned(test_acc, test_loss, grokked_loss)
    if unlimited:
        del holds["memorised"]
    events = {}
    for event, held in holds.items():
        index = first_held(held)
        if index is not None:
            events[event] = _bracket(epochs, index)
    settled = not diverged and "grokked" in events and last_epoch >= settled_epoch(events["grokked"][1])
    before = int(np.searchsorted(epochs, events["grokked"][1])) if "grokked" in events else len(epochs)
    peak = _peak(test_loss, before)
    if peak is not None:
        events["test_loss_peak"] = _bracket(epochs, peak[0])
        if settled:
            events |= _falls("drop", epochs, test_loss, *peak, np.exp(np.median(np.log(np.maximum(test_loss[-10:], FLOOR)))))
    if settled and restricted is not None:
        events |= _restricted_falls(*restricted, events["grokked"][1])
        if "drop_90" in events and "restricted_90" in events:
            events["stable"] = max((events["drop_90"], events["restricted_90"]), key=lambda bracket: bracket[1])
    if unlimited:
        reached = "learned" if "grokked" in events else "not learned"
    else:
        reached = "grokked" if "grokked" in events else "memorised only" if "memorised" in events else "not memorised"
    return Timing("diverged" if diverged else reached, last_epoch, settled, events)
