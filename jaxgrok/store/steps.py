"""The files of a sweep directory, and how they are written so that an interruption loses nothing.

    runs/NAME/config.json             the fields that hold for the whole sweep
              manifest.json           runs, batches, layouts, versions, devices
              metrics.npz             the curves [run, time], with a coordinate array per axis (store/curves.py)
              checkpoints/B/E/        the parameters of batch B after E updates, one stacked pytree [row, ...] (orbax)
              checkpoints/B/state-E-rows-N/   a full state of batch B, from which training resumes; the newest two are
              kept analysis/B/E.npz        every measure of that checkpoint [row, ...]

Every checkpoint names the run of each of its rows (PADDING for a row that holds none), so a run is never found by its
row.
JSON and npz files are replaced atomically, in the order manifest, metrics, state: each needs only what stands before
it.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Int

from jaxgrok.config import BadInput
from jaxgrok.store.atomic import replace_file
from jaxgrok.store.curves import UNREADABLE

PADDING = -1  # the run of a row that only fills up its batch, or whose run has ended
KEPT_STATES = 2  # so that one remains if the newest is damaged, or newer than the curves beside it


class SavedState(NamedTuple):
    """The full state of a batch: epoch (updates done), the run of each row, and the state's leaves as numpy [row,
    ...]."""

    epoch: int
    run: Int[np.ndarray, "rows"]
    state: Any


class SweepFiles:
    """The files of one sweep directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._saver: ocp.StandardCheckpointer | None = None

    @property
    def config_json(self) -> Path:
        return self.path / "config.json"

    @property
    def manifest_json(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_npz(self) -> Path:
        return self.path / "metrics.npz"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _exists(self, path: Path) -> bool:
        try:
            return path.exists()
        except OSError as error:
            raise BadInput("out", str(self.path), f"a directory name ({error.strerror})") from None

    def exists(self) -> bool:
        """Whether a sweep was begun here."""
        return self._exists(self.config_json) and self._exists(self.manifest_json)

    def holds_something_else(self) -> bool:
        """Whether the path is taken by anything but a sweep, or the beginnings of one."""
        ours = re.compile(r"\.lock|checkpoints|config\.json|(config|manifest)\.\d+\.tmp\.json")
        if not self._exists(self.path):
            return False
        if not self.path.is_dir() or any(not ours.fullmatch(entry.name) for entry in self.path.iterdir()):
            return True
        return self.checkpoints.exists() and any(self.checkpoints.iterdir())

    def _read(self, file: Path, keys: Sequence[str]) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text())
            if not isinstance(content, dict) or not all(key in content for key in keys):
                raise ValueError(f"{file.name} lacks {' or '.join(keys)}")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise BadInput("out", str(self.path), f"a directory that sweep.py made ({file.name}: {error})") from None
        return content

    def read_config(self) -> dict[str, Any]:
        config = self._read(self.config_json, ("eval_every", "train_every"))
        for name in ("eval_every", "train_every"):
            if not isinstance(config[name], int) or config[name] < 1:
                raise BadInput("out", str(self.path), f"a directory that sweep.py made (config.json: {name})")
        return config

    def read_manifest(self) -> dict[str, Any]:
        return self._read(self.manifest_json, ("sessions", "batches", "runs"))

    # --- one writer ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator["SweepFiles"]:
        """Hold the directory for one writer, and wait at the end until everything is on disk. Reading needs no lock.

        Raises BadInput if the directory cannot be written, or if another process holds it.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput("out", str(self.path), f"a directory that can be written ({error.strerror})") from None
        with self._lock():
            for pattern in ("*/*.orbax-checkpoint-tmp*", "*/removed-*"):
                for torn in self.checkpoints.glob(pattern):
                    shutil.rmtree(torn, ignore_errors=True)
            try:
                yield self
            finally:
                self.wait()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        file = self.path / ".lock"
        lock: filelock.BaseFileLock = filelock.FileLock(file)
        try:
            try:
                lock.acquire(timeout=0)
            except NotImplementedError:
                # A file system without locks, as some network mounts are. The file's existence is the lock there; a
                # killed process leaves it behind.
                lock = filelock.SoftFileLock(file.with_name(".lock-held"))
                lock.acquire(timeout=0)
        except filelock.Timeout:
            accepted = "a directory that no other running sweep is writing"
            if isinstance(lock, filelock.SoftFileLock):
                accepted += f"; if none is, remove {lock.lock_file}"
            raise BadInput("out", str(self.path), accepted) from None
        except OSError as error:
            raise BadInput("out", str(self.path), f"a directory that can be written ({error.strerror})") from None
        try:
            yield
        finally:
            lock.release()

    # --- measures -----------------------------------------------------------------------------------------------------

    def _measures_npz(self, batch: int, epoch: int) -> Path:
        return self.path / "analysis" / f"{batch:04d}" / f"{epoch}.npz"

    def save_measures(self, batch: int, epoch: int, measures: dict[str, Any]) -> None:
        """Replace the measures of one checkpoint atomically: {name: array [row, ...]}, with the `run` of each row."""
        path = self._measures_npz(batch, epoch)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: np.savez(temporary, **measures))

    def load_measures(self, batch: int, epoch: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
        """What `save_measures` wrote, or the named measures of it. None if nothing was saved, or if it is damaged."""
        try:
            # Opened here, because np.load leaves a damaged file open.
            with open(self._measures_npz(batch, epoch), "rb") as file, np.load(file, allow_pickle=False) as arrays:
                wanted = arrays.files if names is None else names
                return {name: arrays[name] for name in wanted if name in arrays}
        except UNREADABLE:
            return None

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def batch_dir(self, batch: int) -> Path:
        return self.checkpoints / f"{batch:04d}"

    def _save(self, path: Path, tree: Any) -> None:
        if path.exists():
            return
        if self._saver is None:
            self._saver = ocp.StandardCheckpointer()
        self._saver.save(path.absolute(), tree)

    def wait(self) -> None:
        """Return once everything saved is on disk."""
        if self._saver is not None:
            self._saver.wait_until_finished()

    @staticmethod
    def _restore(path: Path, *names: str) -> dict[str, Any]:
        """The pytree of a checkpoint, as numpy. Raises BadInput, and names the checkpoint, if it is damaged."""
        try:
            with ocp.PyTreeCheckpointer() as reader:
                tree = reader.metadata(path.absolute()).item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                restored = reader.restore(path.absolute(), restore_args=as_numpy)
            if not isinstance(restored, dict) or not {"run", *names} <= set(restored):
                raise ValueError(f"it lacks run or {' or '.join(names)}")
        except Exception as error:  # a damaged checkpoint makes orbax and tensorstore raise nearly anything
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            accepted = f"a whole checkpoint; this one is damaged ({what}). Remove it and run the same command again"
            raise BadInput("checkpoint", str(path), accepted) from None
        return restored

    @staticmethod
    def _remove(folder: Path) -> None:
        """Remove a checkpoint. It is renamed first, so that a half-removed one is never taken for a whole one."""
        shutil.rmtree(folder.rename(folder.with_name(f"removed-{folder.name}")))

    def forget_params_after(self, batch: int, epoch: int) -> None:
        """Remove the parameters of later epochs."""
        for later in self.checkpoint_epochs(batch):
            if later > epoch:
                self._remove(self.batch_dir(batch) / str(later))

    def save_params(self, batch: int, epoch: int, run: Int[np.ndarray, "rows"], params: Any) -> None:
        """Write stacked parameters [row, ...] and the run of each row in the background. An existing one is kept."""
        self._save(self.batch_dir(batch) / str(epoch), {"run": np.asarray(run, np.int64), "params": params})

    def load_params(self, batch: int, epoch: int) -> tuple[Int[np.ndarray, "rows"], dict[str, Any]]:
        """(the run of each row, the stacked parameters as numpy)."""
        tree = self._restore(self.batch_dir(batch) / str(epoch), "params")
        return tree["run"], tree["params"]

    def checkpoint_epochs(self, batch: int) -> list[int]:
        """The epochs whose parameters were saved, in order."""
        folder = self.batch_dir(batch)
        return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.exists() else []

    def save_state(self, batch: int, epoch: int, run: Int[np.ndarray, "rows"], state: Any) -> None:
        """Write a full state, and remove all but the newest KEPT_STATES once it is on disk."""
        leaves = {f"{i:03d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        path = self.batch_dir(batch) / f"state-{epoch}-rows-{len(run)}"
        self._save(path, {"run": np.asarray(run, np.int64), "leaves": leaves})
        self.wait()
        for _, older in self._states(batch)[:-KEPT_STATES]:
            self._remove(older)

    def _states(self, batch: int) -> list[tuple[int, Path]]:
        """(epoch, path) of each full state, oldest first. After a halving of the batch, the halved state is the
        newer."""
        folder, found = self.batch_dir(batch), []
        for path in folder.glob("state-*") if folder.exists() else ():
            if match := re.fullmatch(r"state-(\d+)-rows-(\d+)", path.name):
                found.append((int(match[1]), -int(match[2]), path))
        return [(epoch, path) for epoch, _, path in sorted(found)]

    def load_state(self, batch: int, structure: Any, newest: int) -> SavedState | None:
        """The newest full state that is not past the epoch `newest`, in the given tree structure; None if there is
        none.

        A state past the curves beside it is left alone: resuming from it would leave a hole in them.
        """
        usable = [(epoch, path) for epoch, path in self._states(batch) if epoch <= newest]
        if not usable:
            return None
        epoch, path = usable[-1]
        tree = self._restore(path, "leaves")
        leaves = [tree["leaves"][key] for key in sorted(tree["leaves"], key=int)]
        if len(leaves) != structure.num_leaves:
            raise BadInput("checkpoint", str(path), f"a state of {structure.num_leaves} arrays, not {len(leaves)}")
        return SavedState(epoch, tree["run"], jax.tree.unflatten(structure, leaves))

    def forget_states_after(self, batch: int, epoch: int) -> None:
        """Remove the full states of later epochs."""
        for later, path in self._states(batch):
            if later > epoch:
                self._remove(path)
