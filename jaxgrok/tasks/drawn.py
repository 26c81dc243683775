"""What the tasks with drawn examples share: a sampler makes a fresh batch for every step, or N examples once."""

import functools

import jax
import numpy as np

from jaxgrok.config import MOST_EXAMPLES, BadInput
from jaxgrok.tasks.base import Examples

EXAMPLES_STREAM = 2  # fold_in constant of listed examples (training.py has the others)


class DrawnTask:
    """A task with a sampler `sample(key, n) -> Examples`, pure jax, and `universe` different sequences.

    Train and test examples of one split are all different, and test examples are never trained on. With unlimited data a
    fresh train batch may by chance hold a test example.
    """

    def n_train(self, size: int | None) -> int | None:
        if size is not None and not 0 < size < self.universe:
            raise BadInput("n_train", size, f"at least 1, and fewer than the task's {self.universe:,} sequences; or unlimited")
        if size is not None and size > MOST_EXAMPLES:
            raise BadInput("n_train", size, f"at most {MOST_EXAMPLES:,}; or unlimited")
        return size

    def n_test(self, size: int | None) -> int:
        return min(self.test_examples, self.universe - (size or 0))

    def split(self, size: int | None, seed: int, split_seed: int | None = None) -> tuple[Examples | None, Examples]:
        n_train, n_test = self.n_train(size) or 0, self.n_test(size)
        examples = _distinct(self, seed if split_seed is None else split_seed, n_train + n_test)
        train, test = (jax.tree.map(lambda x, part=part: x[part], examples) for part in (slice(n_train), slice(n_train, None)))
        return (train if n_train else None), test


@functools.lru_cache(maxsize=64)
def _sampler(task: DrawnTask, n: int):
    """A compiled (key, round) -> n examples: once for all seeds."""
    return jax.jit(lambda key, i: task.sample(jax.random.fold_in(key, i), n))


@functools.lru_cache(maxsize=64)
def _distinct(task: DrawnTask, seed: int, n: int) -> Examples:
    """The first n different examples of a seed's sequence of draws, as numpy."""
    key = jax.random.fold_in(jax.random.key(seed), EXAMPLES_STREAM)
    draw = _sampler(task, max(n, 256))
    found, rounds = None, 0
    while found is None or len(found.tokens) < n:
        drawn = jax.tree.map(np.asarray, draw(key, rounds))
        found = drawn if found is None else jax.tree.map(lambda *x: np.concatenate(x), found, drawn)
        _, first = np.unique(found.tokens, axis=0, return_index=True)
        found, rounds = jax.tree.map(lambda x, first=first: x[np.sort(first)], found), rounds + 1
    return jax.tree.map(lambda x: x[:n], found)
