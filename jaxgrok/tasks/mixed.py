"""Several operations modulo p in one network: the tokens x, the operation, y and "=", with the answer read at "=".

Worked example, p = 5, add and subtract: tokens 0 to 4 are the numbers, 5 is "=", 6 is add, 7 is subtract. 3 - 4 is the
tokens [3, 7, 4, 5], and its target is (3 - 4) mod 5 = 4. Each operation is a part, so that its phase change is timed
apart. The train set is a fraction of the pairs of all operations together.
"""

import numpy as np

from jaxgrok.tasks.base import Examples
from jaxgrok.tasks.listed import ListedTask
from jaxgrok.tasks.modular import ModularTask


class MixedTask(ListedTask):
    """The pairs of several operations, one after the other. The output has p + 1 classes, "=" among them."""

    modular = True
    n_ctx, read = 4, (3, 4)

    def __init__(self, operations: tuple[str, ...], p: int):
        self.parts, self.p = operations, p
        self.operations = tuple(ModularTask(name, p) for name in operations)
        self.d_vocab, self.d_vocab_out, self.read_token = p + 1 + len(operations), p + 1, p

    def all_examples(self, seed: int) -> Examples:
        return Examples(*(np.concatenate(x) for x in zip(*(self._of(i, seed) for i in range(len(self.parts))))))

    def _of(self, number: int, seed: int) -> Examples:
        """The pairs of one operation."""
        tokens, targets, _ = self.operations[number].all_examples(seed)
        x, y, equals = np.asarray(tokens).T
        name = np.full_like(x, self.p + 1 + number)
        return Examples(np.stack([x, name, y, equals], axis=1), targets, np.full_like(targets, number))
