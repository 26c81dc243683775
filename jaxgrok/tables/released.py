"""A run of ours beside a released one: the same curves, where they part, and their slingshots.

A released run is a .pth that holds `train_losses` (one an epoch) and `test_losses` (one in ten), or samples of its curves in
a JSON file: {name: {"train_at": {epoch: loss}, "test_at": {epoch: loss}}}.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from jaxgrok.config import BadInput
from jaxgrok.nets import weight_files
from jaxgrok.store import events as phases

PARTS = ("train", "test")
STRETCHES = (0, 100, 300, 1000, 3000, 10_000, 20_000, 40_000, 60_000, 80_000)  # epochs between which differences are told
THRESHOLDS = (1.0, 0.1, 0.01, 1e-3, 1e-6)
TEST_EVERY = 10  # epochs between the released test losses


@dataclass(frozen=True)
class Curves:
    """Epochs and losses of one run, [T] each; a released one may hold samples alone (`whole` false)."""

    epoch_train: np.ndarray
    train_loss: np.ndarray
    epoch_eval: np.ndarray
    test_loss: np.ndarray
    whole: bool = True

    def epochs(self, part: str) -> np.ndarray:
        """Of the `train` or the `test` loss."""
        return self.epoch_train if part == "train" else self.epoch_eval

    def losses(self, part: str) -> np.ndarray:
        """The `train` or the `test` loss."""
        return self.train_loss if part == "train" else self.test_loss


def read_released(path, name: str | None = None) -> Curves:
    """The curves of a released run. name: which one of a JSON file. Raises BadInput for what holds no curves."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            runs = json.loads(path.read_text())
            names = sorted(key for key, run in runs.items() if isinstance(run, dict) and {"train_at", "test_at"} <= set(run))
        except (OSError, ValueError, AttributeError) as error:
            raise BadInput("released", str(path), f"a readable JSON file of runs ({error})") from None
        if name not in names:
            raise BadInput("name", name, "one of " + " ".join(names))
        samples = [runs[name][part] for part in ("train_at", "test_at")]
        try:
            arrays = [x for part in samples for x in (np.array([int(e) for e in part]), np.array([float(part[e]) for e in part]))]
        except (TypeError, ValueError) as error:
            raise BadInput("released", str(path), f"losses by epoch ({error})") from None
        return _checked(path, Curves(*arrays, whole=False))
    _, beside = weight_files.read(path)
    try:
        train, test = (np.array(beside[key], float) for key in ("train_losses", "test_losses"))
        curves = Curves(np.arange(len(train)), train, TEST_EVERY * np.arange(len(test)), test)
    except (KeyError, TypeError, ValueError):
        raise BadInput("released", str(path), "a file with train_losses and test_losses beside its weights") from None
    return _checked(path, curves)


def _checked(path, curves: Curves) -> Curves:
    for part in PARTS:
        if curves.losses(part).ndim != 1 or not len(curves.losses(part)):
            raise BadInput("released", str(path), f"{part} losses, at least one")
    return curves


def of_run(curves: dict) -> Curves:
    """Ours, from `Results.curves`. Raises BadInput for a run that has not begun, or that did not record every epoch."""
    ours = Curves(*(np.asarray(curves[name]) for name in ("epoch_train", "train_loss", "epoch_eval", "test_loss")))
    if not len(ours.train_loss):
        raise BadInput("run", 0, "one that has begun")
    if len(ours.epoch_train) > 1 and ours.epoch_train[1] != 1:
        raise BadInput("train_every", int(ours.epoch_train[1]), "1: a train loss for every epoch")
    return ours


def first_below(epochs, loss, threshold: float) -> int | None:
    """The first epoch with a loss below a threshold."""
    below = loss < threshold
    return int(epochs[np.argmax(below)]) if below.any() else None


def shared(ours: Curves, theirs: Curves, part: str, first: int = 0, last: float = np.inf):
    """(epochs, our losses, theirs) of the `train` or `test` loss at the epochs that both have, from first to last."""
    epochs, i, j = np.intersect1d(ours.epochs(part), theirs.epochs(part), return_indices=True)
    chosen = (first <= epochs) & (epochs <= last)
    return epochs[chosen], ours.losses(part)[i][chosen], theirs.losses(part)[j][chosen]


def deviation(ours: Curves, theirs: Curves, part: str, first: int, last: int) -> float:
    """The largest |ours / theirs - 1| of the `train` or `test` loss at the shared epochs from first to last; NaN where there is none."""
    _, a, b = shared(ours, theirs, part, first, last)
    return float(np.abs(a / b - 1).max()) if len(a) else float("nan")


def comparison(ours: Curves, theirs: Curves) -> list[list[str]]:
    """Rows [quantity, released, ours] of a rerun beside its original: of a whole one, differences and when losses fall below
    thresholds; of samples, both losses at each."""
    rows = [[f"initial {part} loss", *(f"{run.losses(part)[0]:.9f}" for run in (theirs, ours))] for part in PARTS]
    if not theirs.whole:
        for part in PARTS:
            rows += [[f"{part} loss at epoch {epoch:,}", f"{b:.3g}", f"{a:.3g}"] for epoch, a, b in zip(*shared(ours, theirs, part))]
        return rows
    end = min(ours.epoch_train[-1], theirs.epoch_train[-1])
    for part in PARTS:
        for first, last in pairwise([*(edge for edge in STRETCHES if edge < end), int(end)]):
            difference = deviation(ours, theirs, part, first, last)
            rows.append([f"{part} loss, largest relative difference, epochs {first:,} - {last:,}", "", f"{difference:.2g}"])
    runs = (theirs, ours)
    peaks = [(run.test_loss.max(), run.epoch_eval[run.test_loss.argmax()]) for run in runs]
    rows.append(["highest test loss (epoch)", *(f"{loss:.2f} ({epoch:,})" for loss, epoch in peaks)])
    for part in PARTS:
        for threshold in THRESHOLDS:
            epochs = [first_below(run.epochs(part), run.losses(part), threshold) for run in runs]
            rows.append([f"{part} loss first below {threshold:g}, epoch", *("-" if epoch is None else f"{epoch:,}" for epoch in epochs)])
    return rows


def spike_rows(curves: Curves) -> list[list[str]]:
    """Rows [quantity, value] on the slingshots of one whole run."""
    found = phases.spikes(curves.epoch_train, curves.train_loss)
    peaks = [spike.peak for spike in found]
    rows = [[f"spikes in {len(curves.epoch_train):,} epochs", str(len(found))]]
    if found:
        highest = max(found, key=lambda spike: spike.peak)
        rows += [
            ["first at epoch", f"{found[0].start:,}"],
            ["highest (epoch; times the level before)", f"{highest.peak:.3g} ({highest.peak_epoch:,}; {highest.factor:.1e})"],
            ["median height", f"{np.median(peaks):.3g}"],
            ["higher than 0.1", str(sum(peak > 0.1 for peak in peaks))],
        ]
    return rows
