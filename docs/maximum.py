"""A task of your own: the larger of two numbers.

Worked example, p = 5: the pair (3, 1) is the tokens [3, 1, 5], where 5 is "=". Its target is 3. Whether x is the larger
one, or y, or both are the same, makes three parts, whose phase changes are timed apart.
"""

import numpy as np

from jaxgrok.tasks import Examples, ListedTask


class Maximum(ListedTask):
    modular = True  # it uses p, which then is an axis of sweeps and a column of tables
    parts = ("x is larger", "y is larger", "equal")

    def __init__(self, config):
        self.p = config.p
        self.d_vocab, self.d_vocab_out = self.p + 1, self.p  # tokens: the numbers and "="; classes: the numbers
        self.n_ctx, self.read, self.read_token = 3, (2, 3), self.p  # three positions; the answer is read at "="

    def all_examples(self, seed):
        x, y = (axis.ravel() for axis in np.indices((self.p, self.p), np.int32))
        tokens = np.stack([x, y, np.full_like(x, self.p)], axis=1)
        part = np.select([x > y, x < y], [0, 1], 2).astype(np.int32)
        return Examples(tokens, np.maximum(x, y)[:, None], part[:, None])
