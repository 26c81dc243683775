"""What a run is: its `Config`, which fixes the compiled program, and its numbers, which do not.

Every field that changes a shape or an operation is in `Config`. The numbers that differ between the runs of a sweep
(seed, weight decay, learning rate, ...) are in `Run`; they reach the program as a `Hyper` pytree of traced scalars,
so that changing one of them compiles nothing.
"""

import dataclasses
import hashlib
import json
import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxgrok import task_names
from jaxgrok.task_names import NAMES


def printable(text: str) -> str:
    """The text in one line. Names of files and keys may hold a newline, or codes that a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class BadInput(ValueError):
    """A value that a user gave and that is not accepted. `str()` is one clear line for the terminal.

    name: the field, flag or key. value: what was given. accepted: what would be accepted, as a noun phrase.
    """

    def __init__(self, name: str, value: Any, accepted: str):
        super().__init__(name, value, accepted)
        self.name, self.value, self.accepted = name, value, accepted

    def __str__(self) -> str:
        return printable(f"{self.name}: got {self.value!r}; accepted: {self.accepted}")


CHOICES = {
    "task": NAMES,
    "arch": ("transformer", "attn_only", "mlp"),
    "act": ("relu", "gelu", "square"),
    "optimizer": ("adam", "sgd", "lion", "muon", "schedule_free"),
    "regulariser": ("weight_decay", "l2", "l1", "none"),
    "loss": ("exact", "float64", "float32", "stablemax"),
    "dtype": ("float32", "float64"),
    "matmul_precision": ("default", "high", "highest", "tf32_x3"),
    "sequence": ("xy=", "xy"),
    "attention": ("causal", "full"),
    "tied": ("no", "yes"),
    "norm": ("none", "layernorm", "rmsnorm"),
    "orthograd": ("no", "yes"),
}
_SMALLEST = {
    **{"p": 2, "n_layers": 1, "n_heads": 1, "d_model": 1, "d_mlp": 1, "warmup_steps": 0},
    **{"n_ctx": 1, "seq_len": 3, "repeat_len": 2, "n_repeats": 2, "n_tokens": 2, "batch_size": 1, "n_test": 1},
    "grokfast_window": 1,
}
MAX_EPOCHS = 10_000_000  # every recorded epoch takes memory
MAX_EXAMPLES = 1_000_000  # train and test examples are drawn before training starts
MAX_WIDTH = 1_000_000
# A mistyped size is refused before it fills the memory or keeps the compiler busy for hours. p is small because the
# p^2 pairs are listed and shuffled; layers and positions, because each one adds to the program or to every activation.
_LARGEST = {
    **{"p": 2000, "n_layers": 1000, "n_heads": MAX_WIDTH, "d_model": MAX_WIDTH, "d_mlp": MAX_WIDTH},
    **{"n_ctx": 100_000, "seq_len": 100_000, "repeat_len": 100_000, "n_repeats": 100_000, "n_tokens": MAX_WIDTH},
    **{"warmup_steps": 2**31 - 1, "batch_size": MAX_EXAMPLES, "n_test": MAX_EXAMPLES, "grokfast_window": 10_000},
}
# Fields that only some tasks have.
_OF_TASKS = {
    "seq_len": ("induction", "skip_trigram", "parity<K>"),
    "repeat_len": ("induction",),
    "n_repeats": ("induction",),
    "n_tokens": ("induction",),
}


def is_prime(p: int) -> bool:
    return p > 1 and all(p % divisor for divisor in range(2, int(p**0.5) + 1))


def task_of(text: Any) -> str:
    """The task that a text names, in its one form (`task_names`). Raises BadInput, named task."""
    if not isinstance(text, str):
        raise BadInput("task", text, task_names.ACCEPTED)
    try:
        return task_names.name_of(text)
    except ValueError as error:
        raise BadInput("task", text, str(error)) from None


def _whole(name: str, value: Any) -> int:
    """A whole number within the field's bounds as an int; numpy's integers are accepted."""
    least, most = _SMALLEST[name], _LARGEST[name]
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise BadInput(name, value, f"a whole number from {least:,} to {most:,}")
    return number


def _real(name: str, value: Any, accepted: str, test) -> float:
    """A number that passes a test as a float; integers and numpy's numbers are accepted."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value) or not test(value):
        raise BadInput(name, value, accepted)
    return float(value)


