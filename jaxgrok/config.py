"""What fixes a compiled program: every field that changes a shape or an operation.

The traced numbers of a run (seed, weight decay, learning rate) are not here: they are in `training.Hyper`, so that
changing one compiles nothing.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass


class BadInput(ValueError):
    """A value that a user gave and that is not accepted. `str()` is one clear line for the terminal.

    Attributes: name (the field, flag or key), value (what was given), accepted (what would be).
    """

    def __init__(self, name, value, accepted):
        super().__init__(name, value, accepted)
        self.name, self.value, self.accepted = name, value, accepted

    def __str__(self):
        return f"{self.name}: got {self.value!r}; accepted: {self.accepted}"


MODULAR = ("add", "subtract", "multiply", "x2xyy2", "random")  # tasks whose examples are the p^2 pairs
CHOICES = {
    "task": (*MODULAR, "addition<N>", "induction", "skip_trigram"),
    "arch": ("transformer", "attn_only", "mlp"),
    "act": ("relu", "gelu"),
    "optimizer": ("adam", "sgd"),
    "regulariser": ("weight_decay", "l2", "l1", "none"),
    "loss": ("exact", "float64", "float32"),
    "dtype": ("float32", "float64"),
    "matmul_precision": ("default", "high", "highest"),
}
MOST_P = 2000  # p^2 pairs are listed and shuffled: a mistyped modulus is refused before it fills the memory
MOST_DIGITS = 100
MOST_EXAMPLES = 1_000_000  # train and test examples are drawn before training starts: the same for a mistyped number of them
_SMALLEST = {
    **{"p": 2, "n_layers": 1, "n_heads": 1, "d_model": 1, "d_mlp": 1, "warmup_steps": 0},
    **{"n_ctx": 1, "seq_len": 3, "repeat_len": 2, "n_repeats": 2, "n_tokens": 2, "batch_size": 1, "n_test": 1},
}
# What only some tasks have.
_OF_TASKS = {
    "seq_len": ("induction", "skip_trigram"),
    "repeat_len": ("induction",),
    "n_repeats": ("induction",),
    "n_tokens": ("induction",),
}


def digits_of(task: str) -> int | None:
    """The N of `addition<N>`, 1 to MOST_DIGITS; None for another task."""
    match = re.fullmatch(r"addition([1-9]\d{0,2})", task)
    return int(match[1]) if match and int(match[1]) <= MOST_DIGITS else None


def _is_choice(name: str, value) -> bool:
    if name == "task" and isinstance(value, str) and digits_of(value):
        return True
    return value in CHOICES[name] and value != "addition<N>"


@dataclass(frozen=True)
class Config:
    """One run's shapes and operations. The defaults are the post's mainline (spec: PUBLISHED.md).

    task: the operation on (x, y) modulo p: add, subtract, multiply, x2xyy2 (x^2 + xy + y^2), random (a drawn table); or
    addition<N> (of N-digit numbers), induction (repeated subsequences), skip_trigram (find the one entry >= 10).
    arch: `transformer` (no LayerNorm, learned positions, untied), `attn_only` (the same without MLPs) or `mlp`
    (p -> d_mlp -> p on the sum of two one-hots; modular tasks).
    d_mlp: hidden width; None means 4 d_model for the transformer and 256 for the MLP.
    act: relu, or gelu in its exact erf form.
    residual_factor: every sublayer turns x into residual_factor * x + sublayer(x); 2 in the released induction networks.
    dropout: share of each sublayer's output that a training step drops.
    n_ctx: positions the network has, of tasks that draw their examples; None: as many as a sequence.
    seq_len, repeat_len, n_repeats, n_tokens: of induction and skip_trigram (see their files); None: as published.
    batch_size: examples a step; None: all train examples, or with unlimited data the task's own number.
    n_test: held-out examples of a task that draws them; None: the task's own number.
    optimizer, regulariser: adam with weight_decay is AdamW; l2 and l1 stand in the loss; the run's `wd` is the strength.
    loss: `exact` in the parameters' own dtype, `float64` (cast, log_softmax: the authors'), `float32` (naive log_softmax).
    dtype: of parameters and activations.
    matmul_precision: jax's name; `highest` keeps float32 products float32 on GPU and TPU.
    b1, b2, eps, warmup_steps: AdamW; b1 is the momentum of sgd; the learning rate is multiplied by min(step / warmup_steps, 1),
    step from 0.

    Raises BadInput for a value outside its range, naming the field.
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

    def __post_init__(self):
        for name in CHOICES:
            if not _is_choice(name, getattr(self, name)):
                more = f" (N from 1 to {MOST_DIGITS} digits)" if name == "task" else ""
                raise BadInput(name, getattr(self, name), " ".join(CHOICES[name]) + more)
        for name, least in _SMALLEST.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_NONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(name, value, f"a whole number, at least {least}")
        for name, tasks in _OF_TASKS.items():
            if getattr(self, name) is not None and self.task not in tasks:
                raise BadInput(name, getattr(self, name), f"with task {' or '.join(tasks)}")
        for name, most in {"p": MOST_P, "batch_size": MOST_EXAMPLES, "n_test": MOST_EXAMPLES}.items():
            if (getattr(self, name) or 0) > most:
                raise BadInput(name, getattr(self, name), f"at most {most}")
        if self.arch == "mlp" and not self.modular:
            raise BadInput("arch", "mlp", f"transformer or attn_only with task {self.task}")
        if self.n_ctx is not None and self.modular:
            raise BadInput("n_ctx", self.n_ctx, "with task addition<N>, induction or skip_trigram; the others have three positions")
        if self.arch == "mlp" and self.dropout:
            raise BadInput("dropout", self.dropout, "0 with arch mlp")
        if self.d_model % self.n_heads:
            raise BadInput("n_heads", self.n_heads, f"a divisor of d_model = {self.d_model}")
        for name in ("b1", "b2", "eps", "dropout"):
            value = getattr(self, name)
            if not isinstance(value, float) or not 0 <= value < 1:
                raise BadInput(name, value, "a number in [0, 1)")
        if not isinstance(self.residual_factor, float) or not 0 < self.residual_factor < float("inf"):
            raise BadInput("residual_factor", self.residual_factor, "a number > 0")

    @property
    def modular(self) -> bool:
        """Whether the examples are the p^2 pairs, or drawn by the task."""
        return self.task in MODULAR

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        if self.d_mlp is not None and self.arch != "attn_only":
            return self.d_mlp
        return {"transformer": 4 * self.d_model, "attn_only": 0, "mlp": 256}[self.arch]

    @property
    def needs_x64(self) -> bool:
        return "float64" in (self.dtype, self.loss)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict) -> "Config":
        """The config among the fields of a record; what it lacks, or has as None, is at its default."""
        return cls(**{name: record[name] for name in CONFIG_FIELDS if record.get(name) is not None})


CONFIG_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
MAY_BE_NONE = {name for name, field in CONFIG_FIELDS.items() if field.default is None}
# Fields that came later: at their defaults they stand in no directory's name and need not stand in its files.
LATER = tuple(CONFIG_FIELDS)[tuple(CONFIG_FIELDS).index("residual_factor") :]


def fingerprint(fields: dict) -> str:
    """Six hexadecimal digits that name a dictionary of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:6]
