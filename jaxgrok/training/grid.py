"""What a sweep trains: the fields that hold for all of it, the axes of its grid, and the runs that follow.

A `Sweep` comes from keyword arguments, from a TOML file (`sweeps/`), or from both; every value is checked here, before
jax starts, and a bad one raises BadInput with the name it was given under.
"""

import hashlib
import itertools
import math
import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrok.config import CHOICES, CONFIG_FIELDS, LATER, MAY_BE_NONE, BadInput, Config, fingerprint
from jaxgrok.tasks import make_config, make_task, step_examples

PAPER_EPOCHS, MOST_EPOCHS = 40_000, 150_000  # of the default length
UNLIMITED_EPOCHS = 6_000  # the same with unlimited data: the longest released run
MOST_PLANNED = 10_000_000  # of any: every recorded epoch takes memory
UNLIMITED = "unlimited"
NOTES = ("question", "cost", "expect")  # what a sweep file says in words


@dataclass(frozen=True)
class Run:
    """One run: its config and the numbers that place it in the grid. `split_seed` None means the run's own seed.

    frac: of the pairs of a modular task, None for another. n_train: train examples; None: unlimited data.
    """

    config: Config
    seed: int
    frac: float | None
    n_train: int | None
    wd: float
    lr: float
    init_scale: float = 1.0
    split_seed: int | None = None

    @property
    def size(self):
        """How much there is to train on, as the task takes it."""
        return self.frac if self.config.modular else self.n_train

    def coordinates(self) -> dict:
        """Everything that tells this run from another, as plain values."""
        fields = self.config.to_dict() | ({} if self.config.modular else {"p": None})
        numbers = {name: getattr(self, name) for name in ("seed", "frac", "n_train", "wd", "lr", "init_scale", "split_seed")}
        return fields | numbers

    @classmethod
    def from_record(cls, record: dict) -> "Run":
        """The run with these coordinates; what an older file lacks is at its default."""
        numbers = {name: record[name] for name in ("seed", "frac", "n_train", "wd", "lr", "split_seed")}
        return cls(Config.from_dict(record), init_scale=record.get("init_scale", 1.0), **numbers)


def _name_of_init(init: str) -> str:
    """`torch`, or a file's name with twelve digits of its content: another file is another sweep."""
    return init if init == "torch" else f"{Path(init).name} {hashlib.sha256(Path(init).read_bytes()).hexdigest()[:12]}"


def default_epochs(wd: float, unlimited: bool = False) -> int:
    """The paper's 40,000 at weight decay 1 and above; longer in inverse proportion below, at most 150,000. 6,000 with unlimited data."""
    if unlimited:
        return UNLIMITED_EPOCHS
    return PAPER_EPOCHS if wd >= 1 else int(min(MOST_EPOCHS, PAPER_EPOCHS / max(wd, 1e-9)))


