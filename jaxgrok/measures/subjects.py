"""One network to be measured, from a file or a run, and what is measured of it.

The task of a network decides what is measured (`kind_of`): its circuits, by `measures.all`, its attention heads, by
`heads.scores`, or the representations of a group, by `representations.scores`. `checkpoints` measures every network of
a sweep.
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
from jaxtyping import Bool

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.measures import circuits as measures
from jaxgrok.measures import fourier, heads, representations, splits
from jaxgrok.nets import interop
from jaxgrok.nets.model import Params, unembedding
from jaxgrok.nets.weight_files import ARRAY, contents
from jaxgrok.store.results import Cell, Results
from jaxgrok.task_names import group_of, is_operation
from jaxgrok.tasks import GroupTask, make_task, modular_task

Measures = dict[str, Any]  # what `measures.all`, `heads.scores` or `representations.scores` returns


class MeasureSet(StrEnum):
    """What is measured of a network."""

    CIRCUITS = "circuits"
    HEADS = "heads"
    REPRESENTATIONS = "representations"


CIRCUITS, HEADS, REPRESENTATIONS = MeasureSet.CIRCUITS, MeasureSet.HEADS, MeasureSet.REPRESENTATIONS
MEASURABLE = (
    "induction, a task on a group, or one operation modulo p in which every pair has an answer (x/y without 0), with "
    "an MLP and residual factor 1"
)
LEARNED = 0.9  # a network that was trained answers more of its train pairs than this
SAME_LOSS = 0.1  # halves whose losses differ by a smaller share are drawn from the same pairs, as far as one can see
# The fields of a config that decide what is measured; all others are at their defaults, so that one compilation serves
# all configs that differ in them alone.
_SHAPES = (
    *("task", "p", "arch", "n_layers", "n_heads", "d_model", "d_mlp", "act", "residual_factor"),
    *("n_ctx", "seq_len", "repeat_len", "n_repeats", "n_tokens"),
    *("sequence", "attention", "attn_coeff", "tied", "norm"),
)


def kind_of(config: Config) -> MeasureSet | None:
    """What is measured of a network, or None if there are no measures of it."""
    if config.task == "induction":
        return HEADS
    if group_of(config.task):
        return REPRESENTATIONS
    is_measured = is_operation(config.task) and config.arch != "attn_only" and config.residual_factor == 1
    return CIRCUITS if is_measured and modular_task(config).is_total else None


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
        of_group: which pairs of a task on a group are trained on; None if that is unknown, and for other tasks.
    """

    config: Config
    params: Params
    split: measures.Split | None
    params_of_keys: Params
    seed: int
    about: dict[str, Any]
    warnings: tuple[str, ...] = ()
    of_group: np.ndarray | None = None


def _split_of(
    config: Config, frac: float | None, seed: int, split_seed: int | None
) -> tuple[measures.Split | None, dict[str, Any]]:
    """A network's split, and what is reported about it. (None, {}) if no circuits are measured."""
    if kind_of(config) is not CIRCUITS or frac is None:
        return None, {}
    split = measures.split_of(config, frac, seed, split_seed)
    return split, {"seed": seed if split_seed is None else split_seed, "frac_train": frac}


def pairs_of_group(run: Run) -> Bool[np.ndarray, "G G"]:
    """Which pairs a run on a group is trained on."""
    task = make_task(run.config)
    assert isinstance(task, GroupTask)
    assert run.frac is not None  # its task lists its examples
    train, _ = task.split_indices(run.frac, run.seed if run.split_seed is None else run.split_seed)
    is_train = np.zeros(task.n_examples, bool)
    is_train[train] = True
    return is_train.reshape(task.table.shape)


EPOCHS = ("checkpoint_epochs", "epochs", "epoch", "steps")  # how programs name the epochs of a list of networks


def subjects_of_list(path: str | Path, entry: str, **options: Any) -> list[Subject]:
    """The networks of a list in a file, in its order, to be measured with the keys of the last.

    options: as `subject_of_file` takes them. Empty if the file has no such list. `about` has the entry of each, and its
    epoch if the file has recorded as many epochs as the list is long.

    Raises BadInput, and names what is wrong.
    """
    of_split = {name: options.pop(name) for name in ("frac", "split_seed", "split", "seed") if name in options}
    networks = interop.load_list(path, entry, **options)
    if not networks:
        return []
    configs = {where: network.config for where, network in networks.items()}
    for where, config in configs.items():
        if config != configs[next(iter(configs))]:
            raise BadInput(
                "entry", entry, f"a list of networks of one shape; {where} differs from {next(iter(configs))}"
            )
    last, subjects = list(networks.values())[-1].params, []
    for number, (where, network) in enumerate(networks.items()):
        subject = _subject(network, **of_split)
        epoch = network.recorded["entry_epoch"]
        if epoch is None:
            recorded = (np.asarray(network.recorded.get(name, 0)) for name in EPOCHS)
            epochs = next((x for x in recorded if x.shape == (len(networks),) and x.dtype.kind in "iu"), None)
            epoch = None if epochs is None else int(epochs[number])
        about = {**subject.about, "entry": where} | ({} if epoch is None else {"epoch": epoch})
        subjects.append(subject._replace(about=about, params_of_keys=last))
    return subjects


