"""What every task states about itself, and the examples it hands out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Examples(NamedTuple):
    """Sequences and what is to be predicted at their read positions.

    tokens: the sequences. targets: the right class at each read position. part: the number of the part that each target
    belongs to; None if the task has no parts.
    """

    tokens: Int[Array | np.ndarray, "N S"]
    targets: Int[Array | np.ndarray, "N Q"]
    part: Int[Array | np.ndarray, "N Q"] | None = None


@dataclass(frozen=True)
class Criterion:
    """What test examples must show before a network counts as having generalised (spec: MEASURES.md, Phase changes).

    accuracy: the least test accuracy. loss: the test loss must lie below it. None means that nothing is asked of it.
    """

    accuracy: float | None = None
    loss: float | None = None

    def holds(self, accuracy: Float[np.ndarray, "T"], loss: Float[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
        """Whether the criterion holds at each evaluation."""
        holds = np.ones(np.shape(accuracy), bool)
        if self.accuracy is not None:
            holds &= np.asarray(accuracy) >= self.accuracy
        if self.loss is not None:
            holds &= np.asarray(loss) < self.loss
        return holds


GENERALISED = 0.99  # the test accuracy from which a task counts as generalised, where its criterion is accuracy


class Task(ABC):
    """A task: how many examples there are to train on, and which.

    d_vocab: the number of input tokens. d_vocab_out: the number of classes. n_ctx: the positions S of a sequence.
    read: (start, stop) of the positions whose logits are compared with the targets, the same in every example.
    read_token: the token at the read position, if it is one position with the same token in every example; else None.
    parts: names of the kinds of targets (digits, trigrams, ...) whose losses are reported apart; () if there are none.
    chance: the loss of the best guess that does not look at the example, for each part.
    counted: how many of the parts, from the first, the loss counts: by default all. n_counted: how many targets of one
    example it counts: by default all.
    criterion: when the task counts as generalised: by default at a test accuracy of 99 %.
    listed: whether all examples are listed, so that the size of a train set is a fraction of them (`ListedTask`), or
    they are drawn, so that it is a number (`DrawnTask`). modular: whether the task is about numbers modulo the
    config's p.
    """

    listed: bool
    modular = False

    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    read: tuple[int, int]
    read_token: int | None = None
    parts: tuple[str, ...] = ()
    chance: tuple[float, ...] = ()
    criterion = Criterion(accuracy=GENERALISED)

    @property
    def counted(self) -> int:
        return len(self.parts)

    @property
    def n_counted(self) -> int:
        return self.read[1] - self.read[0]

    def part_criterion(self, part: str) -> Criterion:
        """When a part counts as learned: its test loss is below half of its own chance and, where the task's
        criterion is accuracy, that accuracy holds too. Alone, accuracy would count a class that the network always
        guesses."""
        return Criterion(self.criterion.accuracy, self.chance[self.parts.index(part)] / 2)

    @abstractmethod
    def n_train(self, size) -> int | None:
        """The number of train examples at this size: a fraction of all examples where they are listed, else a number of
        examples, where None means unlimited data. Raises BadInput if no train or no test example would be left."""

    @abstractmethod
    def n_test(self, size) -> int:
        """The number of test examples at this size."""

    @abstractmethod
    def split(self, size, seed: int, split_seed: int | None = None) -> tuple[Examples | None, Examples]:
        """The train and test examples of the run with this seed. split_seed None means the run's own seed. Train is
        None on unlimited data."""
