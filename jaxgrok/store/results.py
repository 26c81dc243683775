"""A sweep directory opened for reading: `load(run_dir)` finds runs by their coordinates, never by their row."""

import functools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxgrok.config import CONFIG_FIELDS, UNLIMITED, BadInput, Config
from jaxgrok.store.batches import SavedBatch, curves_for, events_of_batch
from jaxgrok.store.curves import UNREADABLE, RunCurves, SweepCurves, write_npz
from jaxgrok.store.events import Outcome, RestrictedLoss, RunEvents, Timing, events_of, with_restricted
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.integrity import digest_of_content
from jaxgrok.store.old import OldBatch
from jaxgrok.store.records import RunRecord, Status, read_batches, read_records
from jaxgrok.store.steps import Damaged
from jaxgrok.tasks import Task, make_task

KEYS = "key_frequencies/keys"  # the name of a run's keys among its measures
KEPT_BYTES = 500e6  # of curves: those of 2,000 runs of the mainline
AXES = ("task", "arch", "p", "frac", "wd", "lr")  # the coordinates that every table names beside the seed


def text_of(name: str, value: Any) -> str:
    """A coordinate's value for people."""
    if value is None:
        return UNLIMITED if name == "n_train" else "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def name_of(fields: Sequence[tuple[str, Any]]) -> str:
    """`wd=0.1 lr=0.001`."""
    return " ".join(f"{name}={text_of(name, value)}" for name, value in fields)