@dataclass(frozen=True)
class Config:
    """The shapes and operations of one run. The defaults are the post's mainline (spec: PUBLISHED.md).

    task: its name (`task_names`): an operation on (x, y) modulo p such as add, random (a random table) or x/y; several
        of them, add+subtract; an operation on a group, s5; addition<N> (of N-digit numbers), induction (repeated
        subsequences), skip_trigram (find the one entry >= 10), parity<K> (of K bits among others); or your own class.
    arch: `transformer` (learned positions, by default no LayerNorm), `attn_only` (the same without MLPs), or
        `mlp` (p -> d_mlp -> p on the sum of two one-hots; modular tasks only).
    d_mlp: the hidden width. None means 4 d_model for the transformer and 256 for the MLP.
    act: relu, gelu in its exact erf form, or square, x^2.
    residual_factor: every sublayer turns x into residual_factor * x + sublayer(x). It is 2 in the released induction
        networks.
    dropout: the share of each sublayer's output that a training step drops.
    n_ctx: how many positions the network has, for tasks that draw their examples. None means as many as a sequence has.
    seq_len, repeat_len, n_repeats, n_tokens: the sequences of induction and skip_trigram (see their files). None means
        the published value.
    batch_size: examples per step. None means all train examples, or the task's own number on unlimited data.
    n_test: test examples of a task that draws them. None means the task's own number.
    optimizer, regulariser: adam with weight_decay is AdamW; l2 and l1 are terms of the loss. The run's `weight_decay`
        is the strength of whichever regulariser there is. muon is for matrices between layers, and adam for all else.
        schedule_free is schedule-free AdamW: its average of the weights is what is evaluated and saved, and train
        losses and accuracies are from where it takes gradients, between the average and the newest weights.
    loss: `exact` works in the parameters' own dtype, `float64` casts the logits and takes log_softmax as the authors
        do, `float32` takes log_softmax in float32. `stablemax` has another function in place of the exponential
        (`nets.loss`).
    dtype: of parameters and activations.
    matmul_precision: JAX's name for it; `highest` keeps float32 products in float32 on GPU and TPU. `tf32_x3`, for a
        GPU, makes each of three products in TF32: nearly float32, on tensor cores.
    b1, b2, eps, warmup_steps: of AdamW; b1 is the momentum of sgd. The learning rate is multiplied by
        min(step / warmup_steps, 1), where step counts from 0.
    sequence: the tokens of a task on pairs: `xy=` reads the answer at "=", `xy` has no "=" and reads it at y.
    attention: `causal`, or `full`: every position sees every other.
    attn_coeff: c in c softmax + (1 - c), the weight of each position that is seen: 1 is softmax attention, 0 gives
        every position the weight 1 (Zhong et al. 2023, "The Clock and the Pizza").
    tied: whether W_U is the transpose of W_E.
    grokfast: the factor of Grokfast, 0 for none. grokfast_alpha: the memory of its moving average. grokfast_window: how
        many gradients it averages instead; None means the moving average. orthograd: whether gradients are made
        orthogonal to the weights. max_norm: the most that the norm of all weights may be; None means no bound
        (`training.gradients` has the equations).
    norm: what normalises the stream before each sublayer and before W_U. The post's networks have none.
    label_smoothing: the share of each target that is spread over all classes in training.

    Raises BadInput for a value outside its range, and names the field.
    """

    task: str = "add"
    p: int = 113
    arch: str = "transformer"
    n_layers: int = 1
    n_heads: int = 4
    d_model: int = 128
    d_mlp: int | None = None
    act: str = "relu"
    loss: str = "exact"
    dtype: str = "float32"
    matmul_precision: str = "highest"
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    warmup_steps: int = 10
    residual_factor: float = 1.0
    dropout: float = 0.0
    n_ctx: int | None = None
    seq_len: int | None = None
    repeat_len: int | None = None
    n_repeats: int | None = None
    n_tokens: int | None = None
    batch_size: int | None = None
    n_test: int | None = None
    optimizer: str = "adam"
    regulariser: str = "weight_decay"
    sequence: str = "xy="
    attention: str = "causal"
    attn_coeff: float = 1.0
    tied: str = "no"
    grokfast: float = 0.0
    grokfast_alpha: float = 0.98
    orthograd: str = "no"
    max_norm: float | None = None
    label_smoothing: float = 0.0
    grokfast_window: int | None = None
    norm: str = "none"

    def __post_init__(self):
        for name in CHOICES:
            if name != "task" and getattr(self, name) not in CHOICES[name]:
                raise BadInput(name, getattr(self, name), " ".join(CHOICES[name]))
        # The dataclass is frozen, so that values are made plain past its guard.
        object.__setattr__(self, "task", task_of(self.task))
        for name in _SMALLEST:
            if getattr(self, name) is not None or name not in MAY_BE_NONE:
                object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("b1", "b2", "eps", "dropout", "grokfast_alpha", "label_smoothing"):
            number = _real(name, getattr(self, name), "a number in [0, 1)", lambda x: 0 <= x < 1)
            object.__setattr__(self, name, number)
        factor = _real("residual_factor", self.residual_factor, "a number > 0", lambda x: x > 0)
        object.__setattr__(self, "residual_factor", factor)
        coeff = _real("attn_coeff", self.attn_coeff, "a number in [0, 1]", lambda x: 0 <= x <= 1)
        object.__setattr__(self, "attn_coeff", coeff)
        object.__setattr__(self, "grokfast", _real("grokfast", self.grokfast, "a number >= 0", lambda x: x >= 0))
        if self.max_norm is not None:
            object.__setattr__(self, "max_norm", _real("max_norm", self.max_norm, "a number > 0", lambda x: x > 0))
        self._check_combinations()

    def _check_combinations(self) -> None:
        for name, tasks in _OF_TASKS.items():
            may_have = task_names.kind_of_drawn(self.task) in tasks or task_names.own_class(self.task) is not None
            if getattr(self, name) is not None and not may_have:
                *others, last = tasks
                accepted = f"with task {', '.join(others)}{' or ' * bool(others)}{last}"
                raise BadInput(name, getattr(self, name), accepted)
        is_operation = task_names.is_operation(self.task)
        if self.arch == "mlp" and not is_operation:
            raise BadInput("arch", "mlp", f"transformer or attn_only with task {self.task}")
        if self.arch == "mlp" and self.optimizer == "muon":
            others = " ".join(name for name in CHOICES["optimizer"] if name != "muon")
            raise BadInput("optimizer", "muon", f"{others} with arch mlp, which has no matrix between layers")
        if self.arch == "mlp" and self.dropout:
            raise BadInput("dropout", self.dropout, "0 with arch mlp")
        pairs = is_operation or task_names.group_of(self.task) is not None
        unread = pairs or bool(task_names.mixed_of(self.task))  # elsewhere full attention would see the answers
        for name, may_differ in (("sequence", pairs), ("attention", unread)):
            if not may_differ and getattr(self, name) != CONFIG_FIELDS[name].default:
                raise BadInput(name, getattr(self, name), "with a task on pairs, such as add, x/y or s5")
        if self.arch == "mlp":
            for name in ("sequence", "attention", "attn_coeff", "tied", "norm"):
                if getattr(self, name) != CONFIG_FIELDS[name].default:
                    raise BadInput(name, getattr(self, name), "with arch transformer or attn_only")
        if self.orthograd == "yes" and self.regulariser in ("l2", "l1"):
            accepted = "weight_decay or none with orthograd, which takes l2 out of the gradient"
            raise BadInput("regulariser", self.regulariser, accepted)
        for name in ("grokfast_alpha", "grokfast_window"):
            if getattr(self, name) != CONFIG_FIELDS[name].default and not self.grokfast:
                raise BadInput(name, getattr(self, name), "with a grokfast above 0")
        if self.grokfast_window is not None and self.grokfast_alpha != CONFIG_FIELDS["grokfast_alpha"].default:
            raise BadInput("grokfast_alpha", self.grokfast_alpha, "without grokfast_window, an average of another kind")
        if self.optimizer == "schedule_free" and self.max_norm is not None:
            raise BadInput("max_norm", self.max_norm, "with another optimizer than schedule_free")
        if self.matmul_precision == "tf32_x3" and self.dtype != "float32":
            raise BadInput("matmul_precision", "tf32_x3", f"default high highest with dtype {self.dtype}")
        if is_operation and "/" in self.task and not is_prime(self.p):
            raise BadInput("p", self.p, f"a prime with task {self.task}, which divides")
        if self.n_ctx is not None and self.listed:
            accepted = "with a task that draws its examples; the others have sequences of one length"
            raise BadInput("n_ctx", self.n_ctx, accepted)
        if self.d_model % self.n_heads:
            raise BadInput("n_heads", self.n_heads, f"a divisor of d_model = {self.d_model}")

    @property
    def modular(self) -> bool:
        """Whether the task is about numbers modulo p."""
        return task_names.is_modular(self.task)

    @property
    def listed(self) -> bool:
        """Whether all examples are listed, so that a fraction of them is for training. Other tasks draw theirs."""
        return task_names.is_listed(self.task)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        """The hidden width of each MLP; 0 in a network without MLPs."""
        if self.d_mlp is not None and self.arch != "attn_only":
            return self.d_mlp
        return {"transformer": 4 * self.d_model, "attn_only": 0, "mlp": 256}[self.arch]

    @property
    def needs_x64(self) -> bool:
        return "float64" in (self.dtype, self.loss)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Config":
        """The config whose fields are among the record's. A field that is missing or None is at its default."""
        return cls(**{name: record[name] for name in CONFIG_FIELDS if record.get(name) is not None})


