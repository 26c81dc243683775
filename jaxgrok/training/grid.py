"""What a sweep trains: the fields that hold for all of it, the axes of its grid, and the runs that follow from them.

A `Sweep` is made from keyword arguments (`make_sweep`), from a TOML file in `sweeps/`, or from a file and flags
(`sweep_from`). Every value is checked here, before jax starts. A bad value raises BadInput, which names the field as
the user named it: `--wd`, or `key 'wd' in FILE`.
"""

import hashlib
import itertools
import math
import operator
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from jaxgrok.config import (
    CHOICES,
    CONFIG_FIELDS,
    LATER,
    MAX_EPOCHS,
    MAY_BE_NONE,
    UNLIMITED,
    BadInput,
    Config,
    Run,
    fingerprint,
    task_of,
)
from jaxgrok.tasks import make_config, make_task, step_examples

T = TypeVar("T")

# The default length of a run: the paper's at weight decay 1 and above, and more below it, up to a limit.
PAPER_EPOCHS, MAX_DEFAULT_EPOCHS = 40_000, 150_000
UNLIMITED_EPOCHS = 6_000  # the default length on unlimited data: that of the longest released run
DEFAULT_SEEDS = 8
# Mistyped numbers are refused before they fill the memory.
MAX_SEEDS = 100_000
MAX_RUNS = 200_000
MAX_CONFIGS = 10_000  # each one is compiled
MAX_SIZES = 1000  # in one round of a search for a dataset size
MAX_INT32 = 2**31 - 1  # seeds and intervals reach the compiled program as int32
NOTES = ("question", "cost", "expect")  # what a sweep file says in words
# Fields of which a file's question, and what it expects, do not depend.
WITHOUT_EFFECT = {"seeds", "eval_every", "train_every", "checkpoint_every"}
OFF, NONE = ("max_norm", "grokfast_window"), "none"  # fields that may be off, and the word for it in a list
TORCH = "torch"  # the value of `init` that asks for the initial weights of the authors' code
# The settings that `Sweep` holds under another name than flags, TOML files and directories use.
_ATTRIBUTES = {"wd": "weight_decay"}


def _name_of_init(init: str) -> str:
    """`torch`, or the file's name with twelve digits of its content's hash, so that another file is another sweep."""
    if init == TORCH:
        return init
    return f"{Path(init).name} {hashlib.sha256(Path(init).read_bytes()).hexdigest()[:12]}"


def default_epochs(weight_decay: float, unlimited: bool = False) -> int:
    """How long a run trains unless it is told otherwise.

    On unlimited data this is 6,000 epochs. Else it is the paper's 40,000 at weight decay 1 and above; below 1 it grows
    in inverse proportion, up to 150,000.
    """
    if unlimited:
        return UNLIMITED_EPOCHS
    if weight_decay >= 1:
        return PAPER_EPOCHS
    return int(min(MAX_DEFAULT_EPOCHS, PAPER_EPOCHS / weight_decay)) if weight_decay > 0 else MAX_DEFAULT_EPOCHS


