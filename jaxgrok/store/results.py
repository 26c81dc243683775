"""What a sweep left on disk, for reading: `load(run_dir)` finds runs by their coordinates, never by row."""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxgrok.config import CONFIG_FIELDS, LATER, BadInput, Config
from jaxgrok.store import events as phases
from jaxgrok.store.steps import Metrics, SweepFiles
from jaxgrok.tasks import make_task

KEYS = "key_frequencies/keys"  # the name of a run's keys among its measures
AXES = ("task", "arch", "p", "frac", "wd", "lr")  # what every table names of a run, beside its seed
UNSAID = {"init_scale": 1.0, **{name: CONFIG_FIELDS[name].default for name in LATER}}  # of a run in an older directory


class Results:
    """A sweep directory, opened for reading; training may be going on in it.

    runs: [{"run": number, "seed", "frac", "wd", "lr", "task", "p", ..., "n_train", "status", ...}] in order of number.
    metrics: the curves of all runs (checkpoint.Metrics).
    """

    def __init__(self, path):
        self.files = SweepFiles(path)
        if not self.files.exists() or not self.files.metrics_npz.exists():
            raise BadInput("run directory", str(path), "a directory that sweep.py made")
        manifest = self.files.read_manifest()
        self.sessions, self.batches = manifest["sessions"], manifest["batches"]
        self.runs = [{"run": int(number), **UNSAID, **record} for number, record in manifest["runs"].items()]
        config = self.files.read_config()
        longest = max(record["epochs"] for record in self.runs)
        needs_x64 = any(self.config(record).needs_x64 for record in self.runs)
        dtype, n_parts = "float64" if needs_x64 else "float32", max(len(self.parts(record)) for record in self.runs)
        self.metrics = Metrics(len(self.runs), longest, config["eval_every"], config["train_every"], dtype, n_parts)
        self.metrics.copy_from(self.files.metrics_npz)

    @property
    def path(self) -> Path:
        return self.files.path

    @staticmethod
    def config(record: dict) -> Config:
        return Config.from_dict(record)

    @classmethod
    def parts(cls, record: dict) -> tuple[str, ...]:
        """The names of the parts of a run's task; () where it has none."""
        return make_task(cls.config(record)).parts

    def varying(self) -> list[str]:
        """The fields in which runs differ, beside the seed: a cell is one combination of them."""
        # The train examples of a modular task follow from its fraction.
        sizes = () if all(record["frac"] is not None for record in self.runs) else ("n_train",)
        fields = [*AXES, *sizes, "init_scale", *(name for name in CONFIG_FIELDS if name not in AXES)]
        return [name for name in fields if len({record[name] for record in self.runs}) > 1]

    def cells(self) -> dict[tuple, list[dict]]:
        """Runs by cell: {((field, value), ...): [record]}, over the fields that vary; one cell () where none does.

        A run that has not begun is in none.
        """
        cells = {}
        for record in self.runs:
            if not self.metrics.last_epoch[record["run"]]:
                continue
            cells.setdefault(tuple((name, record[name]) for name in self.varying()), []).append(record)
        return cells

    def select(self, **coordinates) -> list[dict]:
        """The runs with these coordinates (`seed=3, wd=1.0`; `weight_decay` is `wd`). Raises BadInput where none has them."""
        if "weight_decay" in coordinates:
            coordinates["wd"] = coordinates.pop("weight_decay")
        for name, value in coordinates.items():
            values = sorted({record[name] for record in self.runs if name in record}, key=str)
            if value not in values:
                raise BadInput(name, value, "one of " + " ".join(map(str, values)) if values else "a coordinate of a run")
        found = [record for record in self.runs if all(record[name] == value for name, value in coordinates.items())]
        if not found:
            raise BadInput("coordinates", coordinates, "a combination that was trained")
        return found

    def _one(self, coordinates: dict) -> dict:
        found = self.select(**coordinates)
        if len(found) > 1:
            differ = [name for name in ("seed", *self.varying()) if len({record[name] for record in found}) > 1]
            raise BadInput("coordinates", coordinates, "coordinates of one run; also give " + " ".join(differ))
        return found[0]

    def curves(self, **coordinates) -> dict:
        """One run's curves, by coordinates: epoch_eval, test_loss, train_acc, test_acc [evaluations], epoch_train, train_loss."""
        return self.metrics.of_run(self._one(coordinates)["run"])

    def part_curves(self, part: str | None = None, **coordinates) -> dict:
        """One run's test losses and accuracies by part: epoch_eval [evaluations], test_answer_acc (all counted targets of an example
        right), and {part: [evaluations]} under test_part_loss and test_part_acc; of one part alone where it is named.

        Raises BadInput for a part that does not exist.
        """
        record = self._one(coordinates)
        names = self.parts(record)
        if not names or part is not None:
            check_part(part, self.config(record))
        curves = self.metrics.parts_of_run(record["run"])
        chosen = [(i, name) for i, name in enumerate(names) if part in (None, name)]
        by_part = {curve: {name: curves[curve][:, i] for i, name in chosen} for curve in ("test_part_loss", "test_part_acc")}
        return {"epoch_eval": self.curves(run=record["run"])["epoch_eval"], "test_answer_acc": curves["test_answer_acc"], **by_part}

    def checkpoint_epochs(self, **coordinates) -> list[int]:
        """The epochs at which one run's parameters were saved."""
        record = self._one(coordinates)
        if record["batch"] is None:
            return []
        last = int(self.metrics.last_epoch[record["run"]])
        return [epoch for epoch in self.files.checkpoint_epochs(record["batch"]) if epoch <= last]

    def params(self, epoch: int | None = None, **coordinates) -> dict:
        """One run's parameters after `epoch` updates (None: its last checkpoint), as numpy. Raises BadInput for an epoch not saved."""
        record = self._one(coordinates)
        epochs = self.checkpoint_epochs(**coordinates)
        if not epochs:
            raise BadInput("run", record["run"], "one that has begun")
        epoch = epochs[-1] if epoch is None else epoch
        if epoch not in epochs:
            raise BadInput("epoch", epoch, "a saved one: " + " ".join(map(str, epochs)))
        rows, stacked = self.files.load_params(record["batch"], epoch)
        (row,) = (rows == record["run"]).nonzero()[0]
        return jax.tree.map(lambda leaf: leaf[row], stacked)

    # --- what analyze.py measured --------------------------------------------------------------------------------------

    def analysed(self, runs=None, names=None) -> Iterator[tuple[dict, int, dict]]:
        """(record, epoch, {name: array}) of every analysed checkpoint, batch by batch in order of epoch, a file at a time.

        runs: numbers of the runs wanted, None: all. names: the measures wanted, None: all. A measure's name is its path in
        `measures.all`, joined by "/": `restricted_loss/all`.
        """
        records = {record["run"]: record for record in self.runs if runs is None or record["run"] in runs}
        for batch in sorted({record["batch"] for record in records.values() if record["batch"] is not None}):
            for epoch in self.files.checkpoint_epochs(batch):
                found = self.files.load_measures(batch, epoch, names and ("run", *names)) or {"run": ()}
                for row, run in enumerate(found["run"]):
                    if run in records and epoch <= self.metrics.last_epoch[run]:
                        # Copied: a view would keep the rows of all other runs in memory.
                        yield records[run], epoch, {name: np.array(x[row]) for name, x in found.items()}

    def last_analysed(self, records: list[dict]) -> list[dict]:
        """{name: array, `epoch`} of each run's last analysed checkpoint, in the order of the records; a run without is left out."""
        found, load = [], functools.lru_cache(maxsize=1)(self.files.load_measures)  # runs of a batch mostly end together
        for record in records:
            for epoch in reversed(self.checkpoint_epochs(run=record["run"])):
                measures = load(record["batch"], epoch)
                if measures is not None and record["run"] in measures["run"]:
                    (row,) = (measures["run"] == record["run"]).nonzero()[0]
                    found.append({**{name: np.array(x[row]) for name, x in measures.items()}, "epoch": epoch})
                    break
        return found

    def measures(self, **coordinates) -> dict:
        """One run's measures at all its analysed checkpoints, by coordinates: what `measures.all` gives, [checkpoints, ...],
        and `epoch` [checkpoints]; without what it gives as None. Raises BadInput for a run that was not analysed."""
        return self.measured([self._one(coordinates)])[0]

    def measured(self, records: list[dict], names=None) -> list[dict]:
        """`measures` of several runs, or these of their names (see `analysed`), in one pass over the files."""
        series = {record["run"]: {"epoch": []} for record in records}
        for record, epoch, found in self.analysed(set(series), names):
            rows = series[record["run"]]
            rows["epoch"].append(epoch)
            for name in found.keys() - {"run", "dtype"}:
                rows.setdefault(name, []).append(found[name])
        for record in records:
            if not series[record["run"]]["epoch"]:
                raise BadInput("run", record["run"], f"one that was analysed: python scripts/analyze.py {self.path}")
        return [unflatten_dict({name: np.stack(rows) for name, rows in of_run.items()}, sep="/") for of_run in series.values()]

    @functools.cached_property
    def _restricted(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """{run: (epochs, restricted loss over all pairs)} of the runs whose every checkpoint was analysed, with the same keys."""
        points = {}
        for record, epoch, found in self.analysed(names=(KEYS, "restricted_loss/all")):
            if KEYS in found:  # not where heads were measured
                points.setdefault(record["run"], []).append((epoch, found["restricted_loss/all"], found[KEYS]))
        curves = {}
        for run, of_run in points.items():
            epochs, losses, keys = (np.array(column) for column in zip(*of_run))
            # A run that has trained on, or whose analysis was interrupted, has no whole curve under one set of keys.
            if list(epochs) == self.checkpoint_epochs(run=run) and (keys == keys[-1]).all():
                curves[run] = epochs, losses
        return curves

    def timing(self, record: dict) -> phases.Timing:
        """The events of one run; those of its circuits where all its checkpoints were analysed."""
        limits = {"grokked_loss": make_task(self.config(record)).grokked_loss, "unlimited": record["n_train"] is None}
        return phases.time_run(**self.metrics.of_run(record["run"]), restricted=self._restricted.get(record["run"]), **limits)

    def part_timings(self, record: dict) -> dict[str, phases.Timing]:
        """{part: its events} of one run, for the parts that the loss counts: a loss below half of the part's own chance and, where the
        run's criterion is accuracy, that accuracy too: alone, one class is always right for a network that always guesses it.
        Memorised is the run's. A part of which the run's test set has no target is left out."""
        task, run = make_task(self.config(record)), record["run"]
        whole, of_parts = self.metrics.of_run(run), self.metrics.parts_of_run(run) if task.parts else {}
        timings = {}
        for i, part in enumerate(task.parts[: task.counted]):
            loss, accuracy, limit = of_parts["test_part_loss"][:, i], of_parts["test_part_acc"][:, i], task.chance[i] / 2
            if len(loss) and np.isnan(loss).all():
                continue
            curves = {"test_loss": loss, "test_acc": np.where(loss < limit, accuracy, 0)}
            grokked_loss = None if task.grokked_loss is None else limit
            timings[part] = phases.time_run(**{**whole, **curves}, grokked_loss=grokked_loss, unlimited=record["n_train"] is None)
        return timings

    @property
    def has_circuit_events(self) -> bool:
        """Whether any run's checkpoints were analysed."""
        return bool(self._restricted)


def check_part(part: str | None, config: Config, label: str = "part") -> None:
    """Raises BadInput, named `label`, where the config's task has no such part."""
    names = make_task(config).parts
    if part not in names:
        raise BadInput(label, part, f"a part of task {config.task}: {', '.join(names) or 'it has none'}")


def load(run_dir) -> Results:
    """Open a sweep directory for reading. Raises BadInput where there is none."""
    return Results(run_dir)