CONFIG_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
MAY_BE_NONE = {name for name, field in CONFIG_FIELDS.items() if field.default is None}
# Fields added after the first version. At their defaults they are in no directory's name and may be missing in its
# files.
LATER = tuple(CONFIG_FIELDS)[tuple(CONFIG_FIELDS).index("residual_factor") :]

# Fields added after steps were given the digest of a run's coordinates. At their defaults they are in no digest.
UNDIGESTED = tuple(CONFIG_FIELDS)[tuple(CONFIG_FIELDS).index("regulariser") + 1 :]

UNLIMITED = "unlimited"  # what commands and tables call n_train None
# The names of a run's numbers on disk, in tables and in flags.
COORDINATES = ("seed", "frac", "n_train", "wd", "lr", "init_scale", "split_seed")


class Hyper(NamedTuple):
    """A run's traced numbers, each a scalar (or [rows] in a batch of runs).

    seed: of the initial weights and of dropout (int32). data_seed: of fresh data (int32).
    weight_decay: or the strength of another regulariser; lr: the learning rate; init_scale: multiplies every initial
    weight; these three are in the config's dtype.
    """

    seed: Any
    data_seed: Any
    weight_decay: Any
    lr: Any
    init_scale: Any


@dataclass(frozen=True)
class Run:
    """One run: its config, and the numbers that place it in a grid.

    frac: the share of all examples that are trained on, where the task lists them; None for any other.
    n_train: the number of train examples; None means unlimited data.
    split_seed: fixes the train/test split, or the stream of fresh data; None means the run's own seed.
    """

    config: Config
    seed: int = 0
    frac: float | None = None
    n_train: int | None = None
    weight_decay: float = 1.0
    lr: float = 1e-3
    init_scale: float = 1.0
    split_seed: int | None = None

    @property
    def size(self) -> float | int | None:
        """How much there is to train on, as the task counts it: a fraction of all examples, or a number of them."""
        return self.frac if self.config.listed else self.n_train

    @property
    def unlimited(self) -> bool:
        """Whether every step draws fresh data, so that there is nothing to memorise."""
        return self.n_train is None

    def hyper(self) -> Hyper:
        """The run's traced numbers, in its config's dtype."""
        number = np.dtype(self.config.dtype).type
        data_seed = self.seed if self.split_seed is None else self.split_seed
        numbers = (number(x) for x in (self.weight_decay, self.lr, self.init_scale))
        return Hyper(np.int32(self.seed), np.int32(data_seed), *numbers)

    def coordinates(self) -> dict[str, Any]:
        """Everything that tells this run from another, as plain values under the names used on disk."""
        fields = self.config.to_dict() | ({} if self.config.modular else {"p": None})
        numbers = (self.seed, self.frac, self.n_train, self.weight_decay, self.lr, self.init_scale, self.split_seed)
        return fields | dict(zip(COORDINATES, numbers, strict=True))

    @classmethod
    def from_coordinates(cls, record: dict[str, Any]) -> "Run":
        """The run with these coordinates. What an older file lacks is at its default.

        Raises BadInput for a number that is none, and KeyError for one that is missing.
        """
        for name in ("frac", "wd", "lr", "init_scale"):
            if record.get(name) is not None:
                _real(name, record[name], "a finite number", lambda x: True)
        for name in ("seed", "n_train", "split_seed"):
            if not isinstance(record[name], int | None) or isinstance(record[name], bool):
                raise BadInput(name, record[name], "a whole number")
        numbers = {name: record[name] for name in ("seed", "frac", "n_train", "lr", "split_seed")}
        scale = record.get("init_scale", 1.0)
        return cls(Config.from_dict(record), weight_decay=record["wd"], init_scale=scale, **numbers)


def fingerprint(fields: dict[str, Any]) -> str:
    """Six hexadecimal digits that name a dictionary of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:6]
