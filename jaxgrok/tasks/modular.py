"""Binary operations modulo p: the tokens x, y and "=", with the answer read at "="; or x and y alone, read at y.

Worked example, p = 5, add: the pair (3, 4) is the tokens [3, 4, 5], where 5 is "=". Its target is (3 + 4) mod 5 = 2.
The 25 pairs are numbered in lexicographic order, so (3, 4) is pair 19. Without "=" it is [3, 4]. An operation that
divides leaves pairs out: x/y has the 20 pairs with y != 0, and the target of (3, 4) is 3 * 4 = 2, for 4 is its own
inverse.
"""

import functools

import numpy as np
from jaxtyping import Int

from jaxgrok.config import is_prime
from jaxgrok.expressions import NAMED, parse
from jaxgrok.tasks.base import Examples
from jaxgrok.tasks.listed import PairsTask

EXPRESSIONS = {name: text for text, name in NAMED.items()}
MULTIPLICATIVE = ("multiply", "x/y")  # sums and differences of discrete logarithms


class ModularTask(PairsTask):
    """All pairs of one operation that has a value there: an expression in x and y, or its name in EXPRESSIONS; or
    `random`, a table of labels drawn from the seed.

    values: the answers of the p^2 pairs in lexicographic order. pairs_defined: the numbers of those that have one.

    Measures go through the numbers of a group, in the order in which the operation is a sum or a difference. For most
    operations these are the numbers from 0 to p - 1. For products and quotients modulo a prime they are g^0, g^1, ...,
    g^(p-2), all but 0, where g is the least primitive root. group [P]: these numbers. group_pairs [P*P]: the numbers of
    the pairs over them.
    """

    modular = True

    def __init__(self, operation: str, p: int, sequence: str = "xy="):
        super().__init__(p, sequence)
        self.operation, self.p = operation, p
        self.values, self.pairs_defined = _table(operation, p)
        self.is_multiplicative = operation in MULTIPLICATIVE and is_prime(p) and p > 3
        self.group = _powers(p) if self.is_multiplicative else np.arange(p)
        self.group_pairs = (self.group[:, None] * p + self.group).ravel()

    @property
    def is_total(self) -> bool:
        """Whether every pair over the group has an answer."""
        return len(self.pairs_defined) == self.p**2 or bool(np.isin(self.group_pairs, self.pairs_defined).all())

    def group_labels(self, seed: int) -> Int[np.ndarray, "P*P"]:
        """The answers of the pairs over the group, as places in `group`."""
        return self.place[self.labels(seed)[self.group_pairs]].astype(np.int32)

    @property
    def place(self) -> Int[np.ndarray, "p"]:
        """The place of each number from 0 to p - 1 in `group`; P where it has none."""
        place = np.full(self.p, len(self.group))
        place[self.group] = np.arange(len(self.group))
        return place

    def labels(self, seed: int) -> Int[np.ndarray, "P*P"]:
        """The answers of the pairs in lexicographic order, 0 where there is none. Only those of `random` depend on the
        seed."""
        if self.operation == "random":
            return np.random.default_rng(seed).integers(self.p, size=self.p**2).astype(np.int32)
        return self.values

    @property
    def n_examples(self) -> int:
        return len(self.pairs_defined)

    @property
    def among(self) -> str:
        return f"{self.n_examples} of p = {self.p}"

    def all_examples(self, seed: int) -> Examples:
        return self.pairs(self.pairs_defined, seed)

    def pairs(self, indices: Int[np.ndarray, "N"], seed: int) -> Examples:
        """The pairs with these lexicographic numbers."""
        x, y = np.divmod(np.asarray(indices, np.int32), np.int32(self.p))
        return Examples(self.tokens(x, y), self.labels(seed)[indices][:, None])

    def split_indices(self, size: float, split_seed: int) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "T"]]:
        """The train and test pairs by their lexicographic numbers."""
        train, test = super().split_indices(size, split_seed)
        return self.pairs_defined[train], self.pairs_defined[test]

    def split(self, size: float, seed: int, split_seed: int | None = None) -> tuple[Examples, Examples]:
        train, test = self.split_indices(size, seed if split_seed is None else split_seed)
        return self.pairs(train, seed), self.pairs(test, seed)


@functools.lru_cache(maxsize=16)
def _table(operation: str, p: int) -> tuple[Int[np.ndarray, "P*P"], Int[np.ndarray, "N"]]:
    """(the answers of the pairs, the numbers of those that have one). Nobody may write into them."""
    if operation == "random":
        return np.zeros(0, np.int32), np.arange(p * p)
    values, defined = parse(EXPRESSIONS.get(operation, operation)).table(p)
    return values.ravel().astype(np.int32), np.flatnonzero(defined)


def _powers(p: int) -> Int[np.ndarray, "p-1"]:
    """The powers 0 to p - 2 of the least primitive root modulo a prime p."""
    for root in range(2, p):
        powers = [1]
        while (power := powers[-1] * root % p) != 1:
            powers.append(power)
        if len(powers) == p - 1:
            return np.array(powers)
    raise AssertionError(f"{p} is no prime above 3")
