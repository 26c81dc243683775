"""Binary operations modulo p: the tokens x, y, "=" and the answer read at "=".

Worked example, p = 5, add: the pair (3, 4) is the tokens [3, 4, 5], 5 being "=", with target (3 + 4) mod 5 = 2.
The 25 pairs are numbered in lexicographic order: (3, 4) is pair 19.
"""

import random

import numpy as np

from jaxgrok.config import BadInput
from jaxgrok.tasks.base import Examples

OPERATIONS = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "x2xyy2": lambda x, y: x * x + x * y + y * y,
}


class ModularTask:
    """All p^2 pairs of one operation (a key of OPERATIONS, or `random`: a table of labels drawn from the seed).

    The output has p + 1 classes, "=" among them, as in the authors' training (spec: PUBLISHED.md).
    """

    read = (2, 3)
    n_ctx = 3
    parts, chance, counted, n_counted, grokked_loss = (), (), 0, 1, None

    def __init__(self, operation: str, p: int):
        self.operation, self.p = operation, p
        self.d_vocab = self.d_vocab_out = p + 1

    def labels(self, seed: int) -> np.ndarray:
        """[p^2] answers of the pairs in lexicographic order. Only `random` depends on the seed."""
        p = self.p
        if self.operation == "random":
            return np.random.default_rng(seed).integers(p, size=p * p).astype(np.int32)
        x, y = np.divmod(np.arange(p * p, dtype=np.int64), p)
        return (OPERATIONS[self.operation](x, y) % p).astype(np.int32)

    def n_train(self, frac: float) -> int:
        n = int(frac * self.p**2)
        if not 0 < n < self.p**2:
            raise BadInput("frac", frac, f"a fraction that leaves train and test pairs among the {self.p**2} of p = {self.p}")
        return n

    def n_test(self, frac: float) -> int:
        return self.p**2 - self.n_train(frac)

    def pairs(self, indices: np.ndarray, seed: int) -> Examples:
        """The pairs with these lexicographic numbers."""
        x, y = np.divmod(np.asarray(indices, np.int32), np.int32(self.p))
        tokens = np.stack([x, y, np.full_like(x, self.p)], axis=1)
        return Examples(tokens, self.labels(seed)[indices][:, None])

    def split_indices(self, frac: float, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The authors' split: Python's `random.seed(s)`, shuffle the pairs, the first int(frac p^2) train."""
        order = list(range(self.p**2))
        random.Random(split_seed).shuffle(order)
        n = self.n_train(frac)
        return np.array(order[:n]), np.array(order[n:])

    def split(self, frac: float, seed: int, split_seed: int | None = None) -> tuple[Examples, Examples]:
        train, test = self.split_indices(frac, seed if split_seed is None else split_seed)
        return self.pairs(train, seed), self.pairs(test, seed)