@dataclass(frozen=True)
class Cell:
    """One combination of all axes except the seed. records and timings are of its runs, in the same order.

    fields: ((name, value), ...) of the axes that vary in the sweep; () in a sweep that varies the seed alone.
    """

    fields: tuple[tuple[str, Any], ...]
    records: list[RunRecord]
    timings: list[Timing]

    @property
    def name(self) -> str:
        return name_of(self.fields)

    @property
    def config(self) -> Config:
        """The config of its runs, which differ in their seeds alone."""
        return self.records[0].config

    @property
    def task(self) -> Task:
        return self.records[0].task

    @property
    def unlimited(self) -> bool:
        return self.records[0].run.unlimited

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many runs ended in each way."""
        return {outcome: sum(timing.outcome is outcome for timing in self.timings) for outcome in Outcome}


class Results:
    """A sweep directory, opened for reading; training may still be going on in it.

    runs: a RunRecord of every run, in order of number, as of the last good save. batches: what is saved of each batch.
    damage: what was found to be damaged, so far: parameters and measures are not read before they are asked for. Every
        run is as it was at the last good step before.
    eval_every, train_every: epochs between evaluations, and between recorded train losses.
    """

    def __init__(self, path: str | Path):
        self.files = SweepFiles(path)
        if not self.files.exists():
            raise BadInput("run directory", str(path), "a directory that sweep.py made")
        manifest = self.files.read_manifest()
        config = self.files.read_config(manifest)
        self.eval_every, self.train_every = config["eval_every"], config["train_every"]
        self.runs = read_records(self.files, manifest)
        if not self.runs:
            raise BadInput("run directory", str(path), "a directory of a sweep that has runs")
        self._read: OrderedDict[int, SweepCurves] = OrderedDict()  # the curves of batches, the last used at the end
        self._events: dict[int, list[RunEvents]] = {}  # of the runs of a batch, in their order
        self._rows: dict[int, tuple[int, int]] = {}  # {run: (its batch, its row in the batch's curves)}
        self.batches: dict[int, SavedBatch | OldBatch] = {}
        if "version" in manifest:
            self.batches.update(self._saved_batches(manifest))
        else:
            self.batches.update(self._old_batches(manifest))
        self._late: dict[str, Damaged] = {}  # what was found to be damaged later, by its path
        for number, batch in list(self.batches.items()):
            self._open(number, batch.current())  # training may have replaced a step meanwhile

    def refresh(self, number: int) -> None:
        """Take over what training has saved of a batch since it was read."""
        batch = self.batches[number].current()
        if batch is not self.batches[number]:
            self._open(number, batch)

    def _open(self, number: int, batch: SavedBatch | OldBatch) -> None:
        """Have a batch, its curves and its runs as they are now, and forget what was found in them before."""
        self.batches[number] = batch
        self._read.pop(number, None)
        self._events.pop(number, None)
        if not batch.is_whole:
            self._keep(number, batch.curves())  # falls back to the last good step
        for row, record in enumerate(batch.records):
            self.runs[record.number], self._rows[record.number] = record, (number, row)
        for known in ("cells", "_places", "_restricted"):
            self.__dict__.pop(known, None)

    def _curves(self, number: int) -> SweepCurves:
        """The curves of a batch. Raises Damaged, and names the step, if it turns out only now that some are."""
        if number not in self._read:
            batch = self.batches[number].current()  # training may have replaced a step meanwhile
            known = {str(damage) for damage in batch.damage}
            curves = batch.curves()
            for damage in batch.damage:
                if str(damage) not in known:
                    raise damage
            self._keep(number, curves)
        self._read.move_to_end(number)
        return self._read[number]

    def _keep(self, number: int, curves: SweepCurves) -> None:
        """Keep the curves of a batch. Those of many may not fit into memory together, so the last used ones stay."""
        self._read[number] = curves
        while len(self._read) > 1 and sum(curves.nbytes for curves in self._read.values()) > KEPT_BYTES:
            self._read.popitem(last=False)

    def _saved_batches(self, manifest: dict[str, Any]) -> dict[int, SavedBatch]:
        return {
            number: SavedBatch(
                self.files.steps(number), [self.runs[run] for run in runs], epochs, self.eval_every, self.train_every
            )
            for number, (runs, epochs) in read_batches(self.files, manifest, len(self.runs)).items()
        }

    def _old_batches(self, manifest: dict[str, Any]) -> dict[int, OldBatch]:
        """The batches of a directory of version 0.1.0. What waits has none."""
        configs, epochs = {record.config for record in self.runs}, [record.epochs for record in self.runs]
        dtype = "float64" if any(config.needs_x64 for config in configs) else "float32"
        n_parts = max(len(make_task(config).parts) for config in configs)
        curves = SweepCurves(len(self.runs), max(epochs), self.eval_every, self.train_every, dtype, n_parts)
        curves.copy_from(self.files.metrics_npz)
        members: dict[int, list[RunRecord]] = {}
        for i, record in enumerate(self.runs):
            # The curves know best: the manifest of that version was written before them.
            self.runs[i] = replace(record, last_epoch=int(curves.last_epoch[i]))
            members.setdefault(-1 if record.batch is None else record.batch, []).append(self.runs[i])
        sessions = manifest.get("sessions", [])
        if not isinstance(sessions, list) or not sessions or not all(isinstance(x, dict) for x in sessions):
            raise BadInput("run directory", str(self.path), "a directory of a sweep that has runs")
        return {number: OldBatch(self.files.steps(number), of, curves, sessions) for number, of in members.items()}

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def damage(self) -> list[Damaged]:
        return [*(damage for batch in self.batches.values() for damage in batch.damage), *self._late.values()]

    def damage_of(self, record: RunRecord) -> list[Damaged]:
        """What is damaged in the batch of a run."""
        return [] if record.batch is None else self.batches[record.batch].damage

    @functools.cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """Versions, devices and command of each session that trained here, oldest first."""
        found = [session for batch in self.batches.values() for session in batch.sessions]
        different = {str(session): session for session in found}.values()
        return sorted(different, key=lambda session: str(session.get("started", "")))

    # --- runs and cells -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def varying(self) -> list[str]:
        """The coordinates in which runs differ, beside the seed: a cell is one combination of them."""
        # The number of train examples of a modular task follows from its fraction.
        sizes = () if all(record.run.frac is not None for record in self.runs) else ("n_train",)
        names = [*AXES, *sizes, "init_scale", *(name for name in CONFIG_FIELDS if name not in AXES)]
        return [name for name in names if len({record.coordinates[name] for record in self.runs}) > 1]

    @functools.cached_property
    def cells(self) -> list[Cell]:
        """The cells of the sweep, with the timings of their runs. A run that has not begun is in none."""
        by_fields: dict[tuple, list[RunRecord]] = {}
        varying = self.varying
        for record in self.runs:
            if record.last_epoch:
                fields = tuple((name, record.coordinates[name]) for name in varying)
                by_fields.setdefault(fields, []).append(record)
        return [
            Cell(fields, records, [self.timing(record) for record in records]) for fields, records in by_fields.items()
        ]

    @property
    def not_begun(self) -> int:
        """How many runs have not begun."""
        return sum(record.last_epoch == 0 for record in self.runs)

    def select(self, **coordinates: Any) -> list[RunRecord]:
        """The runs with these coordinates, by the names used on disk; `weight_decay` is another name for `wd`.

        Raises BadInput if there is no such run.
        """
        if "weight_decay" in coordinates:
            coordinates["wd"] = coordinates.pop("weight_decay")
        for name, value in coordinates.items():
            values = {record.coordinates[name] for record in self.runs if name in record.coordinates}
            if value not in values:
                listed = " ".join(map(str, sorted(values, key=str)))
                raise BadInput(name, value, f"one of {listed}" if values else "a coordinate of a run")
        wanted = coordinates.items()
        found = [record for record in self.runs if all(record.coordinates[name] == value for name, value in wanted)]
        if not found:
            raise BadInput("coordinates", coordinates, "a combination that was trained")
        return found

    def record(self, **coordinates: Any) -> RunRecord:
        """The one run with these coordinates. Raises BadInput if there is none, or more than one."""
        found = self.select(**coordinates)
        if len(found) > 1:
            names = ("seed", *self.varying)
            differ = [name for name in names if len({record.coordinates[name] for record in found}) > 1]
            raise BadInput("coordinates", coordinates, "coordinates of one run; also give " + " ".join(differ))
        return found[0]

    # --- curves and events --------------------------------------------------------------------------------------------

    def curves(self, **coordinates: Any) -> RunCurves:
        """One run's curves, by its coordinates."""
        return self.curves_of(self.record(**coordinates))

    def curves_of(self, record: RunRecord) -> RunCurves:
        """The curves of a run, up to its last epoch. They are empty if it has not begun."""
        if record.number not in self._rows:
            return curves_for(record.config, 1, 1, self.eval_every, self.train_every).of_run(0)
        batch, row = self._rows[record.number]
        # Training may have gone on since the record was read, and the two belong together.
        return self._curves(batch).of_run(row, record.last_epoch)

    def part_curves(self, part: str | None = None, **coordinates: Any) -> dict[str, Any]:
        """One run's test curves by part: `epoch_eval` and `test_answer_acc` [evaluations], and under `test_part_loss`
        and `test_part_acc` a dictionary {part: [evaluations]}, of one part alone if it is named.

        Raises BadInput for a part that does not exist.
        """
        record = self.record(**coordinates)
        names = record.task.parts
        if not names or part is not None:
            check_part(part, record.config)
        curves = self.curves_of(record)
        numbers = {name: i for i, name in enumerate(names) if part in (None, name)}
        by_part = {
            curve: {name: getattr(curves, curve)[:, i] for name, i in numbers.items()}
            for curve in ("test_part_loss", "test_part_acc")
        }
        return {"epoch_eval": curves.epoch_eval, "test_answer_acc": curves.test_answer_acc, **by_part}

    def timing(self, record: RunRecord) -> Timing:
        """The events of one run, with those of its circuits if all its checkpoints were analysed."""
        timing, restricted = self.events(record).timing, self._restricted.get(record.number)
        return timing if restricted is None else with_restricted(timing, restricted)

    def part_timings(self, record: RunRecord) -> dict[str, Timing]:
        """{part: its events} of one run, for the parts that the loss counts (`Task.part_criterion`). `memorised` is the
        run's. A part of which the run's test set has no target is left out."""
        events = self.events(record).parts.items()
        return {part: of_part.timing for part, of_part in events if of_part.timing is not None}

    def events(self, record: RunRecord) -> RunEvents:
        """What tables say of one run. Of a batch that has ended they are on disk, and no curves are read."""
        if record.number not in self._rows:
            return events_of(record.task, self.curves_of(record), record.run.unlimited)
        number, row = self._rows[record.number]
        if number not in self._events:
            batch = self.batches[number]
            stored = batch.stored_events()
            # All runs of a batch at once, because its curves may not stay in memory.
            self._events[number] = events_of_batch(batch.records, self._curves(number)) if stored is None else stored
        return self._events[number][row]

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def checkpoint_epochs(self, record: RunRecord) -> list[int]:
        """The epochs at which a run's parameters were saved."""
        return sorted(self._places[record.number])

    @functools.cached_property
    def _places(self) -> dict[int, dict[int, tuple[int, int]]]:
        """{run: {epoch: (step, index)}}: where the parameters of a run are."""
        places: dict[int, dict[int, tuple[int, int]]] = {record.number: {} for record in self.runs}
        for batch in self.batches.values():
            for step, networks in batch.networks().items():
                for index, (epoch, run) in enumerate(networks):
                    places[run][epoch] = step, index
        return places

    @functools.cached_property
    def _load_params(self) -> Any:
        def load(batch: int, step: int) -> dict[str, Any]:
            return self.batches[batch].current().params(step)

        return functools.lru_cache(maxsize=1)(load)

    def network(self, record: RunRecord, epoch: int) -> dict[str, Any]:
        """The parameters of a run at a saved epoch, as numpy. Raises Damaged, and names the step."""
        assert record.batch is not None  # what was saved is in a batch
        try:
            step, index = self._place(record, epoch)
            return jax.tree.map(lambda leaf: leaf[index], self._load_params(record.batch, step))
        except Damaged as damage:
            self._late[damage.value] = damage
            raise

    def _place(self, record: RunRecord, epoch: int) -> tuple[int, int]:
        """(step, index) of the parameters of a run at a saved epoch, wherever training has put them meanwhile."""
        assert record.batch is not None
        step, index = self._places[record.number][epoch]
        batch = self.batches[record.batch].current()
        if batch is not self.batches[record.batch]:
            for newer, networks in batch.networks().items():
                if (epoch, record.number) in networks:
                    return newer, networks.index((epoch, record.number))
            raise batch.steps.damaged(step, "it is missing")
        return step, index

    def params(self, epoch: int | None = None, **coordinates: Any) -> dict[str, Any]:
        """One run's parameters after `epoch` updates, as numpy; None means its last checkpoint.

        Raises BadInput for an epoch that was not saved.
        """
        record = self.record(**coordinates)
        epochs = self.checkpoint_epochs(record)
        if not epochs or record.batch is None:
            raise BadInput("run", record.number, "a run that has begun")
        epoch = epochs[-1] if epoch is None else epoch
        if epoch not in epochs:
            raise BadInput("epoch", epoch, "a saved one: " + " ".join(map(str, epochs)))
        return self.network(record, epoch)

    # --- measures -----------------------------------------------------------------------------------------------------

    def analysed(
        self, runs: set[int] | None = None, names: Sequence[str] | None = None
    ) -> Iterator[tuple[RunRecord, int, dict[str, Any]]]:
        """(record, epoch, {name: array}) of every analysed checkpoint, batch by batch in order of epoch. One file is
        open at a time.

        runs: the numbers of the runs wanted; None means all. names: the measures wanted; None means all. A measure's
        name is its path in `measures.all`, joined by "/": `restricted_loss/all`.
        """
        records = {record.number: record for record in self.runs if runs is None or record.number in runs}
        for batch in sorted({record.batch for record in records.values() if record.batch is not None}):
            for step in self.batches[batch].networks():
                found = self._load_measures(batch, step, names)
                for row, run, epoch in self._rows_of(found, batch, step):
                    if found is not None and run in records and epoch in self._places[run]:
                        # Copied: a view would keep the rows of all other runs in memory.
                        measures = {name: np.array(x[row]) for name, x in found.items() if name != "epoch"}
                        yield records[run], epoch, measures

    def last_analysed(self, records: list[RunRecord]) -> list[dict[str, Any]]:
        """{name: array} of each run's last analysed checkpoint, with its `epoch`, in the order of the records. A run
        that was not analysed is left out."""
        load = functools.lru_cache(maxsize=1)(self._load_measures)  # the runs of a batch mostly end together
        found = []
        for record in records:
            if record.batch is None:
                continue
            for epoch, (step, _) in sorted(self._places[record.number].items(), reverse=True):
                measures, place = load(record.batch, step), (record.number, epoch)
                here = [row for row, *at in self._rows_of(measures, record.batch, step) if tuple(at) == place]
                if measures is not None and here:
                    one = {name: np.array(x[here[0]]) for name, x in measures.items()}
                    found.append({**one, "epoch": epoch})
                    break
        return found

    def _load_measures(self, batch: int, step: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
        """The measures beside a step, or the named ones and what they are of. None if there are none that are whole."""
        try:
            return self.files.load_measures(batch, step, None if names is None else ("epoch", "step", *names))
        except Damaged as damage:
            self._late[damage.value] = damage
            return None

    def _rows_of(self, measures: dict[str, np.ndarray] | None, batch: int, step: int) -> Iterator[tuple[int, int, int]]:
        """(row, run, epoch) of the networks in a file of measures. Those of a step that was trained anew are left out:
        the file may be older than the step."""
        if measures is None:
            return
        n, digest = len(measures["run"]), self.batches[batch].digest_of_step(step)
        # A file of version 0.1.0 is of a single epoch, and its steps have no digests.
        epochs, steps = measures.get("epoch", np.full(n, step)), measures.get("step", np.full(n, ""))
        rows = zip(range(n), measures["run"].tolist(), epochs.tolist(), steps.tolist(), strict=True)
        yield from ((row, run, epoch) for row, run, epoch, origin in rows if origin == digest)

    def measures(self, **coordinates: Any) -> dict[str, Any]:
        """One run's measures at all its analysed checkpoints: what `measures.all` gives, [checkpoints, ...], and
        `epoch` [checkpoints]. What `measures.all` gives as None is left out. Raises BadInput for a run that was not
        analysed."""
        return self.measured([self.record(**coordinates)])[0]

    def measured(self, records: list[RunRecord], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """`measures` of several runs, or the named ones (see `analysed`), in one pass over the files."""
        series: dict[int, dict[str, list]] = {record.number: {"epoch": []} for record in records}
        for record, epoch, found in self.analysed(set(series), names):
            rows = series[record.number]
            rows["epoch"].append(epoch)
            for name in found.keys() - NOT_MEASURES:
                rows.setdefault(name, []).append(found[name])
        for record in records:
            if not series[record.number]["epoch"]:
                accepted = f"a run that was analysed: python scripts/analyze.py {self.path}"
                raise BadInput("run", record.number, accepted)
        return [
            unflatten_dict({name: np.stack(rows) for name, rows in of_run.items()}, sep="/")
            for of_run in series.values()
        ]

    @functools.cached_property
    def _restricted(self) -> dict[int, RestrictedLoss]:
        """{run: its restricted loss} for the runs whose every checkpoint was analysed with the same keys."""
        points: dict[int, list] = {}
        for record, epoch, found in self.analysed(names=(KEYS, "restricted_loss/all")):
            if KEYS in found and "restricted_loss/all" in found:  # not where heads were measured
                points.setdefault(record.number, []).append((epoch, found["restricted_loss/all"], found[KEYS]))
        curves = {}
        for number, of_run in points.items():
            epochs, losses, keys = (np.array(column) for column in zip(*of_run, strict=True))
            # The curve has gaps if the run has trained on, or its analysis was interrupted.
            whole = list(epochs) == self.checkpoint_epochs(self.runs[number])
            if whole and (keys == keys[-1]).all():
                curves[number] = RestrictedLoss(epochs, losses)
        return curves

    @property
    def has_circuit_events(self) -> bool:
        """Whether the checkpoints of any run were analysed."""
        return bool(self._restricted)


# What stands beside the measures of a network.
NOT_MEASURES = {"run", "epoch", "dtype", "schema", "draws", "step", "network"}


def check_part(part: str | None, config: Config, label: str = "part") -> None:
    """Raises BadInput, named `label`, if the config's task has no such part."""
    names = make_task(config).parts
    if part not in names:
        raise BadInput(label, part, f"a part of task {config.task}: {', '.join(names) or 'it has none'}")


def load(run_dir: str | Path) -> Results:
    """Open a sweep directory for reading. Raises BadInput if there is none."""
    return Results(run_dir)


def write_metrics(results: Results) -> None:
    """Write metrics.npz: the curves of all runs, with a coordinate array per axis. What a run has not, or has without
    limit, is NaN there. A file that was made of the same steps, and is whole, is left as it is."""
    path, runs = results.files.metrics_npz, results.runs
    configs = {record.config for record in runs}
    dtype = "float64" if any(config.needs_x64 for config in configs) else "float32"
    n_parts = max(len(make_task(config).parts) for config in configs)
    longest = max(max(record.epochs, record.last_epoch) for record in runs)
    like = SweepCurves(0, longest, results.eval_every, results.train_every, dtype, n_parts)
    rows = [{**record.run.coordinates(), "d_mlp": record.config.mlp_width} for record in runs]
    axes = [axis for axis in rows[0] if axis != "split_seed"]
    coordinates = {axis: np.array([np.nan if row[axis] is None else row[axis] for row in rows]) for axis in axes}
    steps = {number: batch.source for number, batch in results.batches.items()}
    manifest = [record.to_manifest() for record in runs]
    source = digest_of_content({"arrays": [*like.names, *coordinates], "runs": manifest, "steps": steps})
    if _is_made_of(path, source):
        return
    progress = {
        "last_epoch": np.array([record.last_epoch for record in runs], np.int64),
        "ended": np.array([record.status is Status.ENDED for record in runs], bool),
    }
    curves = [functools.partial(results.curves_of, record) for record in runs]
    write_npz(path, like, curves, progress | coordinates, source)


def _is_made_of(path: Path, source: str) -> bool:
    """Whether a file of metrics was made of this source, and is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == source.encode() and archive.testzip() is None
    except UNREADABLE:
        return False
