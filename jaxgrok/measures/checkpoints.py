"""Every measure of one network, from a file or a run; and at every checkpoint of a sweep directory, one at a time.

What is measured follows from the task (`kind_of`): circuits, by `measures.all`, or heads, by `heads.scores`. For a directory:
of circuits first the keys of each run's last checkpoint, which hold for all of it; then the measures at each. A checkpoint's
measures are written beside it as soon as they are known (`SweepFiles.save_measures`), so what is held in memory does not
grow with runs or checkpoints, and an interrupted analysis goes on where it stopped. When a run has trained on and its
keys are others, or another dtype is asked for, its checkpoints are measured again; nothing else ever is.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxgrok.config import BadInput, Config
from jaxgrok.measures import circuits as measures
from jaxgrok.measures import fourier, heads
from jaxgrok.nets import interop
from jaxgrok.store.results import KEYS, Results, load

CIRCUITS, HEADS = "circuits", "heads"
MEASURABLE = "induction, or a modular task with an MLP and residual factor 1"
SAVE_SECONDS = 30  # between writes within one checkpoint of many runs: the most work that a killed process loses


class Silent:
    """A watcher that shows nothing; `progress.Steps` shows it all."""

    def started(self, total: int):
        """Called once with the number of networks: runs times checkpoints."""

    def advanced(self, measured: int, found: int):
        """Called with networks just measured, and found measured before."""


def kind_of(config: Config) -> str | None:
    """What is measured of a network: CIRCUITS, HEADS, or None for nothing."""
    if config.task == "induction":
        return HEADS
    return CIRCUITS if config.modular and config.arch != "attn_only" and config.residual_factor == 1 else None


def _described(config: Config) -> str:
    """The task, and what else of a config decides what is measured."""
    more = f" with arch {config.arch}" if config.arch == "attn_only" else ""
    return f"task {config.task}{more}" + (f" and residual factor {config.residual_factor:g}" if config.residual_factor != 1 else "")


def left_out(results: Results) -> list[str]:
    """What analysis leaves out of a sweep, a line for each kind of network that it has no measures of."""
    configs = [results.config(record) for record in results.runs]
    counts = Counter(_described(config) for config in configs if kind_of(config) is None)
    return [f"left out: {n} of {len(configs)} runs, {what}; measured are {MEASURABLE}" for what, n in counts.items()]


def of_kind(kind: str, of_cells: list) -> list:
    """The cells (report.Cell) whose networks are measured as this kind."""
    return [cell for cell in of_cells if kind_of(Results.config(cell.records[0])) == kind]


def config_for_analysis(config: Config, dtype: str = "float32") -> Config:
    """The config in this dtype, with everything that no measure depends on at its default, so that such configs compile once.

    Raises BadInput for float64 where jax has x64 off.
    """
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise BadInput("dtype", dtype, 'float64 only after jax.config.update("jax_enable_x64", True)')
    shapes = ["task", "p", "arch", "n_layers", "n_heads", "d_model", "d_mlp", "act", "residual_factor"]
    shapes += ["n_ctx", "seq_len", "repeat_len", "n_repeats", "n_tokens"]
    return Config(**{name: getattr(config, name) for name in shapes}, dtype=dtype)


def cast(params, dtype: str):
    """Parameters in another dtype, as numpy."""
    return jax.tree.map(lambda x: np.asarray(x, dtype), params)


def flatten(tree) -> dict:
    """{"a": {"b": x}} -> {"a/b": x}, as numpy; what is None is left out."""
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items() if x is not None}


# --- one network --------------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """One network to be measured: config, params (numpy), split (None where no circuits are measured), the parameters whose keys
    are used (of its run's last checkpoint), seed of the random controls, and about: what is told of split and origin beside the
    measures."""

    config: Config
    params: dict
    split: measures.Split | None
    params_of_keys: dict
    seed: int
    about: dict


def _split_of(config: Config, frac, seed: int, split_seed: int | None) -> tuple[measures.Split | None, dict]:
    """A network's split, and what is told of it; None and nothing where no circuits are measured."""
    if kind_of(config) != CIRCUITS:
        return None, {}
    split = measures.split_of(config, frac, seed, split_seed)
    return split, {"seed": seed if split_seed is None else split_seed, "frac_train": frac}


def subject_of_file(path, *, frac=0.3, split_seed=0, seed=None, **how) -> Subject:
    """The network in a file of weights, read as `interop.load` is told to; on the split of split_seed; seed: of random labels, the
    split's if None.

    Raises BadInput, naming what is wrong.
    """
    config, params, recorded = interop.load(path, **how)
    seed = split_seed if seed is None else seed
    split, about = _split_of(config, frac, seed, split_seed)
    losses = {name: recorded.get(name) for name in ("train_loss", "test_loss")}
    about |= {f"recorded_{name}": x for name, x in losses.items() if isinstance(x, int | float) and math.isfinite(x)}
    return Subject(config, params, split, params, seed, about)


def subject_of_run(results: Results, epoch: int | None = None, **coordinates) -> Subject:
    """The network of one run after `epoch` updates (None: its last checkpoint), to be measured with the keys of its last.

    Raises BadInput for coordinates that are not those of one run, or an epoch that was not saved.
    """
    last = results.params(**coordinates)
    params = last if epoch is None else results.params(epoch, **coordinates)
    (record,) = results.select(**coordinates)
    config, seed = results.config(record), record["seed"]
    split, about = _split_of(config, record["frac"], seed, record["split_seed"])
    about["run"] = record["run"]
    about["epoch"] = results.checkpoint_epochs(**coordinates)[-1] if epoch is None else epoch
    return Subject(config, params, split, last, seed, about)


def measure(subject: Subject, dtype: str = "float32") -> dict:
    """`measures.all` or `heads.scores` of one network, as numpy, computed in this dtype. Raises BadInput where there is none."""
    config, kind = config_for_analysis(subject.config, dtype), kind_of(subject.config)
    if kind is None:
        raise BadInput("network", _described(config), MEASURABLE)
    if kind == HEADS:
        return jax.tree.map(np.asarray, heads.scores(config, cast(subject.params, dtype), *heads.sequences(config)))
    keys = measures.find_keys(config, cast(subject.params_of_keys, dtype))
    return jax.tree.map(np.asarray, measures.all(config, cast(subject.params, dtype), subject.split, keys, subject.seed))


def to_json(subject: Subject, measured: dict) -> dict:
    """`measures.to_json`, with what is known of the split; of heads what `heads.scores` gives, in nested lists."""
    if kind_of(subject.config) == HEADS:
        return measures.plain(measured) | {"task": subject.config.task, "network": subject.about}
    return measures.to_json(subject.config, measured) | {"split": subject.about}


def remarks(subject: Subject, measured: dict) -> list[str]:
    """What a reader of these measures must know beside them, a line each."""
    if kind_of(subject.config) == HEADS:
        return []
    task, lines = subject.config.task, []
    if task not in fourier.WAVE_ARGUMENTS:
        lines.append(f"task {task}: its answer is no wave of a and b, so restricted, excluded and fitted losses do not exist")
    if measured["no_keys"]:
        lines.append("no keys: no frequency satisfies the rules, so what is measured on the keys does not exist")
    for part in ("train", "test"):
        recorded, ours = subject.about.get(f"recorded_{part}_loss"), float(measured["loss_all_classes"][part])
        if recorded is not None:
            doubt = "" if abs(ours - recorded) <= 0.01 * abs(recorded) else "; is it the split, fraction and task of that network?"
            lines.append(f"{part} loss {ours:.6e}, recorded in the file {recorded:.6e}{doubt}")
    return lines


# --- a sweep directory --------------------------------------------------------------------------------------------------


def analyze(run_dir, *, dtype: str = "float32", watch=Silent()) -> Results:
    """Measure, in this dtype, what a sweep directory has not measured yet; returns it, opened.

    Runs that there are no measures of are left out (`left_out` says which). Raises BadInput where there is no sweep, or no other run.
    """
    results = load(run_dir)
    measurable = [record for record in results.runs if kind_of(results.config(record))]
    if not measurable:
        raise BadInput("network", _described(results.config(results.runs[0])), MEASURABLE)
    batches = {}
    for record in measurable:
        if results.metrics.last_epoch[record["run"]]:
            batches.setdefault(record["batch"], []).append(record)
    watch.started(sum(len(_with_row(results, records, epoch)) for batch, records in batches.items() for epoch in _epochs(results, batch)))
    for batch, records in batches.items():
        prepare = {CIRCUITS: _of_circuits, HEADS: _of_heads}[kind_of(results.config(records[0]))]
        measure = prepare(results, batch, records, dtype)
        for epoch in _epochs(results, batch):
            _analyze_checkpoint(results, batch, epoch, _with_row(results, records, epoch), measure, dtype, watch)
    return load(run_dir)


def _epochs(results: Results, batch: int) -> list[int]:
    return results.files.checkpoint_epochs(batch)


def _with_row(results: Results, records: list[dict], epoch: int) -> list[dict]:
    """The runs that have a row in the checkpoint of an epoch: those that trained that long."""
    return [record for record in records if epoch <= results.metrics.last_epoch[record["run"]]]


def _row(rows, stacked, run: int, dtype: str):
    """One run's parameters from a stacked checkpoint."""
    (row,) = (rows == run).nonzero()[0]
    return cast(jax.tree.map(lambda leaf: leaf[row], stacked), dtype)


def _final_keys(results: Results, batch: int, records: list[dict], dtype) -> dict[int, np.ndarray]:
    """{run: keys [K]} of each run's last checkpoint."""
    last = {}
    for epoch in _epochs(results, batch):
        last |= {record["run"]: epoch for record in _with_row(results, records, epoch)}
    keys = {}
    for epoch in sorted(set(last.values())):
        rows, stacked = results.files.load_params(batch, epoch)
        for record in records:
            if last.get(record["run"]) == epoch:
                config = config_for_analysis(results.config(record), dtype)
                keys[record["run"]] = np.asarray(measures.find_keys(config, _row(rows, stacked, record["run"], dtype)))
    return keys


class _Measure(NamedTuple):
    """How the networks of a batch are measured. of(record, params) -> measures; holds(run, found): whether {name: array}, measured
    before, need not be measured again."""

    of: Callable
    holds: Callable


def _of_circuits(results: Results, batch: int, records: list[dict], dtype) -> _Measure:
    final_keys = _final_keys(results, batch, records, dtype)

    def of(record, params):
        config = config_for_analysis(results.config(record), dtype)
        split = measures.split_of(config, record["frac"], record["seed"], record["split_seed"])
        return measures.all(config, params, split, final_keys[record["run"]], record["seed"])

    def holds(run, found):
        return np.array_equal(found.get(KEYS), final_keys[run])

    return _Measure(of, holds)


def _of_heads(results: Results, batch: int, records: list[dict], dtype) -> _Measure:
    config = config_for_analysis(results.config(records[0]), dtype)
    sequences = heads.sequences(config)
    return _Measure(lambda record, params: heads.scores(config, params, *sequences), lambda run, found: True)


def _analyze_checkpoint(results: Results, batch: int, epoch: int, records: list[dict], measure: _Measure, dtype, watch) -> None:
    files = results.files
    before = files.load_measures(batch, epoch) or {"run": ()}
    runs, done = {record["run"] for record in records}, {}  # {run: {name: array}}
    for row, run in enumerate(before["run"]):
        found = {name: x[row] for name, x in before.items()}
        if run in runs and measure.holds(run, found) and found["dtype"] == dtype:
            done[int(run)] = found
    todo = [record for record in records if record["run"] not in done]
    watch.advanced(0, len(records) - len(todo))
    if not todo:
        return

    def save():
        rows = [done[record["run"]] for record in records if record["run"] in done]
        if rows:
            files.save_measures(batch, epoch, {name: np.stack([row[name] for row in rows]) for name in rows[0]})

    rows, stacked = files.load_params(batch, epoch)
    saved = time.monotonic()
    try:
        for record in todo:
            run = record["run"]
            found = measure.of(record, _row(rows, stacked, run, dtype))
            done[run] = {"run": np.int64(run), "dtype": np.array(dtype), **flatten(found)}
            watch.advanced(1, 0)
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        save()