@dataclass(frozen=True)
class Sweep:
    """A grid of runs, how long they train, and how often they are evaluated and saved.

    Attributes:
        configs: one for each combination of the listed model fields, tasks and losses. Most sweeps have one.
        seeds: of every cell of the grid.
        frac: the train fractions of the tasks that list their examples.
        n_train: the numbers of train examples of the other tasks. None means unlimited data.
        weight_decay, lr, init_scale: the other axes (see `Run`).
        split_seed: one train/test split for all runs. None means that each run splits by its own seed.
        init: a file of weights from which every run starts, or `torch`, each seed's weights as the authors' code draws
            them. None means the weights that our model draws.
        epochs: the length of every run. None means `default_epochs` of each weight decay.
        until_settled: whether a run ends once it has settled, and after max_epochs at the latest.
        max_epochs: None means `default_epochs`.
        eval_every, checkpoint_every: None means at most 1 % of a run's epochs (spec: MEASURES.md, Epochs).
        train_every: the train loss is recorded at every so many epochs.
        name: begins the directory's default name. "" means that the task does.
        question, expect: of its file, in words; "" without one, or if its setting was changed.
    """

    configs: tuple[Config, ...]
    seeds: tuple[int, ...]
    frac: tuple[float, ...] = (0.3,)
    n_train: tuple[int | None, ...] = (None,)
    weight_decay: tuple[float, ...] = (1.0,)
    lr: tuple[float, ...] = (1e-3,)
    init_scale: tuple[float, ...] = (1.0,)
    split_seed: int | None = None
    init: str | None = None
    epochs: int | None = None
    until_settled: bool = False
    max_epochs: int | None = None
    eval_every: int | None = None
    checkpoint_every: int | None = None
    train_every: int = 1
    name: str = ""
    question: str = ""
    expect: str = ""

    def setting(self, name: str) -> Any:
        """The value of a setting of the grid, by its name in GRID_FIELDS: `wd`."""
        return getattr(self, _ATTRIBUTES.get(name, name))

    def runs(self) -> tuple[Run, ...]:
        """The runs of the grid. Seeds are innermost, so that the runs of a cell stand together."""
        runs: dict[Run, None] = {}  # a dict, because it keeps the order and holds each run once
        for config in self.configs:
            runs |= dict.fromkeys(self._runs_of(config))
        return tuple(runs)

    def _runs_of(self, config: Config) -> Iterator[Run]:
        # Runs must not differ in what has no effect on them: the modulus of a task that has none, or the strength of a
        # regulariser that is not there.
        config = config if config.modular else replace(config, p=Config.p)
        listed, task = config.listed, make_task(config)
        decays = (0.0,) if config.regulariser == "none" else self.weight_decay
        sizes = self.frac if listed else self.n_train
        for size, decay, lr, scale, seed in itertools.product(sizes, decays, self.lr, self.init_scale, self.seeds):
            frac = size if listed else None
            yield Run(config, seed, frac, task.n_train(size), decay, lr, scale, self.split_seed)

    def planned_epochs(self, run: Run) -> int:
        """The most epochs that this run trains."""
        asked = self.max_epochs if self.until_settled else self.epochs
        return default_epochs(run.weight_decay, run.unlimited) if asked is None else asked

    def fixed(self) -> dict[str, Any]:
        """The fields that may not change when a sweep is extended. A field that the sweep varies is a list."""
        values = {}
        for name in CONFIG_FIELDS:
            seen = list(dict.fromkeys(getattr(config, name) for config in self.configs))
            if name not in LATER or seen != [CONFIG_FIELDS[name].default]:
                values[name] = seen[0] if len(seen) == 1 else seen
        rest = {name: self.setting(name) for name in ("split_seed", "until_settled", "train_every")}
        return {**values, **rest, **({} if self.init is None else {"init": _name_of_init(self.init)})}

    def default_name(self, also: Sequence[str] = ()) -> str:
        """The directory's name. The same sweep, extended, has the same name and so finds itself.

        It depends on the fixed fields alone, and on those settings of the grid that `also` names.
        """
        fixed = self.fixed()
        task, p = ("-".join(map(str, x)) if isinstance(x, list) else str(x) for x in (fixed["task"], fixed["p"]))
        task = re.sub(r"[^\w-]+", "_", task).strip("_")[:60]  # an expression
        what = f"{task}-p{p}" if any(config.modular for config in self.configs) else task
        return f"{self.name or what}-{fingerprint(fixed | {name: self.setting(name) for name in also})}"


# --- values: a parser takes (the name for messages, what a flag or a TOML file holds) and returns what Sweep holds ----


def _items(name: str, value: Any, accepted: str) -> Sequence[Any]:
    """The items of a comma list or a TOML list; any other value is a list of one."""
    if not isinstance(value, str):
        return value if isinstance(value, list | tuple) else [value]
    items = [item.strip() for item in value.split(",")]
    if not all(items):
        raise BadInput(name, value, accepted)
    return items


def parse_list(name: str, value: Any, kind: Callable[[Any], T], accepted: str) -> tuple[T, ...]:
    """Parse a comma list, a TOML list or a single value into a tuple of `kind` (int, float or str).

    Raises BadInput for an empty list, for an item of another kind, and for an item that comes twice.
    """
    items = _items(name, value, accepted)
    if not items:
        raise BadInput(name, value, accepted)
    out = []
    for item in items:
        is_fraction, is_text = kind is int and isinstance(item, float), isinstance(item, str)
        try:
            if isinstance(item, bool) or is_fraction or (kind is str and not is_text):
                raise ValueError
            out.append(kind(item))
        except BadInput:
            raise
        except (TypeError, ValueError, OverflowError):
            raise BadInput(name, value, accepted) from None
    if len(set(out)) != len(out):
        raise BadInput(name, value, f"{accepted}, each once")
    return tuple(out)


