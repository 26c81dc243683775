"""What fixes a compiled program: every field that changes a shape or an operation.

The traced numbers of a run (seed, weight decay, learning rate) are not here: they are in `training.Hyper`, so that
changing one compiles nothing.
"""

import dataclasses
import hashlib
import json
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


CHOICES = {
    "task": ("add", "subtract", "multiply", "x2xyy2", "random"),
    "arch": ("transformer", "mlp"),
    "act": ("relu", "gelu"),
    "loss": ("exact", "float64", "float32"),
    "dtype": ("float32", "float64"),
    "matmul_precision": ("default", "high", "highest"),
}
MOST_P = 2000  # p^2 pairs are listed and shuffled: a mistyped modulus is refused before it fills the memory
_SMALLEST = {"p": 2, "n_layers": 1, "n_heads": 1, "d_model": 1, "d_mlp": 1, "warmup_steps": 0}


@dataclass(frozen=True)
class Config:
    """One run's shapes and operations. The defaults are the post's mainline (spec: PUBLISHED.md).

    task: the operation on (x, y) modulo p: add, subtract, multiply, x2xyy2 (x^2 + xy + y^2), random (a drawn table).
    arch: `transformer` (no LayerNorm, learned positions, untied) or `mlp` (p -> d_mlp -> p on the sum of two one-hots).
    d_mlp: hidden width; None means 4 d_model for the transformer and 256 for the MLP.
    act: relu, or gelu in its exact erf form.
    loss: `exact` in the parameters' own dtype, `float64` (cast, log_softmax: the authors'), `float32` (naive log_softmax).
    dtype: of parameters and activations.
    matmul_precision: jax's name; `highest` keeps float32 products float32 on GPU and TPU.
    b1, b2, eps, warmup_steps: AdamW; the learning rate is multiplied by min(step / warmup_steps, 1), step from 0.

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

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadInput(name, getattr(self, name), " ".join(choices))
        for name, least in _SMALLEST.items():
            value = getattr(self, name)
            if name == "d_mlp" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(name, value, f"a whole number, at least {least}")
        if self.p > MOST_P:
            raise BadInput("p", self.p, f"at most {MOST_P}")
        if self.d_model % self.n_heads:
            raise BadInput("n_heads", self.n_heads, f"a divisor of d_model = {self.d_model}")
        for name in ("b1", "b2", "eps"):
            value = getattr(self, name)
            if not isinstance(value, float) or not 0 <= value < 1:
                raise BadInput(name, value, "a number in [0, 1)")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        if self.d_mlp is not None:
            return self.d_mlp
        return 4 * self.d_model if self.arch == "transformer" else 256

    @property
    def needs_x64(self) -> bool:
        return "float64" in (self.dtype, self.loss)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Config":
        return cls(**fields)


def fingerprint(fields: dict) -> str:
    """Six hexadecimal digits that name a dictionary of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:6]
