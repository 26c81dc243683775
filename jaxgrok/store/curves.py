"""Curves: losses and accuracies over training.

`SweepCurves` holds those of several runs as arrays [run, time]: of a batch, while it trains, or of all runs of a sweep
in metrics.npz. `RunCurves` is one run's part of it, up to the last epoch that the run has trained.
"""

import contextlib
import copy
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxgrok.atomic import replace_file
from jaxgrok.config import BadInput
from jaxgrok.nets.weight_files import check_sizes
from jaxgrok.store.schedule import schedule

CURVES = ("train_loss", "test_loss", "train_acc", "test_acc")
LATER = ("train_zero",)  # missing in directories of earlier versions: NaN there
PART_CURVES = ("test_answer_acc", "test_part_loss", "test_part_acc")
# What numpy raises for a file that is damaged, cut short, or not its own. RuntimeError: it seems to be encrypted.
UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class RunCurves:
    """One run's curves up to its last epoch. Entry e of a curve is the value after e updates.

    epoch_train, train_loss: at every recorded epoch. epoch_eval, test_loss, train_acc, test_acc: at every evaluation.
    train_zero: the share of the train targets whose loss is exactly zero, likewise; NaN or None if it was not recorded.
    test_answer_acc: the share of test examples whose counted targets are all right. test_part_loss, test_part_acc: of
    each part of the task. These three are None in a sweep whose tasks have no parts. last_epoch: updates done.
    """

    epoch_train: Int[np.ndarray, "T"]
    train_loss: Float[np.ndarray, "T"]
    epoch_eval: Int[np.ndarray, "E"]
    test_loss: Float[np.ndarray, "E"]
    train_acc: Float[np.ndarray, "E"]
    test_acc: Float[np.ndarray, "E"]
    last_epoch: int
    train_zero: Float[np.ndarray, "E"] | None = None
    test_answer_acc: Float[np.ndarray, "E"] | None = None
    test_part_loss: Float[np.ndarray, "E parts"] | None = None
    test_part_acc: Float[np.ndarray, "E parts"] | None = None

    def of_part(self, number: int) -> "RunCurves":
        """The same curves with the test loss and accuracy of one part in place of the whole's."""
        assert self.test_part_loss is not None
        assert self.test_part_acc is not None
        return replace(self, test_loss=self.test_part_loss[:, number], test_acc=self.test_part_acc[:, number])


_NONE = np.empty(0)
EMPTY = RunCurves(_NONE.astype(int), _NONE, _NONE.astype(int), _NONE, _NONE, _NONE, last_epoch=0)  # of a run not begun


