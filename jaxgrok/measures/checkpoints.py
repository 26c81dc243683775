"""The measures of every checkpoint of a sweep directory, as many networks at a time as there are devices.

The key frequencies are found in each run's last checkpoint, and they hold for all its checkpoints. Random controls,
which take half of the time, are measured in the last checkpoint alone, where the tables show them, unless every one is
asked for.

The measures of the networks in a step are written beside it as soon as they are known (`SweepFiles.save_measures`). So
memory grows with how many networks are measured at once, not with the number of runs or checkpoints, and an interrupted
analysis resumes. A network is measured again only if it is another one, if its run has trained on and its keys have
changed, if another dtype or controls that it lacks are asked for, or if the saved measures are of another version
(their `schema`, or their names).
"""

import contextlib
import functools
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool

from jaxgrok.atomic import bad_place
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.measures import circuits as measures
from jaxgrok.measures import heads, representations
from jaxgrok.measures.ablations import DRAWS
from jaxgrok.measures.subjects import (
    CIRCUITS,
    HEADS,
    MEASURABLE,
    REPRESENTATIONS,
    Params,
    cast,
    config_for_analysis,
    described,
    flatten,
    kind_of,
    pairs_of_group,
)
from jaxgrok.memory import device_memory
from jaxgrok.store.integrity import digest_of, digest_of_content
from jaxgrok.store.records import RunRecord, Status
from jaxgrok.store.results import KEYS, NOT_MEASURES, Results, load
from jaxgrok.store.steps import Damaged
from jaxgrok.tasks import modular_task

T = TypeVar("T")
UNMEASURED = "a directory that can be written, as long as some of its checkpoints are not measured"
# How many numbers a network takes at most for each pair and neuron, and for each pair and class; measured at p = 113.
ARRAYS_OF_PAIRS = 4
# Between writes within one checkpoint of many runs: the most work that a killed process loses, with one group more.
SAVE_SECONDS = 30


class AnalysisWatcher(Protocol):
    """What `analyze` tells about its progress."""

    def started(self, total: int) -> None:
        """Called once, unless there is no network: with their number, which is the sum over runs of their
        checkpoints."""

    def advanced(self, measured: int, found: int) -> None:
        """Called with the number of networks just measured, and of networks whose saved measures are still valid."""


class SilentAnalysis:
    """A watcher that shows nothing. `jaxgrok.cli.live.AnalysisWatch` shows the progress."""

    def started(self, total: int) -> None:
        pass

    def advanced(self, measured: int, found: int) -> None:
        pass


class Analysis(NamedTuple):
    """What `analyze` found.

    Attributes:
        results: the directory as it was analysed. Training may have gone on since.
        skipped: a line for each checkpoint that is missing or damaged: where its networks were not measured, and which
            checkpoint was used instead of a run's last one. A command that prints any of them exits with status 1.
        pending: a line about the runs that have nothing to measure yet, or checkpoints that are not measured yet; none
            in a finished sweep.
        mended: a line for each file of measures that was damaged, and whose networks were measured again.
    """

    results: Results
    skipped: list[str]
    pending: list[str]
    mended: list[str]


def analyze(
    run_dir: str | Path,
    *,
    dtype: str = "float32",
    all_controls: bool = False,
    watch: AnalysisWatcher = SilentAnalysis(),
) -> Analysis:
    """Measure, in this dtype, every network of a sweep directory that has no valid measures yet.

    all_controls: measure the random controls at every checkpoint, not only in the last one of each run.

    Runs without measures for their kind of network are left out (see `left_out`). A sweep may be training in the
    directory: what it has saved is measured, and `pending` describes what is not measured yet. If every measure is
    there already, nothing is written.

    Raises BadInput if there is no sweep in the directory, if no run of it can be measured, or if measures are missing
    and the directory cannot be written.
    """
    results = load(run_dir)
    measurable = [record for record in results.runs if kind_of(record.config) is not None]
    if not measurable:
        raise BadInput("network", described(results.runs[0].config), MEASURABLE)
    config_for_analysis(measurable[0].config, dtype)  # refuses the dtype before anything is read
    batches: dict[int, list[RunRecord]] = {}
    for record in measurable:
        if record.batch is not None and results.checkpoint_epochs(record):
            batches.setdefault(record.batch, []).append(record)
    total = sum(len(results.checkpoint_epochs(record)) for records in batches.values() for record in records)
    if total:
        watch.started(total)
    at_once = _AtOnce.of(results, batches, dtype)
    skipped, pending, mended = [damage.line for damage in results.damage], _pending(measurable), []
    for number, records in batches.items():
        batch = _Batch(results, number, records, dtype, all_controls, at_once)
        batch.analyze(watch)
        skipped += batch.skipped
        pending += batch.pending
        mended += batch.mended
    # Not opened anew: training may have replaced the steps beside which these measures are.
    return Analysis(results, skipped, pending, mended)