def all_the_same(of_list: Sequence[Subject]) -> bool:
    """Whether a list has several networks with equal weights, as where `state_dict()` was appended without a copy."""
    first = jax.tree.leaves(of_list[0].params)
    others = (zip(first, jax.tree.leaves(subject.params), strict=True) for subject in of_list[1:])
    return len(of_list) > 1 and all(np.array_equal(x, y) for pairs in others for x, y in pairs)


def subject_of_file(
    path: str | Path,
    *,
    frac: float | None = None,
    split_seed: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    **options: Any,
) -> Subject:
    """The network in a file of weights, on the pairs that it was trained on.

    frac, split_seed: the fraction of the pairs (0.3 if None) and the seed of the authors' shuffle (0 if None). A
        fraction of 1 is every pair.
    split: another split, as `splits.chosen_pairs` takes it: `torch:SEED`, or a file of pairs. None means the pairs that
        the file itself has recorded, and the authors' shuffle if it has none, or if split_seed is given.
    seed: of the labels of task `random` and of the random controls. None means split_seed, or 0.
    options: as `interop.load` takes them.

    Raises BadInput, and names what is wrong.
    """
    network = interop.load(path, **options)
    subject = _subject(network, frac, split_seed, split, seed)
    about = subject.about
    if "[" not in (options.get("entry") or ""):  # what is recorded beside a list is not of one of its networks
        about = about | _recorded_losses(network.recorded)
    if others := network.recorded["other_entries"]:
        about = about | {"other_entries": len(others)}
    return subject._replace(about=about)


def _subject(
    network: interop.Imported,
    frac: float | None = None,
    split_seed: int | None = None,
    split: str | None = None,
    seed: int | None = None,
) -> Subject:
    config, params, recorded = network
    seed = (split_seed or 0) if seed is None else seed
    pairs, about = None, {}
    if kind_of(config) is CIRCUITS:
        pairs, about = splits.split_of_file(config, recorded, frac, split_seed, split, seed)
    if config.task == "random":
        about = about | {"label_seed": seed}
    if config.mlp_width:
        about = about | {"act": config.act}
    return Subject(config, params, pairs, params, seed, about)


def _recorded_losses(recorded: dict[str, Any]) -> dict[str, float]:
    """The losses that a file has recorded, at its top or one level below, by the names that they have in our JSON. Of a
    list it is the last one."""
    found = {}
    for place in (recorded, *(x for x in recorded.values() if isinstance(x, dict))):
        for part in ("train", "test"):
            for name in (f"{part}_loss", f"{part}_losses"):
                x = np.asarray(place.get(name, np.nan))
                if x.ndim < 2 and x.dtype.kind in "iuf" and x.size and math.isfinite(x.ravel()[-1]):
                    found.setdefault(f"recorded_{part}_loss", float(x.ravel()[-1]))
    return found


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
    of_group = pairs_of_group(record.run) if kind_of(record.config) is REPRESENTATIONS else None
    return Subject(record.config, params, split, last, record.seed, about, lines, of_group)


def measure_subject(subject: Subject, dtype: str = "float32") -> Measures:
    """The measures of one network, as numpy, computed in this dtype.

    Raises BadInput if there are no measures of such a network.
    """
    config, kind = config_for_analysis(subject.config, dtype), kind_of(subject.config)
    if kind is HEADS:
        return jax.tree.map(np.asarray, heads.scores(config, cast(subject.params, dtype), *heads.sequences(config)))
    if kind is REPRESENTATIONS:
        return jax.tree.map(np.asarray, representations.scores(config, cast(subject.params, dtype), subject.of_group))
    if kind is None or subject.split is None:
        raise BadInput("network", described(subject.config), MEASURABLE)
    keys = measures.find_keys(config, cast(subject.params_of_keys, dtype))
    found = measures.all(config, cast(subject.params, dtype), subject.split, keys, subject.seed)
    return jax.tree.map(np.asarray, found)


def subject_to_json(subject: Subject, measured: Measures) -> dict[str, Any]:
    """The measures as plain values, with what is known about the split and the origin of the network.

    For circuits this is `measures.to_json`. For the others it is what `scores` returns, with arrays as nested lists.
    """
    if kind_of(subject.config) is not CIRCUITS:
        return measures.plain(measured) | {"task": subject.config.task, "network": subject.about}
    return measures.to_json(subject.config, measured) | {"split": subject.about}


