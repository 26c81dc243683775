"""The base of tasks that draw their examples: a sampler makes a fresh batch for every step, or N examples once."""

import functools
from abc import abstractmethod

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxgrok.config import MAX_EXAMPLES, BadInput
from jaxgrok.tasks.base import Examples, Task

EXAMPLES_STREAM = 2  # the fold_in constant of examples that are drawn once (training/run.py lists the other streams)
MOST_FRUITLESS = 300  # rounds in a row that draw nothing new
SMALLEST_DRAW = 256  # examples per call of the sampler when a fixed set is drawn


class DrawnTask(Task):
    """A task with a sampler.

    The train and test examples of one split are all different, so a test example is never trained on. On unlimited
    data a fresh train batch may hold a test example by chance.

    batch_size: examples per step on unlimited data. test_examples: how many test examples are drawn.
    universe: how many different sequences there are, or a number that is surely not larger.
    """

    listed = False
    batch_size: int
    test_examples: int
    universe: int

    @abstractmethod
    def sample(self, key: Key[Array, ""], n: int) -> Examples:
        """Draw n examples. Pure JAX."""

    def n_train(self, size: int | None) -> int | None:
        if size is not None and not 0 < size < self.universe:
            accepted = f"at least 1, and fewer than the task's {self.universe:,} sequences; or unlimited"
            raise BadInput("n_train", size, accepted)
        if size is not None and size > MAX_EXAMPLES:
            raise BadInput("n_train", size, f"at most {MAX_EXAMPLES:,}; or unlimited")
        return size

    def n_test(self, size: int | None) -> int:
        return min(self.test_examples, self.universe - (0 if size is None else size))

    def split(self, size: int | None, seed: int, split_seed: int | None = None) -> tuple[Examples | None, Examples]:
        self.n_train(size)  # raises for a size that cannot be
        first_test = 0 if size is None else size
        examples = _distinct(self, seed if split_seed is None else split_seed, first_test + self.n_test(size))
        train, test = (
            jax.tree.map(lambda x, part=part: x[part], examples)
            for part in (slice(first_test), slice(first_test, None))
        )
        return (None if size is None else train), test


class ReadAtEnd(DrawnTask):
    """A task whose sequences of seq_len tokens are read at the last one."""

    seq_len: int

    @property
    def n_ctx(self) -> int:
        return self.seq_len

    @property
    def read(self) -> tuple[int, int]:
        return self.seq_len - 1, self.seq_len


@functools.lru_cache(maxsize=64)
def _sampler(task: DrawnTask, n: int):
    """A compiled (key, round) -> n examples, shared by all seeds."""
    return jax.jit(lambda key, i: task.sample(jax.random.fold_in(key, i), n))


@functools.lru_cache(maxsize=64)
def _distinct(task: DrawnTask, seed: int, n: int) -> Examples:
    """The first n different examples of a seed's PRNG stream, as numpy."""
    key = jax.random.fold_in(jax.random.key(seed), EXAMPLES_STREAM)
    draw = _sampler(task, max(n, SMALLEST_DRAW))
    found, rounds, fruitless = None, 0, 0
    while found is None or len(found.tokens) < n:
        if fruitless == MOST_FRUITLESS:
            accepted = f"a task with {n:,} different sequences: its universe says {task.universe:,}, and its sample, a "
            accepted += f"function of the key alone, has drawn {len(found.tokens) if found else 0:,}"
            raise BadInput("task", type(task).__name__, accepted)
        before = 0 if found is None else len(found.tokens)
        drawn = jax.tree.map(np.asarray, draw(key, rounds))
        found = drawn if found is None else jax.tree.map(lambda *x: np.concatenate(x), found, drawn)
        _, first = np.unique(found.tokens, axis=0, return_index=True)
        found, rounds = jax.tree.map(lambda x, first=first: x[np.sort(first)], found), rounds + 1
        fruitless = fruitless + 1 if len(found.tokens) == before else 0
    return jax.tree.map(lambda x: x[:n], found)