def parse_seeds(name: str, value: Any) -> tuple[int, ...]:
    """Parse seeds: N is a count (0..N-1), a:b a half-open range, and a list gives the seeds themselves, or ranges.

    Raises BadInput for anything else, for a seed that comes twice, and for more than MAX_SEEDS seeds.
    """
    accepted = f"a count N >= 1, a range a:b with 0 <= a < b, or a comma list of seeds; at most {MAX_SEEDS:,}"
    try:
        bounds = _bounds_of_seeds(name, value, accepted)
    except (TypeError, ValueError):
        raise BadInput(name, value, accepted) from None
    # Bounds are compared before any range is made: the length of a huge range is no C integer.
    if not bounds or not all(0 <= first < stop <= MAX_INT32 + 1 for first, stop in bounds):
        raise BadInput(name, value, accepted)
    if sum(stop - first for first, stop in bounds) > MAX_SEEDS:
        raise BadInput(name, value, accepted)
    seeds = tuple(itertools.chain.from_iterable(range(first, stop) for first, stop in bounds))
    if len(set(seeds)) != len(seeds):
        raise BadInput(name, value, f"{accepted}; each once")
    return seeds


def _bounds_of_seeds(name: str, value: Any, accepted: str) -> list[tuple[int, int]]:
    """(first, stop) of each range of seeds. Raises TypeError or ValueError for what is none."""
    if isinstance(value, bool | float):
        raise ValueError
    if isinstance(value, str) and ":" not in value and "," not in value:
        return [(0, int(value))]
    if not isinstance(value, str | list | tuple | range):
        return [(0, operator.index(value))]
    bounds = []
    for item in _items(name, value, accepted) if isinstance(value, str) else value:
        first, colon, stop = str(item).partition(":")
        bounds.append((int(first), int(stop) if colon else int(first) + 1))
    return bounds


def _numbers(test: Callable[[float], bool], accepted: str) -> Callable[[str, Any], tuple[float, ...]]:
    """A parser of a list of finite numbers that pass a test."""

    def parse(name: str, value: Any) -> tuple[float, ...]:
        numbers = parse_list(name, value, float, accepted)
        if not all(math.isfinite(number) and test(number) for number in numbers):
            raise BadInput(name, value, accepted)
        return numbers

    return parse


def whole(name: str, value: Any, least: int, most: int = MAX_INT32) -> int:
    """A whole number from a flag or a TOML file. Raises BadInput unless it lies in least..most."""
    accepted = f"a whole number from {least:,} to {most:,}"
    (number,) = parse_list(name, [value], int, accepted)
    if not least <= number <= most:
        raise BadInput(name, value, accepted)
    return number


def _whole(least: int, most: int = MAX_INT32) -> Callable[[str, Any], int]:
    """A parser of a whole number in least..most."""
    return lambda name, value: whole(name, value, least, most)


def _n_train(name: str, value: Any) -> tuple[int | None, ...]:
    accepted = f"whole numbers of train examples >= 1, or {UNLIMITED}, as a comma list"
    items = _items(name, value, accepted)
    numbers = [None if item == UNLIMITED else parse_list(name, item, int, accepted)[0] for item in items]
    too_small = any(number is not None and number < 1 for number in numbers)
    if not numbers or too_small or len(set(numbers)) != len(numbers):
        raise BadInput(name, value, f"{accepted}, each once")
    return tuple(numbers)


def _init(name: str, value: Any) -> str:
    readable = isinstance(value, str | Path) and os.path.isfile(value) and os.access(value, os.R_OK)
    if value != TORCH and not readable:
        raise BadInput(name, value, "torch, or a file of weights (.pth .safetensors .npz) that exists and can be read")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(name, value, "true or false")
    return value