def remarks(subject: Subject, measured: Measures) -> list[str]:
    """What a reader of these measures must know beside them, in lines."""
    lines = list(subject.warnings)
    if kind_of(subject.config) is not CIRCUITS:
        return lines
    lines += _of_keys(subject.config, measured)
    losses = {part: float(measured["loss_all_classes"][part]) for part in ("train", "test")}
    recorded = {part: subject.about.get(f"recorded_{part}_loss") for part in losses}
    if modular_task(subject.config).is_multiplicative:
        recorded = dict.fromkeys(recorded)  # they are of other pairs: those with 0 among them
    for part, theirs in recorded.items():
        if theirs is not None and math.isfinite(losses[part]):
            agrees = abs(losses[part] - theirs) <= 0.01 * abs(theirs)
            doubt = "" if agrees else "; are these the split, fraction and task of that network?"
            lines.append(f"{part} loss {losses[part]:.6e}, recorded in the file {theirs:.6e}{doubt}")
    if "run" not in subject.about and not any(recorded.values()):
        lines += _doubts(measured, _classes(subject), AS_READ.format(subject.config.act))
    if others := subject.about.get("other_entries"):
        lines.append(f"the file holds {others} other network{'s' * (others > 1)}: --entry names one")
    return lines


def _classes(subject: Subject) -> int:
    params = subject.params
    return np.shape(params["W_out"] if subject.config.arch == "mlp" else unembedding(params))[-1]


AS_READ = (
    "the network is not what it is read as (softmax attention without normalisation, nothing added to the embedding, "
    "{}), or "
)


def _doubts(measured: Measures, classes: int, as_read: str) -> list[str]:
    """Why a split may not be the one that a network was trained on, or the network not what it is read as."""
    train, test = (float(measured["loss_all_classes"][part]) for part in ("train", "test"))
    accuracy, chance = float(measured["accuracies"]["train"]), math.log(classes)
    if train > chance / 2 or accuracy < LEARNED:
        return [
            f"train loss {train:.3g} (chance {chance:.3g}), train accuracy {accuracy:.1%}: the split or the task looks "
            f"wrong, or {as_read}it has not learned"
        ]
    if abs(train - test) <= SAME_LOSS * max(train, test):
        return [
            f"the loss is the same on both halves (train {train:.3g}, test {test:.3g}): if the network was trained on "
            "one half, the split looks wrong; --frac 1 is for a network that was trained on every pair"
        ]
    return []


# --- logits alone -----------------------------------------------------------------------------------------------------


class MeasuredLogits(NamedTuple):
    """What the logits of a network say of it.

    Attributes:
        measured: what `circuits.of_logits` returns, as numpy.
        json: the same as plain values, with the split.
        remarks: what a reader must know beside it.
    """

    measured: Measures
    json: dict[str, Any]
    remarks: list[str]


def measure_logits(
    path: str | Path,
    *,
    p: int | None = None,
    task: str = "add",
    frac: float | None = None,
    split: str | None = None,
    split_seed: int | None = None,
    seed: int | None = None,
    dtype: str = "float32",
) -> MeasuredLogits:
    """Every measure that needs no weights, of the logits in a .npy of shape (p, p, p), (p, p, p + 1), or with the pairs
    in one axis.

    The other arguments are those of `subject_of_file`.

    Raises BadInput, and names what is wrong.
    """
    try:
        logits = contents(path, (ARRAY,))
    except BadInput as error:
        raise BadInput("logits", str(path), error.accepted) from None
    size = p if p is not None else (math.isqrt(len(logits)) if logits.ndim == 2 else len(logits) if logits.ndim else 0)
    classes = logits.shape[-1] if logits.ndim else 0
    is_shape = logits.shape in ((size, size, classes), (size * size, classes)) and classes in (size, size + 1)
    if not is_shape or size < 2 or logits.dtype.kind != "f":
        wanted = f"floats of shape ({p or 'p'}, {p or 'p'}, {p or 'p'}), or one class more"
        raise BadInput("logits", f"{logits.dtype}{list(logits.shape)}", wanted)
    with np.errstate(over="ignore"):
        logits = logits.reshape(size, size, classes).astype(dtype)
    if not np.isfinite(logits).all():
        raise BadInput("logits", str(path), f"finite numbers of {dtype}")
    config = config_for_analysis(Config(task=task, p=size), dtype)
    seed = (split_seed or 0) if seed is None else seed
    pairs, about = splits.split_of_file(config, {}, frac, split_seed, split, seed)
    measured = measures.of_logits(config, logits, pairs, seed)
    measured = jax.tree.map(np.asarray, measured)
    lines = _of_keys(config, measured)
    lines += _doubts(measured, classes, "")
    return MeasuredLogits(measured, measures.logits_to_json(config, measured) | {"split": about}, lines)


def _of_keys(config: Config, measured: Measures) -> list[str]:
    """What is measured where the task's group is not the numbers themselves, and why measures do not exist."""
    lines, task = [], modular_task(config)
    if task.is_multiplicative:
        lines.append(
            f"task {config.task}: measured on the pairs without 0, and frequencies are those of the discrete logarithm "
            f"to the base {task.group[1]}, modulo {len(task.group)}"
        )
    if not fourier.has_waves(task):
        lines.append(
            f"task {config.task}: its answer is no wave of a and b, so restricted, excluded and fitted losses "
            "do not exist"
        )
    if config.norm != "none":
        lines.append(
            f"norm {config.norm}: W_E, W_L and the logits are read as they are, W_L without the factor of the last "
            "norm; ablations of parts of the network do not exist"
        )
    if measured["no_keys"]:
        lines.append("no keys: no frequency satisfies the rules, so the measures that need keys do not exist")
    return lines
