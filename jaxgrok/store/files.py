"""The files of a sweep directory, the locks of those who write there, and the measures beside the checkpoints.

    runs/NAME/config.json       the fields that hold for the whole sweep
              manifest.json     the runs, and the batches they train in; written before training starts
              checkpoints/B/    the steps of batch B (store/steps.py): curves, parameters and states
              analysis/B/E.npz  every measure of the networks in the step E of batch B, [network, ...]
              metrics.npz       the curves of all runs; made from the steps, for others to read
              tables/ figures/  made from the steps too

config.json and manifest.json carry a digest, and are refused if they have changed since they were written.
"""

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from jaxgrok.atomic import bad_place, replace_file, write_json
from jaxgrok.config import BadInput
from jaxgrok.nets.weight_files import check_sizes
from jaxgrok.store.curves import UNREADABLE
from jaxgrok.store.integrity import with_digest, without_digest
from jaxgrok.store.steps import BatchSteps, Damaged

VERSION = 2  # of the layout; a manifest of version 0.1.0 says none
WAIT_SECONDS = 600  # how long a shard waits while another one plans, or writes what sums up all shards


class Shard(NamedTuple):
    """The i-th of n parts of a sweep, i from 0: every n-th of its batches."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class DamagedMeasures(Damaged):
    """A file of measures that is not what was written there."""

    effect = "its networks count as not measured"
    remedy = "analyze.py measures its networks again"


class SweepFiles:
    """The files of one sweep directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

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

    def batch_dir(self, batch: int) -> Path:
        return self.checkpoints / f"{batch:04d}"

    def steps(self, batch: int) -> BatchSteps:
        return BatchSteps(self.batch_dir(batch))

    def _exists(self, path: Path) -> bool:
        try:
            if path.is_symlink() and not path.exists():
                raise OSError(errno.ENOENT, "it is a link that leads nowhere")
            return path.exists()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadInput("out", str(self.path), f"a directory name ({why})") from None

    def exists(self) -> bool:
        """Whether a sweep was begun here.

        Raises BadInput, and names the file, if it was and one of its two JSON files has gone.
        """
        # Asked in this order, because another process may be writing them, in the other one: first the config, then the
        # manifest, then steps.
        has_steps = self._exists(self.checkpoints) and self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        has_manifest, has_config = self._exists(self.manifest_json), self._exists(self.config_json)
        if has_manifest and not has_config:
            raise self._lost(self.config_json)
        if has_steps and has_config and not has_manifest:
            raise self._lost(self.manifest_json)
        return has_manifest and has_config

    def _lost(self, file: Path) -> BadInput:
        accepted = f"a directory that sweep.py made ({file.name} is missing). Restore that file from a copy"
        return BadInput("out", str(self.path), accepted)

    def holds_something_else(self) -> bool:
        """Whether the path is taken by anything but a sweep, or the beginnings of one."""
        ours = re.compile(r"\.lock.*|checkpoints|config\.json|(config|manifest)\.\w+\.tmp\.json")
        if not self._exists(self.path):
            return False
        if not self.path.is_dir() or any(not ours.fullmatch(entry.name) for entry in self.path.iterdir()):
            return True
        return self.checkpoints.exists() and any(self.checkpoints.iterdir())

    # --- config and manifest ------------------------------------------------------------------------------------------

    def _read(self, file: Path, keys: Sequence[str], has_digest: bool = False) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text())
            if has_digest or (isinstance(content, dict) and ("digest" in content or "version" in content)):
                content = without_digest(content)
            if not isinstance(content, dict) or not all(key in content for key in keys):
                raise ValueError(f"{file.name} lacks {' or '.join(keys)}")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            accepted = f"a directory that sweep.py made ({file.name}: {error}). Restore that file from a copy"
            raise BadInput("out", str(self.path), accepted) from None
        return content

    def read_config(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that hold for the whole sweep. manifest: what `read_manifest` gave."""
        # Version 0.1.0 wrote no digests.
        config = self._read(self.config_json, ("eval_every", "train_every"), "version" in manifest)
        for name in ("eval_every", "train_every"):
            if not isinstance(config[name], int) or config[name] < 1:
                raise BadInput("out", str(self.path), f"a directory that sweep.py made (config.json: {name})")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        write_json(self.config_json, with_digest(config))

    def read_manifest(self) -> dict[str, Any]:
        """The manifest: `runs` {number: record} and `batches` {number: batch}; `version`, unless 0.1.0 wrote it."""
        manifest = self._read(self.manifest_json, ("batches", "runs"))
        if manifest.get("version", VERSION) != VERSION:
            accepted = f"a directory in layout {VERSION}, or of version 0.1.0; this one is in {manifest['version']!r}"
            raise BadInput("out", str(self.path), f"{accepted}. A newer jaxgrok made it")
        return manifest

    def write_manifest(self, runs: dict[int, Any], batches: dict[int, Any]) -> None:
        """Write the manifest, unless it already says the same."""
        plain = json.loads(json.dumps({"version": VERSION, "batches": batches, "runs": runs}))
        if not self.manifest_json.exists() or self.read_manifest() != plain:
            write_json(self.manifest_json, with_digest(plain))

    # --- one writer ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, shard: Shard | None = None) -> Iterator[contextlib.ExitStack]:
        """Hold the directory, or one shard of it, for one writer. Reading needs no lock.

        Yields the lock on planning. A shard closes it once its plan is written, so that other shards can plan too;
        without shards it is held to the end.

        Raises BadInput if the directory cannot be written, or if another process holds it.
        """
        with bad_place("out", self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as training, contextlib.ExitStack() as planning:
            planning.enter_context(self._lock(".lock", 0 if shard is None else WAIT_SECONDS))
            self._refuse_other_shards(shard)
            if shard is not None:
                training.enter_context(self._lock(f".lock-{shard.index}-of-{shard.count}", 0))
            yield planning

    @contextlib.contextmanager
    def summing_up(self) -> Iterator[None]:
        """Hold what is made from the steps of all shards, from reading them to writing it: metrics.npz, tables and
        figures. Else a shard that has read them before could write after one that has read more."""
        with self._lock(".lock-summary", WAIT_SECONDS):
            yield

    def _refuse_other_shards(self, shard: Shard | None) -> None:
        """Raise BadInput if a process writes here that divides the sweep into another number of shards."""
        for name in {file.name.removesuffix("-held") for file in self.path.glob(".lock-*-of-*")}:
            if shard is None or not name.endswith(f"-of-{shard.count}"):
                with self._lock(name, 0):
                    pass

    @contextlib.contextmanager
    def _lock(self, name: str, timeout: float) -> Iterator[None]:
        file = self.path / name
        lock: filelock.BaseFileLock = filelock.FileLock(file)
        with bad_place("out", self.path):
            try:
                try:
                    lock.acquire(timeout=timeout)
                except NotImplementedError:
                    # A file system without locks, as some network mounts are. The file's existence is the lock there; a
                    # killed process leaves it behind.
                    lock = filelock.SoftFileLock(file.with_name(f"{file.name}-held"))
                    lock.acquire(timeout=timeout)
            except filelock.Timeout:
                accepted = "a directory that no other running sweep is writing"
                if isinstance(lock, filelock.SoftFileLock):
                    accepted += f"; if none is, remove {lock.lock_file}"
                raise BadInput("out", str(self.path), accepted) from None
        try:
            yield
        finally:
            lock.release()

    # --- measures -----------------------------------------------------------------------------------------------------

    def _measures_npz(self, batch: int, step: int) -> Path:
        return self.path / "analysis" / f"{batch:04d}" / f"{step}.npz"

    def measured_steps(self, batch: int) -> list[int]:
        """The steps of a batch beside which there are measures, in order of epoch."""
        folder = self._measures_npz(batch, 0).parent
        return sorted(int(file.stem) for file in folder.glob("*.npz") if file.stem.isdecimal())

    def save_measures(self, batch: int, step: int, measures: dict[str, Any]) -> None:
        """Replace the measures of one step atomically: {name: array [network, ...]}, with `run` and `epoch`."""
        path = self._measures_npz(batch, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: np.savez(temporary, **measures))

    def load_measures(self, batch: int, step: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
        """What `save_measures` wrote, or the named measures of it. None if nothing was saved.

        Raises DamagedMeasures if that is not what is there.
        """
        path = self._measures_npz(batch, step)
        try:
            check_sizes(path)
            # Opened here, because np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                wanted = arrays.files if names is None else {"run", *names}
                found = {name: arrays[name] for name in wanted if name in arrays}
            axes = [found["run"], found.get("epoch", found["run"])]  # a file of version 0.1.0 is of a single epoch
            if any(axis.ndim != 1 or axis.dtype.kind != "i" for axis in axes):
                raise ValueError("its runs and epochs are no lists of numbers")
            if any(x.ndim == 0 or len(x) != len(axes[0]) for x in found.values()):
                raise ValueError("its measures are not of as many networks")
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise DamagedMeasures(path, error) from None
        return found

    def forget_measures(self, batch: int, step: int) -> None:
        """Remove the measures of a step that there is no more."""
        self._measures_npz(batch, step).unlink(missing_ok=True)
