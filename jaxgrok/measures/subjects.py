"""One network to be measured, from a file or a run, and what is measured of it.

The task of a network decides what is measured (`kind_of`): its circuits, by `measures.all`, or its attention heads, by
`heads.scores`. `checkpoints` measures every network of a sweep.
"""

import math
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxgrok.config import BadInput, Config
from jaxgrok.measures import circuits as measures
from jaxgrok.measures import fourier, heads
from jaxgrok.nets import interop
from jaxgrok.nets.model import Params
from jaxgrok.store.results import Cell, Results

Measures = dict[str, Any]  # what `measures.all` or `heads.scores` returns


class MeasureSet(StrEnum):
    """What is measured of a network."""

    CIRCUITS = "circuits"
    HEADS = "heads"


CIRCUITS, HEADS = MeasureSet.CIRCUITS, MeasureSet.HEADS
MEASURABLE = "induction, or a modular task with an MLP and residual factor 1"
# The fields of a config that decide what is measured; all others are at their defaults, so that one compilation serves
# all configs that differ in them alone.
_SHAPES = (
    *("task", "p", "arch", "n_layers", "n_heads", "d_model", "d_mlp", "act", "residual_factor"),
    *("n_ctx", "seq_len", "repeat_len", "n_repeats", "n_tokens"),
)


def kind_of(config: Config) -> MeasureSet | None:
    """What is measured of a network, or None if there are no measures of it."""
    if config.task == "induction":
        return HEADS
    return CIRCUITS if config.modular and config.arch != "attn_only" and config.residual_factor == 1 else None


def described(config: Config) -> str:
    """The task, and the other fields of a config that decide whether it is measured."""
    text = f"task {config.task}"
    if config.arch == "attn_only":
        text += f" with arch {config.arch}"
    if config.residual_factor != 1:
        text += f" and residual factor {config.residual_factor:g}"
    return text


def left_out(results: Results) -> list[str]:
    """What analysis leaves out of a sweep: a line for each kind of network that has no measures."""
    counts = Counter(described(record.config) for record in results.runs if kind_of(record.config) is None)
    runs = len(results.runs)
    return [f"left out: {n} of {runs} runs, {what}; measured are {MEASURABLE}" for what, n in counts.items()]


