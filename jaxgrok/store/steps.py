"""A sweep on disk: where its files lie, and how they are written so that an interruption loses nothing.

    runs/NAME/config.json             the fields that hold for the whole sweep
              manifest.json           runs, batches, layouts, versions, devices
              metrics.npz             the curves [run, time], with a coordinate array per axis
              checkpoints/B/E/        parameters of batch B after E updates, one stacked pytree [row, ...] (orbax)
              checkpoints/B/state-E-rows-N/  the full state of batch B at its latest save, to go on from
              analysis/B/E.npz        every measure of the checkpoint of that name, [row, ...]

Every checkpoint names the run of each of its rows (-1: none), so nothing is ever found by row number. JSON and npz files
are replaced whole, in the order manifest, metrics, state: each needs only what stands before it.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxgrok.config import BadInput
from jaxgrok.store.schedule import schedule

VACANT = -1  # the run of a row that pads a batch, or whose run has ended


def replace_text(path: Path, text: str) -> None:
    """Replace a text file whole, so that an interruption leaves the old one or the new."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, content) -> None:
    """Replace a JSON file whole."""
    replace_text(path, json.dumps(content, indent=1) + "\n")


class Metrics:
    """The curves of every run of a sweep: NaN where not trained.

    train_loss [R, epochs / train_every], test_loss, train_acc, test_acc [R, evaluations], last_epoch [R] (updates done),
    ended [R] (settled or diverged: trained no further). Where a task of the sweep has parts, n_parts at most:
    test_answer_acc [R, evaluations], test_part_loss, test_part_acc [R, evaluations, n_parts].
    """

    CURVES = ("train_loss", "test_loss", "train_acc", "test_acc")
    OF_PARTS = ("test_answer_acc", "test_part_loss", "test_part_acc")

    def __init__(self, n_runs: int, epochs: int, eval_every: int, train_every: int, dtype="float32", n_parts: int = 0):
        self.eval_every, self.train_every = eval_every, train_every
        self.epoch_train = np.arange(0, epochs, train_every)
        self.epoch_eval = np.array(schedule(epochs, eval_every))
        self._eval_index = {int(epoch): i for i, epoch in enumerate(self.epoch_eval)}
        self.train_loss = np.full((n_runs, len(self.epoch_train)), np.nan, dtype)
        of_evals = (n_runs, len(self.epoch_eval))
        self.test_loss, self.train_acc, self.test_acc = (np.full(of_evals, np.nan, dtype) for _ in range(3))
        self.curves = self.CURVES
        if n_parts:
            self.curves += self.OF_PARTS
            self.test_answer_acc = np.full(of_evals, np.nan, dtype)
            self.test_part_loss, self.test_part_acc = (np.full((*of_evals, n_parts), np.nan, dtype) for _ in range(2))
        self.last_epoch = np.zeros(n_runs, np.int64)
        self.ended = np.zeros(n_runs, bool)

    def record(self, runs, rows, epoch: int, train_loss, train_acc, evaluation) -> None:
        """Enter an interval that starts at `epoch`, from arrays over rows, of which `rows` hold `runs`.

        train_loss [row, steps], train_acc [row] at the interval's start, evaluation: Scores [row] of the test examples or None.
        """
        steps = train_loss.shape[1]
        first = -(-epoch // self.train_every)
        at = np.arange(first, -(-(epoch + steps) // self.train_every))
        if len(at):
            self.train_loss[np.ix_(runs, at)] = train_loss[rows][:, at * self.train_every - epoch]
        if evaluation is not None:
            index = self._eval_index[epoch]
            self.train_acc[runs, index] = train_acc[rows]
            loss, accuracy, answers, *parts = (np.asarray(x)[rows] for x in evaluation)
            self.test_loss[runs, index], self.test_acc[runs, index] = loss, accuracy
            if len(self.curves) > len(self.CURVES):
                self.test_answer_acc[runs, index] = answers
                for curve, values in zip((self.test_part_loss, self.test_part_acc), parts):
                    curve[runs, index, : values.shape[1]] = values
        self.last_epoch[runs] = epoch + steps

    def rewind(self, runs, epoch: int) -> None:
        """Forget what these runs recorded at or past an epoch."""
        for name in self.curves:
            epochs = self.epoch_train if name == "train_loss" else self.epoch_eval
            getattr(self, name)[np.ix_(runs, np.flatnonzero(epochs >= epoch))] = np.nan
        self.last_epoch[runs] = epoch

    def of_run(self, run: int) -> dict:
        """One run's curves up to its last epoch: epoch_eval, test_loss, train_acc, test_acc, epoch_train, train_loss, last_epoch."""
        evals, trains = self.epoch_eval < self.last_epoch[run], self.epoch_train < self.last_epoch[run]
        return {
            "epoch_eval": self.epoch_eval[evals],
            **{name: getattr(self, name)[run, evals] for name in ("test_loss", "train_acc", "test_acc")},
            "epoch_train": self.epoch_train[trains],
            "train_loss": self.train_loss[run, trains],
            "last_epoch": int(self.last_epoch[run]),
        }

    def parts_of_run(self, run: int) -> dict:
        """One run's test_answer_acc [evaluations], test_part_loss and test_part_acc [evaluations, n_parts] up to its last epoch."""
        evals = self.epoch_eval < self.last_epoch[run]
        return {name: getattr(self, name)[run, evals] for name in self.OF_PARTS}

    def save(self, path: Path, coordinates: dict) -> None:
        """Replace metrics.npz whole; coordinates: {axis: [R]}."""
        arrays = {name: getattr(self, name) for name in (*self.curves, "epoch_train", "epoch_eval", "last_epoch", "ended")}
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **arrays, **coordinates)
        os.replace(temporary, path)

    def copy_from(self, path: Path) -> None:
        """Enter the curves of a file written by `save` with the same cadence, as far as both know its runs and epochs."""
        with np.load(path) as old:
            n = min(len(old["last_epoch"]), len(self.last_epoch))
            n_train = min(len(old["epoch_train"]), len(self.epoch_train))
            self.train_loss[:n, :n_train] = old["train_loss"][:n, :n_train]
            _, ours, theirs = np.intersect1d(self.epoch_eval, old["epoch_eval"], return_indices=True)
            for name in self.curves[1:]:
                if name in old:
                    before = old[name][:n, theirs]
                    getattr(self, name)[(slice(n), ours, *(slice(size) for size in before.shape[2:]))] = before
            self.last_epoch[:n], self.ended[:n] = old["last_epoch"][:n], old["ended"][:n]


class SweepFiles:
    """The files of one sweep directory."""

    def __init__(self, path):
        self.path = Path(path)
        self._saver = None

    @property
    def config_json(self) -> Path:
        return self.path / "config.json"

    @property
    def manifest_json(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_npz(self) -> Path:
        return self.path / "metrics.npz"

    def _exists(self, path: Path) -> bool:
        try:
            return path.exists()
        except OSError as error:
            raise BadInput("out", str(self.path), f"a directory name ({error.strerror})") from None

    def exists(self) -> bool:
        return self._exists(self.config_json) and self._exists(self.manifest_json)

    def holds_something_else(self) -> bool:
        """Whether the path is taken by anything but a sweep, or the beginnings of one."""
        ours = {".lock", "checkpoints", "config.json", "config.json.tmp", "manifest.json.tmp"}
        if not self._exists(self.path):
            return False
        if not self.path.is_dir() or any(entry.name not in ours for entry in self.path.iterdir()):
            return True
        checkpoints = self.path / "checkpoints"
        return checkpoints.exists() and any(checkpoints.iterdir())

    def _read(self, file: Path, keys: tuple) -> dict:
        try:
            content = json.loads(file.read_text())
            if not all(key in content for key in keys):
                raise ValueError(f"{file.name} lacks {' or '.join(keys)}")
        except (OSError, ValueError, TypeError) as error:
            raise BadInput("out", str(self.path), f"a directory that sweep.py made ({file.name}: {error})") from None
        return content

    def read_config(self) -> dict:
        return self._read(self.config_json, ("eval_every", "train_every"))

    def read_manifest(self) -> dict:
        return self._read(self.manifest_json, ("sessions", "batches", "runs"))

    @contextlib.contextmanager
    def locked(self):
        """Hold the directory for one writer. Raises BadInput where it cannot be written or another process holds it."""
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the end of the block below
        except OSError as error:
            raise BadInput("out", str(self.path), f"a directory that can be written ({error.strerror})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput("out", str(self.path), "a directory that no other running sweep is writing") from None
            except OSError as error:
                raise BadInput("out", str(self.path), f"a directory on a file system with locks ({error.strerror})") from None
            for pattern in ("*/*.orbax-checkpoint-tmp*", "*/removed-*"):
                for torn in (self.path / "checkpoints").glob(pattern):
                    shutil.rmtree(torn)
            yield self
            self.wait()

    # --- measures ---------------------------------------------------------------------------------------------------

    def _measures_npz(self, batch: int, epoch: int) -> Path:
        return self.path / "analysis" / f"{batch:04d}" / f"{epoch}.npz"

    def save_measures(self, batch: int, epoch: int, measures: dict) -> None:
        """Replace the measures of one checkpoint whole: {name: array [row, ...]}, with the `run` of each row."""
        path = self._measures_npz(batch, epoch)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")  # two analyses may run at once
        np.savez(temporary, **measures)
        os.replace(temporary, path)

    def load_measures(self, batch: int, epoch: int, names=None) -> dict | None:
        """What `save_measures` wrote, or these names of it; None where there is nothing, or nothing whole."""
        try:
            with np.load(self._measures_npz(batch, epoch)) as arrays:
                return {name: arrays[name] for name in (arrays.files if names is None else names) if name in arrays}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, path: Path, tree) -> None:
        if path.exists():
            return
        if self._saver is None:
            self._saver = ocp.StandardCheckpointer()
        self._saver.save(path.absolute(), tree)

    def wait(self) -> None:
        """Return once everything saved is on disk."""
        if self._saver is not None:
            self._saver.wait_until_finished()

    def _restore(self, path: Path):
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(path.absolute()).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(path.absolute(), restore_args=as_numpy)

    def batch_dir(self, batch: int) -> Path:
        return self.path / "checkpoints" / f"{batch:04d}"

    @staticmethod
    def _remove(folder: Path) -> None:
        """Remove a checkpoint; renamed first, so that a half-removed one is never taken for whole."""
        shutil.rmtree(folder.rename(folder.with_name(f"removed-{folder.name}")))

    def forget_params_after(self, batch: int, epoch: int) -> None:
        """Remove the parameters of later epochs."""
        for later in self.checkpoint_epochs(batch):
            if later > epoch:
                self._remove(self.batch_dir(batch) / str(later))

    def save_params(self, batch: int, epoch: int, run, params) -> None:
        """Stacked parameters [row, ...] with the run of each row; written in the background. An existing one is kept."""
        self._save(self.batch_dir(batch) / str(epoch), {"run": np.asarray(run, np.int64), "params": params})

    def load_params(self, batch: int, epoch: int) -> tuple[np.ndarray, dict]:
        """(run of each row, stacked parameters as numpy)."""
        tree = self._restore(self.batch_dir(batch) / str(epoch))
        return tree["run"], tree["params"]

    def checkpoint_epochs(self, batch: int) -> list[int]:
        """The epochs whose parameters were saved, in order."""
        folder = self.batch_dir(batch)
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.exists() else []

    def save_state(self, batch: int, epoch: int, run, state) -> None:
        """The latest full state, to go on from; older ones are removed once it is on disk."""
        path = self.batch_dir(batch) / f"state-{epoch}-rows-{len(run)}"
        leaves = {f"{i:03d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        self._save(path, {"run": np.asarray(run, np.int64), "leaves": leaves})
        self.wait()
        for old in self.batch_dir(batch).glob("state-*"):
            if old != path:
                self._remove(old)

    def _latest_state(self, batch: int) -> tuple[int, Path] | None:
        """(epoch, path) of the latest full state; after a halving of the batch, the halved one."""
        folder = self.batch_dir(batch)
        names = {path: re.fullmatch(r"state-(\d+)-rows-(\d+)", path.name) for path in (folder.glob("state-*") if folder.exists() else ())}
        found = [(int(name[1]), -int(name[2]), path) for path, name in names.items() if name]
        return (max(found)[0], max(found)[2]) if found else None

    def load_state(self, batch: int, structure) -> tuple[int, np.ndarray, object] | None:
        """(epoch, run of each row, state as numpy in the given tree structure), or None where nothing was saved."""
        latest = self._latest_state(batch)
        if latest is None:
            return None
        epoch, path = latest
        tree = self._restore(path)
        leaves = [tree["leaves"][key] for key in sorted(tree["leaves"])]
        return epoch, tree["run"], jax.tree.unflatten(structure, leaves)