@dataclass(frozen=True)
class Sweep:
    """A grid of runs, how long they train, and on what cadence they are looked at.

    configs: one per combination of the listed model fields, tasks and losses (most sweeps have one). frac: of the modular tasks;
    n_train: of the others, None is unlimited data.
    epochs None: `default_epochs` of each weight decay. until_settled: a run ends once it has settled, at the latest at
    max_epochs. eval_every, checkpoint_every None: at most 1 % of a run's epochs (spec: MEASURES.md, Epochs).
    init: a file of weights that every run starts from, or `torch`, each seed's as the authors draw them; None: ours.
    """

    configs: tuple[Config, ...]
    seeds: tuple[int, ...]
    frac: tuple[float, ...] = (0.3,)
    n_train: tuple[int | None, ...] = (None,)
    wd: tuple[float, ...] = (1.0,)
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

    def runs(self) -> tuple[Run, ...]:
        """The grid, seeds innermost, so that a cell's runs stand together."""
        runs = []
        for config in self.configs:
            modular, task = config.modular, make_task(config)
            # Without a regulariser its strength is nothing to tell runs apart by, nor is the modulus of a task that has none.
            config = config if modular else replace(config, p=Config.p)
            decays = (0.0,) if config.regulariser == "none" else self.wd
            sizes = self.frac if modular else self.n_train
            for size, wd, lr, scale, seed in itertools.product(sizes, decays, self.lr, self.init_scale, self.seeds):
                runs.append(Run(config, seed, size if modular else None, task.n_train(size), wd, lr, scale, self.split_seed))
        return tuple(dict.fromkeys(runs))

    def planned_epochs(self, run: Run) -> int:
        """The most epochs this run trains."""
        return (self.max_epochs if self.until_settled else self.epochs) or default_epochs(run.wd, run.n_train is None)

    def fixed(self) -> dict:
        """The fields that may not change when a sweep is extended; a field that the sweep varies is a list."""
        values = {}
        for name in CONFIG_FIELDS:
            seen = list(dict.fromkeys(getattr(config, name) for config in self.configs))
            if name not in LATER or seen != [CONFIG_FIELDS[name].default]:
                values[name] = seen[0] if len(seen) == 1 else seen
        rest = {"split_seed": self.split_seed, "until_settled": self.until_settled, "train_every": self.train_every}
        return {**values, **rest, **({} if self.init is None else {"init": _name_of_init(self.init)})}

    def default_name(self, also=()) -> str:
        """A directory name that depends on the fixed fields, and on the grid's fields `also`, alone, so that the same sweep,
        extended, finds itself."""
        fixed = self.fixed() | {name: getattr(self, name) for name in also}
        task = "-".join(fixed["task"]) if isinstance(fixed["task"], list) else fixed["task"]
        p = "-".join(map(str, fixed["p"])) if isinstance(fixed["p"], list) else fixed["p"]
        what = f"{task}-p{p}" if any(config.modular for config in self.configs) else task
        return f"{self.name or what}-{fingerprint(fixed)}"


# --- values: every parser takes what a flag or a TOML file holds, and returns a tuple -------------------------------


def _items(text, name, accepted):
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise BadInput(name, text, accepted)
    return items


def parse_list(name, value, kind, accepted):
    """A comma list, a TOML list or a single value -> a tuple of `kind` without repetitions."""
    items = _items(value, name, accepted) if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not items:
        raise BadInput(name, value, accepted)
    out = []
    for item in items:
        try:
            if isinstance(item, bool) or (kind is int and isinstance(item, float)) or (kind is str and not isinstance(item, str)):
                raise ValueError
            out.append(kind(item))
        except (TypeError, ValueError):
            raise BadInput(name, value, accepted) from None
    if len(set(out)) != len(out):
        raise BadInput(name, value, f"{accepted}, each once")
    return tuple(out)


MOST_SEEDS = 100_000  # a mistyped count is refused before it fills the memory


def parse_seeds(name, value) -> tuple[int, ...]:
    """N is a count (0..N-1), a:b a half-open range, a comma or a list gives the seeds themselves: `3`, `1:2`, `1,5,9`."""
    accepted = f"a count N >= 1, a range a:b with 0 <= a < b, or a comma list of seeds; at most {MOST_SEEDS:,}"
    try:
        if isinstance(value, bool | float):
            raise ValueError
        if isinstance(value, int | str) and ":" not in str(value) and "," not in str(value):
            ranges = [range(int(value))]
        else:
            parts = _items(value, name, accepted) if isinstance(value, str) else [str(seed) for seed in value]
            bounds = [part.split(":") for part in parts]
            if any(len(ends) > 2 for ends in bounds):
                raise ValueError
            ranges = [range(int(ends[0]), int(ends[-1]) + (len(ends) == 1)) for ends in bounds]
    except (TypeError, ValueError):
        raise BadInput(name, value, accepted) from None
    total = sum(map(len, ranges))
    if not ranges or not all(ranges) or total > MOST_SEEDS or any(r[0] < 0 or r[-1] >= 2**31 for r in ranges):
        raise BadInput(name, value, accepted)
    seeds = tuple(itertools.chain(*ranges))
    if len(set(seeds)) != total:
        raise BadInput(name, value, f"{accepted}; each once")
    return seeds


