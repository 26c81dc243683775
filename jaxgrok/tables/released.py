"""A run of ours beside a released one: both curves, where they part, and our slingshots.

A released run is a .pth file that holds `train_losses` (every epoch) and `test_losses` (every tenth), or samples of its
curves in a JSON file: {name: {"train_at": {epoch: loss}, "test_at": {epoch: loss}}}.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxgrok.config import BadInput
from jaxgrok.nets import weight_files
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.events import spikes

PARTS = ("train", "test")
# Epochs between which the largest differences are reported.
STRETCHES = (0, 100, 300, 1000, 3000, 10_000, 20_000, 40_000, 60_000, 80_000)
THRESHOLDS = (1.0, 0.1, 0.01, 1e-3, 1e-6)
TEST_EVERY = 10  # epochs between the released test losses


@dataclass(frozen=True)
class LossCurves:
    """The losses of one run and their epochs. whole: false if a released run gives only samples of them."""

    epoch_train: Int[np.ndarray, "T"]
    train_loss: Float[np.ndarray, "T"]
    epoch_eval: Int[np.ndarray, "E"]
    test_loss: Float[np.ndarray, "E"]
    whole: bool = True

    def epochs(self, part: str) -> Int[np.ndarray, "T"]:
        """The epochs of the `train` or the `test` loss."""
        return self.epoch_train if part == "train" else self.epoch_eval

    def losses(self, part: str) -> Float[np.ndarray, "T"]:
        """The `train` or the `test` loss."""
        return self.train_loss if part == "train" else self.test_loss


def read_released(path: str | Path, name: str | None = None) -> LossCurves:
    """The curves of a released run. name: which run of a JSON file. Raises BadInput for a file that holds no curves."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            runs = json.loads(path.read_text())
            names = sorted(
                key for key, run in runs.items() if isinstance(run, dict) and {"train_at", "test_at"} <= set(run)
            )
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise BadInput("released", str(path), f"a readable JSON file of runs ({error})") from None
        if name not in names:
            raise BadInput("name", name, "one of " + " ".join(names))
        samples = [runs[name][part] for part in ("train_at", "test_at")]
        try:
            arrays = [
                x
                for part in samples
                for x in (np.array([int(e) for e in part], np.int64), np.array([float(x) for x in part.values()]))
            ]
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise BadInput("released", str(path), f"losses by epoch ({error})") from None
        return _checked(path, LossCurves(*arrays, whole=False))
    content = weight_files.contents(path)
    try:
        train, test = (np.array(content[key], float) for key in ("train_losses", "test_losses"))
        curves = LossCurves(np.arange(len(train)), train, TEST_EVERY * np.arange(len(test)), test)
    except (KeyError, TypeError, ValueError):
        raise BadInput("released", str(path), "a file with train_losses and test_losses beside its weights") from None
    return _checked(path, curves)


def _checked(path, curves: LossCurves) -> LossCurves:
    for part in PARTS:
        if curves.losses(part).ndim != 1 or not len(curves.losses(part)):
            raise BadInput("released", str(path), f"{part} losses, at least one")
    return curves


def losses_of(curves: RunCurves) -> LossCurves:
    """The losses of one of our runs. Raises BadInput if it has not begun, or did not record every epoch."""
    ours = LossCurves(curves.epoch_train, curves.train_loss, curves.epoch_eval, curves.test_loss)
    if not len(ours.train_loss):
        raise BadInput("run", 0, "one that has begun")
    if len(ours.epoch_train) > 1 and ours.epoch_train[1] != 1:
        raise BadInput("train_every", int(ours.epoch_train[1]), "1: a train loss for every epoch")
    return ours


def first_below(epochs: Int[np.ndarray, "T"], loss: Float[np.ndarray, "T"], threshold: float) -> int | None:
    """The first epoch with a loss below a threshold; None if there is none."""
    below = loss < threshold
    return int(epochs[np.argmax(below)]) if below.any() else None


def shared(
    ours: LossCurves, theirs: LossCurves, part: str, first: int = 0, last: float = np.inf
) -> tuple[Int[np.ndarray, "T"], Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """(epochs, our losses, their losses) at the epochs that both runs have, from first to last."""
    epochs, i, j = np.intersect1d(ours.epochs(part), theirs.epochs(part), return_indices=True)
    chosen = (first <= epochs) & (epochs <= last)
    return epochs[chosen], ours.losses(part)[i][chosen], theirs.losses(part)[j][chosen]


def deviation(ours: LossCurves, theirs: LossCurves, part: str, first: int, last: int) -> float:
    """The largest |ours / theirs - 1| at the shared epochs from first to last; NaN if there are none."""
    _, a, b = shared(ours, theirs, part, first, last)
    return float(np.abs(a / b - 1).max()) if len(a) else float("nan")


def comparison(ours: LossCurves, theirs: LossCurves) -> list[list[str]]:
    """Rows [quantity, released, ours]. A whole released curve gives differences and the epochs at which losses fall
    below thresholds; samples give both losses at each of them."""
    rows = [[f"initial {part} loss", *(f"{run.losses(part)[0]:.9f}" for run in (theirs, ours))] for part in PARTS]
    if not theirs.whole:
        for part in PARTS:
            rows += [
                [f"{part} loss at epoch {epoch:,}", f"{b:.3g}", f"{a:.3g}"]
                for epoch, a, b in zip(*shared(ours, theirs, part))
            ]
        return rows
    end = min(ours.epoch_train[-1], theirs.epoch_train[-1])
    for part in PARTS:
        for first, last in pairwise([*(edge for edge in STRETCHES if edge < end), int(end)]):
            difference = deviation(ours, theirs, part, first, last)
            rows.append(
                [f"{part} loss, largest relative difference, epochs {first:,} - {last:,}", "", f"{difference:.2g}"]
            )
    runs = (theirs, ours)
    peaks = [(run.test_loss.max(), run.epoch_eval[run.test_loss.argmax()]) for run in runs]
    rows.append(["highest test loss (epoch)", *(f"{loss:.2f} ({epoch:,})" for loss, epoch in peaks)])
    for part in PARTS:
        for threshold in THRESHOLDS:
            epochs = [first_below(run.epochs(part), run.losses(part), threshold) for run in runs]
            rows.append(
                [
                    f"{part} loss first below {threshold:g}, epoch",
                    *("-" if epoch is None else f"{epoch:,}" for epoch in epochs),
                ]
            )
    return rows


def spike_rows(curves: LossCurves) -> list[list[str]]:
    """Rows [quantity, value] on the slingshots of one whole run."""
    found = spikes(curves.epoch_train, curves.train_loss)
    peaks = [spike.peak for spike in found]
    rows = [[f"spikes in {len(curves.epoch_train):,} epochs", str(len(found))]]
    if found:
        highest = max(found, key=lambda spike: spike.peak)
        rows += [
            ["first at epoch", f"{found[0].start:,}"],
            [
                "highest (epoch; times the level before)",
                f"{highest.peak:.3g} ({highest.peak_epoch:,}; {highest.factor:.1e})",
            ],
            ["median height", f"{np.median(peaks):.3g}"],
            ["higher than 0.1", str(sum(peak > 0.1 for peak in peaks))],
        ]
    return rows