GRID_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "seeds": parse_seeds,
    "wd": _numbers(lambda x: x >= 0, "weight decays >= 0, as a comma list"),
    "frac": _numbers(lambda x: 0 < x < 1, "train fractions in (0, 1), as a comma list"),
    "lr": _numbers(lambda x: x > 0, "learning rates > 0, as a comma list"),
    "n_train": _n_train,
    "init_scale": _numbers(lambda x: x > 0, "factors > 0 of the initial weights, as a comma list"),
    "split_seed": _whole(0),
    "init": _init,
    "epochs": _whole(1, MAX_EPOCHS),
    "until_settled": _flag,
    "max_epochs": _whole(1, MAX_EPOCHS),
    "eval_every": _whole(1),
    "checkpoint_every": _whole(1),
    "train_every": _whole(1),
}
FIELDS = (*CONFIG_FIELDS, *GRID_FIELDS)


def _config_values(name: str, value: Any) -> tuple[Any, ...]:
    """The values of one field of Config. Most sweeps give one value; a list makes the field an axis."""
    if name == "task":
        return parse_list(name, value, task_of, "one or a comma list of tasks")
    if name in CHOICES:
        return parse_list(name, value, str, "one or a comma list of: " + " ".join(CHOICES[name]))
    if name in MAY_BE_NONE and value is None:
        return (None,)
    if name in OFF and NONE in (items := _items(name, value, "numbers, or none")):
        at, rest = items.index(NONE), [item for item in items if item != NONE]
        numbers = _config_values(name, rest) if rest else ()
        if len(rest) < len(items) - 1:
            raise BadInput(name, value, "none once")
        return (*numbers[:at], None, *numbers[at:])
    if CONFIG_FIELDS[name].type in (float, float | None):
        return parse_list(name, value, float, "a number or a comma list of numbers")
    return parse_list(name, value, int, "a whole number or a comma list of them")


# --- settings -> Sweep ------------------------------------------------------------------------------------------------


def make_sweep(settings: dict[str, Any], labels: dict[str, str] | None = None, name: str = "") -> Sweep:
    """The sweep of these settings, checked.

    settings: {field: value} for any of FIELDS, with values as flags or a TOML file give them. labels: {field: what the
    user called it} for messages, such as `--wd`. Raises BadInput for a value, or a combination of values, that cannot
    be trained.
    """
    try:
        sweep = _parse(settings, name)
        axes = {field: sweep.setting(field) for field in ("seeds", "wd", "lr", "init_scale", "frac", "n_train")}
        _check_product({"task": sweep.configs, **axes}, settings, MAX_RUNS, "runs")
        _check_lengths(sweep)
        _check_fields_of_tasks(sweep, settings)
        if sweep.init is not None and sweep.init_scale != (1.0,):
            raise BadInput("init_scale", settings["init_scale"], "without init, whose weights are taken as they are")
        _check_train_sizes(sweep)
    except BadInput as error:
        label = error.name if labels is None else labels.get(error.name, error.name)
        raise BadInput(label, error.value, error.accepted) from None
    return sweep


def _parse(settings: dict[str, Any], name: str) -> Sweep:
    for field in settings:
        if field not in FIELDS:
            raise BadInput(field, settings[field], "a known field: " + " ".join(FIELDS))
    configs = _make_configs(settings)
    grid = {
        _ATTRIBUTES.get(field, field): parse(field, settings[field])
        for field, parse in GRID_FIELDS.items()
        if field in settings
    }
    return Sweep(configs, **{"seeds": tuple(range(DEFAULT_SEEDS)), **grid}, name=name)


def _make_configs(settings: dict[str, Any]) -> tuple[Config, ...]:
    axes = {field: _config_values(field, settings[field]) for field in CONFIG_FIELDS if field in settings}
    _check_product(axes, settings, MAX_CONFIGS, "networks and tasks")
    try:
        configs = tuple(make_config(**dict(zip(axes, values))) for values in itertools.product(*axes.values()))
        for config in configs:
            make_task(config)  # raises for sequences that cannot be
    except BadInput as error:
        if error.name == "n_heads" and "n_heads" not in settings and "d_model" in settings:
            raise BadInput("d_model", settings["d_model"], f"multiples of n_heads = {error.value}") from None
        raise
    return configs


