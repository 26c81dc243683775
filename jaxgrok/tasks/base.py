"""What every task states about itself, and the examples it hands out."""

from typing import NamedTuple, Protocol

import numpy as np


class Examples(NamedTuple):
    """Tokens [N, S] and targets [N, Q], both int32: Q is the number of read positions. part [N, Q] int32: the number of each
    target's part; None where the task has no parts."""

    tokens: np.ndarray
    targets: np.ndarray
    part: np.ndarray | None = None


class Task(Protocol):
    """A task: how many examples there are to train on, and which.

    d_vocab: input tokens; d_vocab_out: classes; n_ctx: positions S; read: (start, stop) of the positions whose logits
    are compared with the targets, the same for every example.
    parts: names of the kinds of targets (digits, trigrams, ...) whose losses are told apart; () for none.
    chance: the loss of the best guess without looking at the example, for each part. counted: the leading parts that the loss
    counts; n_counted: targets of one example that it counts.
    grokked_loss: the test loss below which the task is learned; None: its criterion is accuracy (spec: MEASURES.md).
    """

    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    read: tuple[int, int]
    parts: tuple[str, ...]
    chance: tuple[float, ...]
    counted: int
    n_counted: int
    grokked_loss: float | None

    def n_train(self, size) -> int | None:
        """Train examples at this size: of a modular task the fraction of its pairs, of another their number, or None for
        unlimited data. Raises BadInput where no train or no test example would be left."""

    def n_test(self, size) -> int:
        """Test examples at this size."""

    def split(self, size, seed: int, split_seed: int | None) -> tuple[Examples | None, Examples]:
        """Train and test examples of the run with this seed; `split_seed` None means the run's own. Train is None for unlimited data."""