def _pending(records: Sequence[RunRecord]) -> list[str]:
    """A line about the runs that have no network to measure."""
    not_begun = sum(record.status is Status.WAITING for record in records)
    return [f"not measured yet: of {len(records)} runs, {not_begun} have not begun"] if not_begun else []


class _Measurer(NamedTuple):
    """How the networks of a batch are measured.

    Attributes:
        measure: of a config and a network's parameters, and of what `about` returns.
        about: what is known of a run beside its network's parameters.
        schema: the version of what it computes.
        names: the names of the saved arrays.
        keys: for circuits, the keys of each run by its number.
        draws: of each random control, where controls are measured; 0 for heads, which have none.
    """

    measure: Callable[..., Any]
    about: Callable[[RunRecord], tuple[Any, ...]]
    schema: int
    names: set[str]
    keys: dict[int, Bool[np.ndarray, "K"]]
    draws: int

    def is_valid(self, run: int, found: dict[str, np.ndarray], dtype: str, draws: int) -> bool:
        """Whether saved measures of a run are what would be computed now, with at least so many draws."""
        if set(found) != self.names or found["schema"] != self.schema or found["dtype"] != dtype:
            return False
        if found["draws"] < draws:
            return False
        return not self.keys or np.array_equal(found[KEYS], self.keys[run])


@functools.cache
def _side_by_side(f: Callable[..., Any], config: Config, n: int, **options: int) -> Callable[..., Any]:
    """A compiled function that computes f(config, params, ..., **options) of n networks, each on a device of its own.

    It takes the arguments of all networks stacked, each leaf [n, ...], and returns the results stacked in the same way.
    """

    def of_row(*row: Any) -> Any:
        return jax.tree.map(lambda x: x[None], f(config, *jax.tree.map(lambda x: x[0], row), **options))

    mesh, row = Mesh(np.array(jax.local_devices()[:n]), ("network",)), PartitionSpec("network")
    return jax.jit(jax.shard_map(of_row, mesh=mesh, in_specs=row, out_specs=row, check_vma=False))


def _stacked(rows: Sequence[tuple[Any, ...]], n: int) -> tuple[Any, ...]:
    """The arguments of at most n networks, stacked. The last are repeated, so that one program serves every group."""
    return jax.tree.map(lambda *x: np.stack(x), *rows, *[rows[-1]] * (n - len(rows)))


def _of_each(
    f: Callable[..., Any], config: Config, n: int, rows: Sequence[tuple[Any, ...]], **options: int
) -> list[Any]:
    """What f returns of each of at most n networks, from their arguments."""
    found = jax.device_get(_side_by_side(f, config, n, **options)(*_stacked(rows, n)))
    return [jax.tree.map(operator.itemgetter(i), found) for i in range(len(rows))]


def _groups(networks: Sequence[T], n: int) -> Iterator[Sequence[T]]:
    """The networks, n at a time."""
    return (networks[first : first + n] for first in range(0, len(networks), n))


def _most_at_once(config: Config) -> int:
    """How many networks may be measured at once: one for each device, and on a CPU as many as half of its memory
    holds."""
    devices = jax.local_devices()
    memory = device_memory(devices[:1])
    if devices[0].platform != "cpu" or memory is None or kind_of(config) is not CIRCUITS:
        return len(devices)
    P = len(modular_task(config).group)
    of_network = ARRAYS_OF_PAIRS * P**2 * (config.mlp_width + P) * np.dtype(config.dtype).itemsize
    return max(1, min(len(devices), int(memory / 2 / of_network)))