def of_kind(kind: MeasureSet, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose networks are measured as this kind."""
    return [cell for cell in cells if kind_of(cell.config) is kind]


def config_for_analysis(config: Config, dtype: str = "float32") -> Config:
    """The config in this dtype, with every field that no measure depends on at its default.

    Configs that differ only in such fields become equal, so that they compile once.

    Raises BadInput for float64 if JAX has x64 off.
    """
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == "float64" and not x64:
        raise BadInput("dtype", dtype, 'float64 only after jax.config.update("jax_enable_x64", True)')
    return Config(**{name: getattr(config, name) for name in _SHAPES}, dtype=dtype)


def cast(params: Params, dtype: str) -> Params:
    """The parameters in another dtype, as numpy."""
    return jax.tree.map(lambda x: np.asarray(x, dtype), params)


def flatten(tree: Measures) -> dict[str, np.ndarray]:
    """{"a": {"b": x}} as {"a/b": x}, in numpy. Entries that are None are left out."""
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items() if x is not None}


# --- one network ------------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """One network to be measured.

    Attributes:
        config: the config of the network.
        params: its parameters, as numpy.
        split: its train and test pairs; None if its circuits are not measured.
        params_of_keys: the parameters whose keys are used: those of its run's last checkpoint.
        seed: the seed of the random controls.
        about: what is reported about its split and origin beside the measures.
        warnings: lines that a reader of its measures must see.
    """

    config: Config
    params: Params
    split: measures.Split | None
    params_of_keys: Params
    seed: int
    about: dict[str, Any]
    warnings: tuple[str, ...] = ()


def _split_of(
    config: Config, frac: float | None, seed: int, split_seed: int | None
) -> tuple[measures.Split | None, dict[str, Any]]:
    """A network's split, and what is reported about it. (None, {}) if no circuits are measured."""
    if kind_of(config) is not CIRCUITS or frac is None:
        return None, {}
    split = measures.split_of(config, frac, seed, split_seed)
    return split, {"seed": seed if split_seed is None else split_seed, "frac_train": frac}


def subject_of_file(
    path: str | Path, *, frac: float = 0.3, split_seed: int = 0, seed: int | None = None, **options: Any
) -> Subject:
    """The network in a file of weights, on the split of `split_seed`.

    seed: of the labels of task `random` and of the random controls. None means the split's.
    options: as `interop.load` takes them.

    Raises BadInput, and names what is wrong.
    """
    config, params, recorded = interop.load(path, **options)
    seed = split_seed if seed is None else seed
    split, about = _split_of(config, frac, seed, split_seed)
    losses = {name: recorded.get(name) for name in ("train_loss", "test_loss")}
    about |= {f"recorded_{name}": x for name, x in losses.items() if isinstance(x, int | float) and math.isfinite(x)}
    return Subject(config, params, split, params, seed, about)


def subject_of_run(results: Results, epoch: int | None = None, **coordinates: Any) -> Subject:
    """The network of one run after `epoch` updates, to be measured with the keys of the run's last checkpoint.

    epoch None means the last checkpoint.

    Raises BadInput if the coordinates are not those of one run, if the run has not begun, if the epoch was not saved,
    or if its checkpoint is damaged.
    """
    record = results.record(**coordinates)
    last = results.params(run=record.number)
    last_epoch = results.checkpoint_epochs(record)[-1]
    params = last if epoch is None else results.params(epoch, run=record.number)
    split, about = _split_of(record.config, record.run.frac, record.seed, record.run.split_seed)
    about |= {"run": record.number, "epoch": last_epoch if epoch is None else epoch}
    lines = tuple(
        f"{damage.value} is damaged ({damage.why}): the run is as it was before" for damage in results.damage_of(record)
    )
    return Subject(record.config, params, split, last, record.seed, about, lines)


def measure_subject(subject: Subject, dtype: str = "float32") -> Measures:
    """`measures.all` or `heads.scores` of one network, as numpy, computed in this dtype.

    Raises BadInput if there are no measures of such a network.
    """
    config, kind = config_for_analysis(subject.config, dtype), kind_of(subject.config)
    if kind is HEADS:
        return jax.tree.map(np.asarray, heads.scores(config, cast(subject.params, dtype), *heads.sequences(config)))
    if kind is None or subject.split is None:
        raise BadInput("network", described(config), MEASURABLE)
    keys = measures.find_keys(config, cast(subject.params_of_keys, dtype))
    found = measures.all(config, cast(subject.params, dtype), subject.split, keys, subject.seed)
    return jax.tree.map(np.asarray, found)


def subject_to_json(subject: Subject, measured: Measures) -> dict[str, Any]:
    """The measures as plain values, with what is known about the split and the origin of the network.

    For circuits this is `measures.to_json`. For heads it is what `heads.scores` returns, with arrays as nested lists.
    """
    if kind_of(subject.config) is HEADS:
        return measures.plain(measured) | {"task": subject.config.task, "network": subject.about}
    return measures.to_json(subject.config, measured) | {"split": subject.about}


def remarks(subject: Subject, measured: Measures) -> list[str]:
    """What a reader of these measures must know beside them, in lines."""
    lines = list(subject.warnings)
    if kind_of(subject.config) is HEADS:
        return lines
    if subject.config.task not in fourier.WAVE_ARGUMENTS:
        lines.append(
            f"task {subject.config.task}: its answer is no wave of a and b, so restricted, excluded and fitted losses "
            "do not exist"
        )
    if measured["no_keys"]:
        lines.append("no keys: no frequency satisfies the rules, so the measures that need keys do not exist")
    for part in ("train", "test"):
        recorded, ours = subject.about.get(f"recorded_{part}_loss"), float(measured["loss_all_classes"][part])
        if recorded is not None:
            agrees = abs(ours - recorded) <= 0.01 * abs(recorded)
            doubt = "" if agrees else "; are these the split, fraction and task of that network?"
            lines.append(f"{part} loss {ours:.6e}, recorded in the file {recorded:.6e}{doubt}")
    return lines