class SweepCurves:
    """The curves of several runs, each in a row. Values that were not recorded are NaN.

    train_loss [R, epochs / train_every]; test_loss, train_acc, test_acc, train_zero [R, evaluations]. last_epoch [R]:
    updates done.
    ended [R]: whether a run has settled or diverged and trains no further. In a sweep whose tasks have at most
    n_parts > 0 parts also test_answer_acc [R, evaluations] and test_part_loss, test_part_acc [R, evaluations, n_parts].
    """

    def __init__(
        self, n_runs: int, epochs: int, eval_every: int, train_every: int, dtype: str = "float32", n_parts: int = 0
    ):
        self.eval_every, self.train_every, self.n_parts = eval_every, train_every, n_parts
        self.epoch_train = np.arange(0, epochs, train_every)
        self.epoch_eval = np.array(schedule(epochs, eval_every))
        self._eval_index = {int(epoch): i for i, epoch in enumerate(self.epoch_eval)}
        self.names = (*CURVES, *LATER, *(PART_CURVES if n_parts else ()))
        for name in self.names:
            setattr(self, name, np.full((n_runs, *self._shape_of(name)), np.nan, dtype))
        self.last_epoch = np.zeros(n_runs, np.int64)
        self.ended = np.zeros(n_runs, bool)

    train_loss: Float[np.ndarray, "R T"]
    test_loss: Float[np.ndarray, "R E"]
    train_acc: Float[np.ndarray, "R E"]
    test_acc: Float[np.ndarray, "R E"]
    train_zero: Float[np.ndarray, "R E"]
    test_answer_acc: Float[np.ndarray, "R E"]
    test_part_loss: Float[np.ndarray, "R E parts"]
    test_part_acc: Float[np.ndarray, "R E parts"]
    last_epoch: Int[np.ndarray, "R"]
    ended: Bool[np.ndarray, "R"]

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of one run's curve."""
        if name == "train_loss":
            return (len(self.epoch_train),)
        return (len(self.epoch_eval), self.n_parts) if name.startswith("test_part_") else (len(self.epoch_eval),)

    def record(
        self,
        runs: Int[np.ndarray, "live"],
        rows: Int[np.ndarray, "live"],
        epoch: int,
        train_loss: Float[np.ndarray, "rows steps"],
        train_acc: Float[np.ndarray, "rows"],
        train_zero: Float[np.ndarray, "rows"],
        evaluation: Any,
    ) -> None:
        """Record one interval, which starts at `epoch`, for the runs that the given rows of a batch hold.

        train_acc, train_zero: at the start of the interval. evaluation: the `Scores` of the test examples there, [row],
        or None.
        """
        steps = train_loss.shape[1]
        first = -(-epoch // self.train_every)
        at = np.arange(first, -(-(epoch + steps) // self.train_every))
        if len(at):
            self.train_loss[np.ix_(runs, at)] = train_loss[rows][:, at * self.train_every - epoch]
        if evaluation is not None:
            index = self._eval_index[epoch]
            self.train_acc[runs, index], self.train_zero[runs, index] = train_acc[rows], train_zero[rows]
            loss, accuracy, answers, *parts = (np.asarray(x)[rows] for x in evaluation)
            self.test_loss[runs, index], self.test_acc[runs, index] = loss, accuracy
            if self.n_parts:
                self.test_answer_acc[runs, index] = answers
                for curve, values in zip((self.test_part_loss, self.test_part_acc), parts, strict=True):
                    curve[runs, index, : values.shape[1]] = values
        self.last_epoch[runs] = epoch + steps

    def _between(self, name: str, start: int, stop: int) -> slice:
        epochs = self.epoch_train if name == "train_loss" else self.epoch_eval
        return slice(*np.searchsorted(epochs, (start, stop)).tolist())

    def between(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """{name: [R, time]}: a copy of what was recorded from one epoch to before another."""
        return {name: getattr(self, name)[:, self._between(name, start, stop)].copy() for name in self.names}

    def put(self, start: int, stop: int, recorded: dict[str, np.ndarray]) -> None:
        """Take over what `between` gave. Raises ValueError if it does not fit these runs and epochs."""
        for name in self.names:
            here = getattr(self, name)[:, self._between(name, start, stop)]
            if name in LATER and name not in recorded:
                continue
            if name not in recorded or recorded[name].shape != here.shape:
                raise ValueError(f"the curve {name} does not fit")
            here[:] = recorded[name]

    def of_run(self, run: int, last_epoch: int | None = None) -> RunCurves:
        """One run's curves up to its last epoch, or to an earlier one, as views of these arrays."""
        last = int(self.last_epoch[run] if last_epoch is None else min(last_epoch, self.last_epoch[run]))
        trained, evaluated = (int(np.searchsorted(epochs, last)) for epochs in (self.epoch_train, self.epoch_eval))
        evaluations = [name for name in self.names if name != "train_loss"]
        return RunCurves(
            epoch_train=self.epoch_train[:trained],
            train_loss=self.train_loss[run, :trained],
            epoch_eval=self.epoch_eval[:evaluated],
            last_epoch=last,
            **{name: getattr(self, name)[run, :evaluated] for name in evaluations},
        )

    def of_rows(self, rows: list[int]) -> "SweepCurves":
        """The curves of some of the runs."""
        some = copy.copy(self)
        for name in (*self.names, "last_epoch", "ended"):
            setattr(some, name, getattr(self, name)[rows])
        return some

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.names)

    def row_of(self, name: str, curves: RunCurves) -> np.ndarray:
        """One run's curve on the epochs of these curves, NaN where nothing was recorded.

        The run's epochs are the first of these: both follow from the same eval_every and train_every.
        """
        row = np.full(self._shape_of(name), np.nan, getattr(self, name).dtype)
        recorded = getattr(curves, name)
        if recorded is not None:
            row[tuple(slice(size) for size in recorded.shape)] = recorded
        return row

    def copy_from(self, path: Path) -> None:
        """Take over the curves in a file of version 0.1.0, as far as both know the same runs and epochs.

        Raises BadInput, and names the file, if it is missing, damaged or not such a file.
        """
        try:
            check_sizes(path)
            # Opened here, because np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                self._take(stored)
        except FileNotFoundError:
            raise _unusable(path, "this one is missing") from None
        except UNREADABLE as error:
            raise _unusable(path, f"this one is damaged ({type(error).__name__}: {error})") from None

    def _take(self, stored: Any) -> None:
        theirs = {name: stored[name] for name in ("epoch_train", "epoch_eval", "last_epoch", "ended")}
        if any(np.ndim(x) != 1 for x in theirs.values()) or len(theirs["ended"]) != len(theirs["last_epoch"]):
            raise ValueError("its axes are not lists")
        n = min(len(theirs["last_epoch"]), len(self.last_epoch))
        for name in self.names:
            if name in LATER or (name not in stored and name in PART_CURVES):
                continue
            axis = "epoch_train" if name == "train_loss" else "epoch_eval"
            values = stored[name]
            if values.shape[:2] != (len(theirs["last_epoch"]), len(theirs[axis])) or values.dtype.kind != "f":
                raise ValueError(f"{name} has shape {values.shape} and dtype {values.dtype}")
            _, here, there = np.intersect1d(getattr(self, axis), theirs[axis], return_indices=True)
            before = values[:n, there]
            getattr(self, name)[(slice(n), here, *(slice(size) for size in before.shape[2:]))] = before
        if (theirs["last_epoch"] < 0).any():
            raise ValueError("an epoch is negative")
        self.last_epoch[:n], self.ended[:n] = theirs["last_epoch"][:n], theirs["ended"][:n]


def write_npz(
    path: Path,
    like: SweepCurves,
    curves: Sequence[Callable[[], RunCurves]],
    beside: Mapping[str, np.ndarray],
    source: str = "",
) -> None:
    """Replace a file like metrics.npz atomically, run by run, so that not all curves are in memory at once.

    like: curves with the epochs and the parts of the file; those of no run will do. curves: functions that give the
    curves of each run. beside: more arrays, among them last_epoch and ended. source: what the file is made of, kept as
    its comment.
    """

    def write(temporary: Path) -> None:
        with contextlib.ExitStack() as stack:
            # Each array is in a file without a name until all runs are in it: the archive takes one after another.
            parts = {name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in like.names}
            for of_run in curves:
                recorded = of_run()
                for name, part in parts.items():
                    part.write(like.row_of(name, recorded).tobytes())
            archive = stack.enter_context(zipfile.ZipFile(temporary, "w"))
            archive.comment = source.encode()
            for name, array in {"epoch_train": like.epoch_train, "epoch_eval": like.epoch_eval, **beside}.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            for name, part in parts.items():
                empty = like.row_of(name, EMPTY)
                header = {"descr": empty.dtype.str, "fortran_order": False, "shape": (len(curves), *empty.shape)}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    part.seek(0)
                    shutil.copyfileobj(part, file, 1 << 20)

    replace_file(path, write)


def _unusable(path: Path, why: str) -> BadInput:
    accepted = f"a whole file of curves; {why}. Restore it from a copy, or remove the directory and train again"
    return BadInput("metrics.npz", str(path), accepted)