class _AtOnce(NamedTuple):
    """How many networks are measured at once, each on a device of its own.

    Attributes:
        last: of the last networks of the runs, which are measured with controls.
        others: of all others.
    """

    last: int
    others: int

    @classmethod
    def of(cls, results: Results, batches: dict[int, list[RunRecord]], dtype: str) -> "_AtOnce":
        """As many as there are in the largest batch and step, at most one for each device, and as memory allows."""
        configs = {config_for_analysis(records[0].config, dtype) for records in batches.values()}
        most = min(map(_most_at_once, configs), default=1)
        steps = [len(networks) for number in batches for networks in results.batches[number].networks().values()]
        runs = max(map(len, batches.values()), default=1)
        return cls(min(most, runs), min(most, max(steps, default=1)))


class _Batch:
    """The networks of one batch while they are analysed. `skipped` collects lines on those that cannot be read,
    `pending` on those whose step a running sweep has replaced, and `mended` on measures that were damaged."""

    def __init__(
        self,
        results: Results,
        number: int,
        records: list[RunRecord],
        dtype: str,
        all_controls: bool,
        at_once: _AtOnce,
    ):
        self.results, self.files, self.number, self.dtype = results, results.files, number, dtype
        self.all_controls = all_controls
        results.refresh(number)
        self.batch = results.batches[number]
        self.records = {record.number: results.runs[record.number] for record in records}
        self.config = config_for_analysis(records[0].config, dtype)
        self.skipped: list[str] = []
        self.pending: list[str] = []
        self.mended: list[str] = []
        self.at_once = at_once
        self._damaged: dict[int, Damaged] = {}
        self._loaded: tuple[int, Params] | None = None  # the last step that was read

    def load(self, step: int) -> Params | None:
        """The parameters in a step, [network, ...]. None if they are damaged."""
        if step in self._damaged:
            return None
        if self._loaded is None or self._loaded[0] != step:
            try:
                self._loaded = step, self.batch.params(step)
            except Damaged as damage:
                self._damaged[step] = damage
                return None
        return self._loaded[1]

    def network(self, step: int, index: int) -> Params:
        """The parameters of one network of a step that can be read, as they were saved."""
        params = self.load(step)
        assert params is not None
        return jax.tree.map(lambda leaf: leaf[index], params)

    def analyze(self, watch: AnalysisWatcher) -> None:
        """Measure every network that has no valid measures."""
        last = self._last_networks()
        if not last:
            return
        of_kind = {CIRCUITS: self._circuits, HEADS: self._heads, REPRESENTATIONS: self._representations}
        kind = kind_of(self.config)
        assert kind is not None  # others are left out
        measurer = of_kind[kind](last)
        before = self._superseded()
        for step in self.batch.networks():
            self._analyze_step(step, last, measurer, before, watch)
        self._forget_superseded()

    # --- what holds for the whole batch -------------------------------------------------------------------------------

    def _last_networks(self) -> dict[int, tuple[int, int]]:
        """{run: (step, index)} of its last network that can be read, without the runs that have none.

        If that is not the run's last checkpoint, `skipped` says so.
        """
        last: dict[int, tuple[int, int]] = {}
        for step, networks in reversed(self.batch.networks().items()):
            here = [run for _, run in networks if run in self.records and run not in last]
            if not here or self.load(step) is None:
                continue
            last |= {run: (step, index) for index, (_, run) in enumerate(networks) if run in here}
        for step, damage in self._damaged.items():
            runs = sorted({run for _, run in self.batch.networks()[step] if run in self.records})
            self.skipped.append(self._substitution_line(damage, runs, last))
        return last

    def _substitution_line(self, damage: Damaged, runs: list[int], last: dict[int, tuple[int, int]]) -> str:
        """The line on a damaged step with the last checkpoints of some runs, and on what is used instead of it."""
        names = ("run " if len(runs) == 1 else "runs ") + " ".join(map(str, runs))
        if not set(runs) & set(last):
            return f"{damage.said}, and {names} have no other checkpoint: they are not measured"
        networks = self.batch.networks()
        used = max(networks[step][index][0] for run, (step, index) in last.items() if run in runs)
        keys = ", and their key frequencies are found in it" if kind_of(self.config) is CIRCUITS else ""
        what = f"with the last checkpoint of {names}, is damaged ({damage.why})"
        return f"{damage.value}, {what}: that of epoch {used:,} counts as the last{keys}"

    def _circuits(self, last: dict[int, tuple[int, int]]) -> _Measurer:
        keys: dict[int, np.ndarray] = {}
        for group in _groups(sorted(last, key=lambda run: last[run]), self.at_once.last):
            rows = [(cast(self.network(*last[run]), self.dtype),) for run in group]
            keys |= zip(group, _of_each(measures.find_keys, self.config, self.at_once.last, rows), strict=True)

        @functools.cache
        def split_of(run: Run) -> measures.Split:
            assert run.frac is not None  # modular tasks have one
            return measures.split_of(self.config, run.frac, run.seed, run.split_seed)

        def about(record: RunRecord) -> tuple[Any, ...]:
            return split_of(record.run), keys[record.number], np.int32(record.run.seed)

        return self._measurer(measures.measure, about, measures.SCHEMA, last, keys, DRAWS)

    def _heads(self, last: dict[int, tuple[int, int]]) -> _Measurer:
        sequences = heads.sequences(self.config)
        return self._measurer(heads.scores, lambda record: sequences, heads.SCHEMA, last, {}, 0)

    def _representations(self, last: dict[int, tuple[int, int]]) -> _Measurer:
        pairs = functools.cache(pairs_of_group)
        f, schema = representations.scores, representations.SCHEMA
        return self._measurer(f, lambda record: (pairs(record.run),), schema, last, {}, 0)

    def _measurer(
        self,
        measure: Callable[..., Any],
        about: Callable[[RunRecord], tuple[Any, ...]],
        schema: int,
        last: dict[int, tuple[int, int]],
        keys: dict[int, np.ndarray],
        draws: int,
    ) -> _Measurer:
        assert self._loaded is not None  # where a last network was found; any gives the shapes
        params = jax.tree.map(lambda leaf: leaf[0], self._loaded[1])
        row, options = (cast(params, self.dtype), *about(self.records[next(iter(last))])), {"draws": 0} if draws else {}
        f = _side_by_side(measure, self.config, self.at_once.others, **options)
        shapes = jax.eval_shape(f, *_stacked([row], self.at_once.others))
        names = {name for name, x in flatten_dict(shapes, sep="/").items() if x is not None}
        return _Measurer(measure, about, schema, NOT_MEASURES | names, keys, draws)

    def _superseded(self) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        """{(epoch, run): its measures} of the networks that were measured in steps that newer ones have replaced."""
        found = {}
        for step in self._superseded_steps():
            found |= self._saved(step)
        return found

    def _superseded_steps(self) -> set[int]:
        return set(self.files.measured_steps(self.number)) - set(self.batch.networks())

    def _forget_superseded(self) -> None:
        """Remove the measures that are beside other steps now. What cannot be deleted is left, and read by nobody.

        If steps are damaged, their measures are kept until they are trained again.
        """
        for step in [] if self.batch.damage else self._superseded_steps():
            with contextlib.suppress(OSError):
                self.files.forget_measures(self.number, step)

    def _saved(self, step: int) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        """{(epoch, run): its measures} of the networks that were measured in a step."""
        try:
            saved = self.files.load_measures(self.number, step)
        except Damaged as damage:
            self.mended.append(f"measured again: {damage.said}")
            return {}
        if saved is None or "epoch" not in saved:
            return {}
        networks = zip(saved["epoch"].tolist(), saved["run"].tolist())
        return {network: {name: x[row] for name, x in saved.items()} for row, network in enumerate(networks)}

    # --- one step -----------------------------------------------------------------------------------------------------

    def _analyze_step(
        self,
        step: int,
        last: dict[int, tuple[int, int]],
        measurer: _Measurer,
        before: dict[tuple[int, int], dict[str, np.ndarray]],
        watch: AnalysisWatcher,
    ) -> None:
        wanted = {network: i for i, network in enumerate(self.batch.networks()[step]) if network[1] in last}
        draws = {
            network: measurer.draws if self.all_controls or last[network[1]] == (step, index) else 0
            for network, index in wanted.items()
        }
        here, digest = self._saved(step), self.batch.digest_of_step(step)
        done = {}
        for network, index in wanted.items():
            found = here.get(network, before.get(network))
            if found is None or not measurer.is_valid(network[1], found, self.dtype, draws[network]):
                continue
            if found["step"] == digest or self._is_the_same(found, step, index):
                done[network] = {**found, "step": np.array(digest)}
        todo = [network for network in wanted if network not in done]
        watch.advanced(0, len(done))
        if todo:
            _check_writable(self.files.path)
        if todo and self.load(step) is None:
            path = self.batch.steps.path(step)
            if path.exists():
                self.skipped.append(f"{path} is damaged: {len(todo)} of its networks are not measured")
            else:
                self.pending.append(
                    f"not measured yet: {len(todo)} networks of {path}, which a newer step has replaced"
                )
            todo = []
        if not todo and set(here) == set(done) and all(found["step"] == digest for found in here.values()):
            return
        written = time.monotonic()
        try:
            for n_draws, networks in self._groups(todo, draws):
                params = [self.network(step, wanted[network]) for network in networks]
                of_each = self._measure(measurer, [run for _, run in networks], params, n_draws)
                for network, of_network, found in zip(networks, params, of_each, strict=True):
                    origin = {"step": np.array(digest), "network": np.array(_digest_of_network(of_network))}
                    numbers = {"schema": np.int64(measurer.schema), "draws": np.int64(n_draws)}
                    version = {"dtype": np.array(self.dtype), **numbers}
                    place = {"run": np.int64(network[1]), "epoch": np.int64(network[0])}
                    done[network] = {**place, **origin, **version, **found}
                watch.advanced(len(networks), 0)
                if time.monotonic() - written > SAVE_SECONDS:
                    self._save(step, wanted, done)
                    written = time.monotonic()
        finally:
            self._save(step, wanted, done)

    def _groups(
        self, networks: Iterable[tuple[int, int]], draws: dict[tuple[int, int], int]
    ) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
        """(draws, the networks): those that are measured together."""
        by_draws: dict[int, list[tuple[int, int]]] = {}
        for network in networks:
            by_draws.setdefault(draws[network], []).append(network)
        for n_draws, of_draws in by_draws.items():
            for group in _groups(of_draws, self._n(n_draws)):
                yield n_draws, group

    def _n(self, draws: int) -> int:
        """How many networks are measured at once, with so many draws."""
        return self.at_once.last if draws and not self.all_controls else self.at_once.others

    def _measure(
        self, measurer: _Measurer, runs: Sequence[int], params: Sequence[Params], draws: int
    ) -> list[dict[str, np.ndarray]]:
        """The measures of a group of networks, of these runs."""
        rows = [
            (cast(of_network, self.dtype), *measurer.about(self.records[run]))
            for run, of_network in zip(runs, params, strict=True)
        ]
        options = {"draws": draws} if measurer.draws else {}
        found = _of_each(measurer.measure, self.config, self._n(draws), rows, **options)
        return [flatten(of_network) for of_network in found]

    def _is_the_same(self, found: dict[str, np.ndarray], step: int, index: int) -> bool:
        """Whether measures of a network in a step that was replaced are of the network in this step."""
        return self.load(step) is not None and found["network"] == _digest_of_network(self.network(step, index))

    def _save(self, step: int, wanted: Iterable[tuple[int, int]], done: dict[tuple[int, int], dict]) -> None:
        rows = [done[network] for network in wanted if network in done]
        names = rows[0] if rows else ()
        none = {name: np.array([], np.int64) for name in ("run", "epoch")}
        stacked = {name: np.stack([row[name] for row in rows]) for name in names} or none
        with bad_place("run directory", self.files.path, UNMEASURED):
            self.files.save_measures(self.number, step, stacked)


def _digest_of_network(params: Params) -> str:
    """The digest of one network's parameters."""
    return digest_of_content({name: digest_of(leaf) for name, leaf in flatten(params).items()})


def _check_writable(path: Path) -> None:
    """Raises BadInput before anything is measured, if measures could not be saved."""
    folder = path / "analysis"
    if not os.access(folder if folder.exists() else path, os.W_OK):
        raise BadInput("run directory", str(path), f"{UNMEASURED} (it is read-only)")
