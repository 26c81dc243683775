"""Operations on the elements of a group: the tokens x, y and "=", the answer read at "="; or x and y alone.

Worked example, s3: the six permutations of (0, 1, 2) in lexicographic order are the tokens 0 to 5, and 6 is "=". xy is
x after y: i goes to x[y[i]]. Token 1 is (0, 2, 1) and token 2 is (1, 0, 2), so x = 1, y = 2 sends 0 to 2, 1 to 0, 2 to
1: it is (2, 0, 1), token 4.
"""

import functools
from itertools import permutations

import numpy as np
from jaxtyping import Int

from jaxgrok.task_names import GroupName
from jaxgrok.tasks.base import Examples
from jaxgrok.tasks.listed import PairsTask

Table = Int[np.ndarray, "G G"]


class GroupTask(PairsTask):
    """All pairs of one operation on the elements of a group: xy, its conjugate xyx^-1, or xyx.

    table: the products of the group, whatever the operation is.
    """

    def __init__(self, name: GroupName, sequence: str = "xy="):
        self.table = table_of(name.family, name.n)
        super().__init__(len(self.table), sequence)
        self.operation = name.operation

    @functools.cached_property
    def answers(self) -> Table:
        """The answer of each pair."""
        G, product = len(self.table), self.table
        x = np.arange(G)[:, None]
        if self.operation == "xy":
            return product
        return product[product, x if self.operation == "xyx" else inverses(product)[:, None]]

    def all_examples(self, seed: int) -> Examples:
        G = len(self.table)
        x, y = (axis.ravel() for axis in np.indices((G, G), np.int32))
        return Examples(self.tokens(x, y), self.answers.ravel()[:, None])


def identity_of(table: Table) -> int:
    """The element whose square is itself."""
    (identity,) = np.flatnonzero(table.diagonal() == np.arange(len(table)))
    return int(identity)


def inverses(table: Table) -> Int[np.ndarray, "G"]:
    """The inverse of each element."""
    return (table == identity_of(table)).argmax(axis=1)


@functools.lru_cache(maxsize=8)
def table_of(family: str, n: int) -> Table:
    """The products of a group, int32: of s, all permutations of n points, or a, the even ones, in lexicographic order;
    or of d, the symmetries of an n-gon: rotations by 0, 1, ... n - 1 places, then reflections, each followed by a
    rotation. Nobody may write into it."""
    if family == "d":
        flip, turn = np.divmod(np.arange(2 * n), n)
        sign = np.where(flip[:, None] == 1, -1, 1)
        table = (turn[:, None] + sign * turn) % n + n * (flip[:, None] ^ flip)
    else:
        elements = np.array([p for p in permutations(range(n)) if family == "s" or _is_even(p)])
        places = n ** np.arange(n)[::-1]
        number = elements @ places
        order = np.argsort(number)
        composed = elements[:, elements] @ places  # x[y[i]], [G, G]
        table = order[np.searchsorted(number, composed, sorter=order)]
    table = table.astype(np.int32)
    table.setflags(write=False)
    return table


def _is_even(permutation: tuple[int, ...]) -> bool:
    """Whether a permutation has an even number of pairs in the wrong order."""
    wrong = sum(a > b for i, a in enumerate(permutation) for b in permutation[i:])
    return wrong % 2 == 0
