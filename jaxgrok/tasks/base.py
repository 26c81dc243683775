"""What every task states about itself, and the examples it hands out."""

from typing import NamedTuple, Protocol

import numpy as np


class Examples(NamedTuple):
    """Tokens [N, S] and targets [N, Q], both int32: Q is the number of read positions."""

    tokens: np.ndarray
    targets: np.ndarray


class Task(Protocol):
    """A task with finitely many examples.

    d_vocab: input tokens; d_vocab_out: classes; n_ctx: positions S; read: (start, stop) of the positions whose logits
    are compared with the targets, the same for every example.
    """

    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    read: tuple[int, int]

    def n_train(self, frac: float) -> int:
        """Train examples at this fraction. Raises BadInput where no train or no test example would be left."""

    def split(self, frac: float, seed: int, split_seed: int | None) -> tuple[Examples, Examples]:
        """Train and test examples of the run with this seed; `split_seed` None means the run's own."""