def _numbers(name, value, test, accepted):
    numbers = parse_list(name, value, float, accepted)
    if not all(math.isfinite(number) and test(number) for number in numbers):
        raise BadInput(name, value, accepted)
    return numbers


def whole(name, value, least, most=2**31 - 1) -> int:
    """A whole number from a flag or a TOML file, from `least` to `most`. Raises BadInput."""
    accepted = f"a whole number from {least:,} to {most:,}"
    (number,) = parse_list(name, [value], int, accepted)
    if not least <= number <= most:
        raise BadInput(name, value, accepted)
    return number


def _n_train(name, value) -> tuple[int | None, ...]:
    accepted = f"whole numbers of train examples >= 1, or {UNLIMITED}, as a comma list"
    items = _items(value, name, accepted) if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = [None if item == UNLIMITED else parse_list(name, item, int, accepted)[0] for item in items]
    if not numbers or len(set(numbers)) != len(numbers) or any(number is not None and number < 1 for number in numbers):
        raise BadInput(name, value, f"{accepted}, each once")
    return tuple(numbers)


def _init(name, value) -> str:
    if not isinstance(value, str | Path) or (value != "torch" and not (os.path.isfile(value) and os.access(value, os.R_OK))):
        raise BadInput(name, value, "torch, or a file of weights (.pth .safetensors .npz) that exists and can be read")
    return str(value)


def _flag(name, value):
    if not isinstance(value, bool):
        raise BadInput(name, value, "true or false")
    return value


GRID_FIELDS = {
    "seeds": parse_seeds,
    "wd": lambda name, value: _numbers(name, value, lambda x: x >= 0, "weight decays >= 0, as a comma list"),
    "frac": lambda name, value: _numbers(name, value, lambda x: 0 < x < 1, "train fractions in (0, 1), as a comma list"),
    "lr": lambda name, value: _numbers(name, value, lambda x: x > 0, "learning rates > 0, as a comma list"),
    "n_train": _n_train,
    "init_scale": lambda name, value: _numbers(name, value, lambda x: x > 0, "factors > 0 of the initial weights, as a comma list"),
    "split_seed": lambda name, value: whole(name, value, 0),
    "init": _init,
    "epochs": lambda name, value: whole(name, value, 1, MOST_PLANNED),
    "until_settled": _flag,
    "max_epochs": lambda name, value: whole(name, value, 1, MOST_PLANNED),
    "eval_every": lambda name, value: whole(name, value, 1),
    "checkpoint_every": lambda name, value: whole(name, value, 1),
    "train_every": lambda name, value: whole(name, value, 1),
}
FIELDS = (*CONFIG_FIELDS, *GRID_FIELDS)


def _config_values(name, label, value):
    """The values of one config field, a tuple: most sweeps give one, a list makes an axis of it."""
    if name in CHOICES:
        accepted = "one or a comma list of: " + " ".join(CHOICES[name])
        return parse_list(label, value, str, accepted)
    if name in MAY_BE_NONE and value is None:
        return (None,)
    if CONFIG_FIELDS[name].type is float:
        return parse_list(label, value, float, "a number or a comma list of numbers")
    return parse_list(label, value, int, "a whole number or a comma list of them")