def _check_product(axes: Mapping[str, Sequence[Any]], settings: dict[str, Any], most: int, things: str) -> None:
    """Refuse a grid with more combinations of these axes than a sweep can hold. Names the longest axis."""
    n = math.prod(map(len, axes.values()))
    if n > most:
        longest = max(axes, key=lambda field: len(axes[field]))
        accepted = f"a grid of at most {most:,} {things}; this one has {n:,}"
        raise BadInput(longest, settings.get(longest, len(axes[longest])), accepted)


def _check_lengths(sweep: Sweep) -> None:
    if sweep.epochs is not None and sweep.until_settled:
        raise BadInput("epochs", sweep.epochs, "without until_settled, whose limit is max_epochs")
    if sweep.max_epochs is not None and not sweep.until_settled:
        raise BadInput("max_epochs", sweep.max_epochs, "with until_settled; a fixed length is epochs")


def _check_fields_of_tasks(sweep: Sweep, settings: dict[str, Any]) -> None:
    """Refuse a setting that no task of the sweep has."""
    listed = [config.listed for config in sweep.configs]
    refused = {}
    if not any(config.modular for config in sweep.configs):
        refused["p"] = "with a modular task"
    if not any(listed):
        refused["frac"] = "with a task that lists its examples, as modular ones do; the size of the others is n_train"
    if all(listed):
        drawing = "with a task that draws its examples, such as addition<N> or induction"
        refused |= {
            "n_train": f"{drawing}; the size of the others is frac",
            "n_test": f"{drawing}; the others test all that they do not train on",
        }
    for field, accepted in refused.items():
        if field in settings:
            raise BadInput(field, settings[field], accepted)


def _check_train_sizes(sweep: Sweep) -> None:
    """Refuse a size that leaves no train or no test example, or fewer train examples than a minibatch."""
    for config in sweep.configs:
        task = make_task(config)
        for size in sweep.frac if config.listed else sweep.n_train:
            step_examples(config, task.n_train(size))


def read_sweep_file(path: Path) -> dict[str, Any]:
    """The settings in a sweep file, with its `question`, `cost` and `expect`.

    Raises BadInput, which names the file and the line or the key, if it cannot be read, is not valid TOML, or holds a
    key or a kind of value that no sweep has.
    """
    try:
        settings = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadInput("sweep file", str(path), f"a readable TOML file ({reason})") from None
    except RecursionError:
        raise BadInput("sweep file", str(path), "valid TOML (its lists or tables are nested too deeply)") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise BadInput("sweep file", str(path), f"valid TOML ({error})") from None
    for key, value in settings.items():
        label = f"key {key!r} in {path}"
        if key not in (*FIELDS, *NOTES):
            raise BadInput(label, value, "one of: " + " ".join((*NOTES, *FIELDS)))
        if key in NOTES and not isinstance(value, str):
            raise BadInput(label, value, "text")
        has_text = any(isinstance(item, str) for item in (value if isinstance(value, list) else [value]))
        if has_text and key not in (*NOTES, *CHOICES, *OFF, "seeds", "init", "n_train"):
            raise BadInput(label, value, "numbers, or true or false, without quotes")
    return settings


def sweep_from(file: Path | None, overrides: dict[str, Any], labels: dict[str, str] | None = None) -> Sweep:
    """The sweep of a file, with some fields overridden; no file means the overrides alone.

    A None among the overrides counts as absent. labels: of the overrides, as in `make_sweep`. Raises BadInput as
    `read_sweep_file` and `make_sweep` do.
    """
    overrides = {field: value for field, value in overrides.items() if value is not None}
    if file is None:
        return make_sweep(overrides, labels)
    content = read_sweep_file(file)
    settings = {key: value for key, value in content.items() if key not in NOTES}
    names = {key: f"key {key!r} in {file}" for key in settings}
    # A flag that says how long to train replaces everything that the file says about it.
    if {"epochs", "max_epochs", "until_settled"} & set(overrides):
        for key in {"epochs", "max_epochs"} - set(overrides):
            settings.pop(key, None)
        if "epochs" in overrides:
            settings.pop("until_settled", None)
    sweep = make_sweep(settings | overrides, names | ({} if labels is None else labels), Path(file).stem)
    if not set(overrides) <= WITHOUT_EFFECT:  # another question may be asked, and something else expected
        return sweep
    return replace(sweep, question=content.get("question", ""), expect=content.get("expect", ""))
