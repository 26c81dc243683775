"""Skip trigrams: find the one entry >= 10 (spec: EXPERIMENTS.md A3).

Worked example, 5 positions between START (20) and END (21): [20, 3, 9, 14, 0, 3, 21]. The logits at END are read; the target
is 14 as class 4 of ten, by the skip trigram "14 .. END -> 14". Each of the ten entries is a part.
"""

from dataclasses import dataclass
from math import log

import jax
import jax.numpy as jnp

from jaxgrok.tasks.base import Examples
from jaxgrok.tasks.drawn import DrawnTask

DIGITS = 10  # small entries 0..9, and as many large ones
START, END = 2 * DIGITS, 2 * DIGITS + 1


@dataclass(frozen=True)
class SkipTrigramTask(DrawnTask):
    """START, seq_len - 2 entries of which one is in 10..19 and the others in 0..9, all uniform, and END."""

    seq_len: int = 13
    test_examples: int = 1024

    batch_size = 256
    d_vocab, d_vocab_out = 2 * DIGITS + 2, DIGITS
    parts = tuple(f"entry {DIGITS + i}" for i in range(DIGITS))
    chance = (log(DIGITS),) * DIGITS
    counted, n_counted = DIGITS, 1
    grokked_loss = None

    @property
    def n_ctx(self) -> int:
        return self.seq_len

    @property
    def read(self) -> tuple[int, int]:
        return self.seq_len - 1, self.seq_len

    @property
    def universe(self) -> int:
        return (self.seq_len - 2) * DIGITS ** (self.seq_len - 2)

    def sample(self, key, n: int) -> Examples:
        keys, entries = jax.random.split(key, 3), self.seq_len - 2
        small = jax.random.randint(keys[0], (n, entries), 0, DIGITS, jnp.int32)
        where = jax.random.randint(keys[1], (n, 1), 0, entries, jnp.int32)
        target = jax.random.randint(keys[2], (n, 1), 0, DIGITS, jnp.int32)
        middle = jnp.where(jnp.arange(entries) == where, DIGITS + target, small)
        start, end = (jnp.full((n, 1), token, jnp.int32) for token in (START, END))
        return Examples(jnp.concatenate([start, middle, end], axis=1), target, target)