def make_sweep(settings: dict, labels: dict | None = None, name: str = "") -> Sweep:
    """Settings by field name (FIELDS), as flags or a TOML file give them -> a checked Sweep.

    labels: how each field was named by the user (`--wd`, `key wd in FILE`), for messages. Raises BadInput.
    """
    labels = labels or {}

    def label(field):
        return labels.get(field, field)

    for field in settings:
        if field not in FIELDS:
            raise BadInput(label(field), settings[field], "a known field: " + " ".join(FIELDS))
    axes = {field: _config_values(field, label(field), settings[field]) for field in CONFIG_FIELDS if field in settings}
    try:
        configs = tuple(make_config(**dict(zip(axes, values))) for values in itertools.product(*axes.values()))
        tasks = {config: make_task(config) for config in configs}
    except BadInput as error:
        field, value, accepted = error.name, error.value, error.accepted
        if field == "n_heads" and field not in settings and "d_model" in settings:
            field, value, accepted = "d_model", settings["d_model"], f"multiples of n_heads = {value}"
        raise BadInput(label(field), value, accepted) from None
    grid = {field: parse(label(field), settings[field]) for field, parse in GRID_FIELDS.items() if field in settings}
    sweep = Sweep(configs, **{"seeds": tuple(range(8)), **grid}, name=name)
    if sweep.epochs and sweep.until_settled:
        raise BadInput(label("epochs"), sweep.epochs, "without until_settled, whose limit is max_epochs")
    if sweep.max_epochs and not sweep.until_settled:
        raise BadInput(label("max_epochs"), sweep.max_epochs, "with until_settled; a fixed length is epochs")
    modular = [config.modular for config in configs]
    if "frac" in grid and not any(modular):
        raise BadInput(label("frac"), settings["frac"], "with a modular task; the size of the others is n_train")
    if "p" in settings and not any(modular):
        raise BadInput(label("p"), settings["p"], "with a modular task")
    if "n_train" in grid and all(modular):
        raise BadInput(
            label("n_train"), settings["n_train"], "with addition<N>, induction or skip_trigram; the size of modular tasks is frac"
        )
    if "n_test" in settings and all(modular):
        raise BadInput(label("n_test"), settings["n_test"], "with a task that draws its examples; modular ones test all other pairs")
    if sweep.init is not None and sweep.init_scale != (1.0,):
        raise BadInput(label("init_scale"), settings["init_scale"], "without init, whose weights are taken as they are")
    for config, task in tasks.items():
        for size in sweep.frac if config.modular else sweep.n_train:
            try:
                step_examples(config, task.n_train(size))
            except BadInput as error:
                raise BadInput(label(error.name), error.value, error.accepted) from None
    return sweep


def read_sweep_file(path: Path) -> dict:
    """The settings in a sweep file, with its `question`, `cost` and `expect`. Raises BadInput naming the file and the line or key."""
    try:
        settings = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("sweep file", str(path), f"a readable TOML file ({getattr(error, 'strerror', None) or error})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput("sweep file", str(path), f"valid TOML ({error})") from None
    for key, value in settings.items():
        if key not in (*FIELDS, *NOTES):
            raise BadInput(f"key {key!r} in {path}", value, "one of: " + " ".join((*NOTES, *FIELDS)))
        if key in NOTES and not isinstance(value, str):
            raise BadInput(f"key {key!r} in {path}", value, "text")
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if texts and key not in (*NOTES, *CHOICES, "seeds", "init", "n_train"):
            raise BadInput(f"key {key!r} in {path}", value, "numbers, or true or false, without quotes")
    return settings


def sweep_from(file: Path | None, overrides: dict, labels: dict | None = None) -> Sweep:
    """The sweep of a file with some fields overridden (None values are absent ones)."""
    overrides = {field: value for field, value in overrides.items() if value is not None}
    settings, names = {}, {}
    if file is not None:
        settings = {key: value for key, value in read_sweep_file(file).items() if key not in NOTES}
        names = {key: f"key {key!r} in {file}" for key in settings}
        # A flag that says how long to train replaces everything the file says about it.
        if {"epochs", "max_epochs", "until_settled"} & set(overrides):
            for key in {"epochs", "max_epochs"} - set(overrides):
                settings.pop(key, None)
            if "epochs" in overrides:
                settings.pop("until_settled", None)
    return make_sweep(settings | overrides, names | (labels or {}), Path(file).stem if file else "")
