"""The base of tasks whose examples are all listed, of which a fraction is for training and the rest for testing."""

import functools
import random
from abc import abstractmethod

import jax
import numpy as np
from jaxtyping import Int

from jaxgrok.config import BadInput
from jaxgrok.tasks.base import Examples, Task


class ListedTask(Task):
    """A task that lists its examples."""

    listed = True

    @abstractmethod
    def all_examples(self, seed: int) -> Examples:
        """All examples, as numpy: the same for every seed but for labels that are drawn from it."""

    @functools.cached_property
    def chance(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The entropy of the targets of each part, in nats."""
        _, targets, part = self.all_examples(0)
        return tuple(_entropy(np.asarray(targets)[np.asarray(part) == i]) for i in range(len(self.parts)))

    @functools.cached_property
    def n_examples(self) -> int:
        """How many there are."""
        return len(self.all_examples(0).tokens)

    @property
    def among(self) -> str:
        """How many there are, and of what, in words."""
        return str(self.n_examples)

    def n_train(self, size: float) -> int:
        n = int(size * self.n_examples)
        if not 0 < n < self.n_examples:
            accepted = f"a fraction that leaves train and test examples among the {self.among}"
            raise BadInput("frac", size, accepted)
        return n

    def n_test(self, size: float) -> int:
        return self.n_examples - self.n_train(size)

    def split_indices(self, size: float, split_seed: int) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "T"]]:
        """The train and test examples by number. As the authors do: Python's `random.seed(s)`, shuffle the examples,
        and the first int(frac n) are for training."""
        order = list(range(self.n_examples))
        random.Random(split_seed).shuffle(order)
        n = self.n_train(size)
        return np.array(order[:n]), np.array(order[n:])

    def split(self, size: float, seed: int, split_seed: int | None = None) -> tuple[Examples, Examples]:
        examples = self.all_examples(seed)
        train, test = self.split_indices(size, seed if split_seed is None else split_seed)
        return tuple(jax.tree.map(lambda x, rows=rows: x[rows], examples) for rows in (train, test))


class PairsTask(ListedTask):
    """All pairs of `size` elements: the tokens x, y and "=", which is number `size`, with the answer read at "="; or x
    and y alone, read at y. With "=" the output has a class for it too, as in the authors' training (spec:
    PUBLISHED.md).

    sequence: `xy=` or `xy`.
    """

    def __init__(self, size: int, sequence: str):
        self.has_equals, self.n_ctx = sequence == "xy=", len(sequence)
        self.read = (self.n_ctx - 1, self.n_ctx)
        self.d_vocab = self.d_vocab_out = size + self.has_equals
        self.read_token = size if self.has_equals else None
        self._equals = size

    def tokens(self, x: Int[np.ndarray, "N"], y: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N S"]:
        """The sequences of these pairs. x, y: int32."""
        return np.stack([x, y, np.full_like(x, self._equals)][: self.n_ctx], axis=1)


def _entropy(targets: np.ndarray) -> float:
    """The entropy of targets, in nats: the loss of the best guess that does not look."""
    share = np.bincount(targets) / len(targets)
    return float(-(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum())
