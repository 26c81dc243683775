"""Binary operations modulo p: the tokens x, y and "=", with the answer read at "="; or x and y alone, read at y.

Worked example, p = 5, add: the pair (3, 4) is the tokens [3, 4, 5], where 5 is "=". Its target is (3 + 4) mod 5 = 2.
The 25 pairs are numbered in lexicographic order, so (3, 4) is pair 19. Without "=" it is [3, 4].
"""

import random

import numpy as np
from jaxtyping import Int

from jaxgrok.config import BadInput
from jaxgrok.tasks.base import GENERALISED, Criterion, Examples, Task

OPERATIONS = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "x2xyy2": lambda x, y: x * x + x * y + y * y,
}


class ModularTask(Task):
    """All p^2 pairs of one operation: a key of OPERATIONS, or `random`, a table of labels drawn from the seed.

    sequence: `xy=` or `xy`. With "=" the output has p + 1 classes, "=" among them, as in the authors' training (spec:
    PUBLISHED.md); without it, p.
    """

    parts, chance, counted, n_counted = (), (), 0, 1
    criterion = Criterion(accuracy=GENERALISED)

    def __init__(self, operation: str, p: int, sequence: str = "xy="):
        self.operation, self.p, self.has_equals = operation, p, sequence == "xy="
        self.n_ctx = len(sequence)
        self.read = (self.n_ctx - 1, self.n_ctx)
        self.d_vocab = self.d_vocab_out = p + self.has_equals
        self.read_token = p if self.has_equals else None

    def labels(self, seed: int) -> Int[np.ndarray, "P*P"]:
        """The answers of the pairs in lexicographic order. Only those of `random` depend on the seed."""
        p = self.p
        if self.operation == "random":
            return np.random.default_rng(seed).integers(p, size=p * p).astype(np.int32)
        x, y = np.divmod(np.arange(p * p, dtype=np.int64), p)
        return (OPERATIONS[self.operation](x, y) % p).astype(np.int32)

    def n_train(self, size: float) -> int:
        n = int(size * self.p**2)
        if not 0 < n < self.p**2:
            accepted = f"a fraction that leaves train and test pairs among the {self.p**2} of p = {self.p}"
            raise BadInput("frac", size, accepted)
        return n

    def n_test(self, size: float) -> int:
        return self.p**2 - self.n_train(size)

    def pairs(self, indices: Int[np.ndarray, "N"], seed: int) -> Examples:
        """The pairs with these lexicographic numbers."""
        x, y = np.divmod(np.asarray(indices, np.int32), np.int32(self.p))
        tokens = np.stack([x, y, np.full_like(x, self.p)][: self.n_ctx], axis=1)
        return Examples(tokens, self.labels(seed)[indices][:, None])

    def split_indices(self, size: float, split_seed: int) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "T"]]:
        """The train and test pairs by number. As the authors do: Python's `random.seed(s)`, shuffle the pairs, and the
        first int(frac p^2) are for training."""
        order = list(range(self.p**2))
        random.Random(split_seed).shuffle(order)
        n = self.n_train(size)
        return np.array(order[:n]), np.array(order[n:])

    def split(self, size: float, seed: int, split_seed: int | None = None) -> tuple[Examples, Examples]:
        train, test = self.split_indices(size, seed if split_seed is None else split_seed)
        return self.pairs(train, seed), self.pairs(test, seed)
