"""Skip trigrams: find the one entry >= 10 (spec: EXPERIMENTS.md A3).

Worked example, with 5 entries between START (20) and END (21): [20, 3, 9, 14, 0, 3, 21]. The logits are read at END.
The target is 14, which is class 4 of ten: the skip trigram is "14 ... END -> 14". Each of the ten entries is a part.
"""

from dataclasses import dataclass
from math import log

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxgrok.tasks.base import GENERALISED, Criterion, Examples
from jaxgrok.tasks.drawn import ReadAtEnd

DIGITS = 10  # there are as many small entries, 0..9, as large ones, 10..19
START, END = 2 * DIGITS, 2 * DIGITS + 1


@dataclass(frozen=True)
class SkipTrigramTask(ReadAtEnd):
    """START, then seq_len - 2 uniform entries, of which one is in 10..19 and the others are in 0..9, then END."""

    seq_len: int = 13
    test_examples: int = 1024

    batch_size = 256
    d_vocab, d_vocab_out = 2 * DIGITS + 2, DIGITS
    read_token = END
    parts = tuple(f"entry {DIGITS + i}" for i in range(DIGITS))
    chance = (log(DIGITS),) * DIGITS
    criterion = Criterion(accuracy=GENERALISED)

    @property
    def universe(self) -> int:
        return (self.seq_len - 2) * DIGITS ** (self.seq_len - 2)

    def sample(self, key: Key[Array, ""], n: int) -> Examples:
        keys, entries = jax.random.split(key, 3), self.seq_len - 2
        small = jax.random.randint(keys[0], (n, entries), 0, DIGITS, jnp.int32)
        where = jax.random.randint(keys[1], (n, 1), 0, entries, jnp.int32)
        target = jax.random.randint(keys[2], (n, 1), 0, DIGITS, jnp.int32)
        middle = jnp.where(jnp.arange(entries, dtype=jnp.int32)[None] == where, DIGITS + target, small)
        start, end = (jnp.full((n, 1), token, jnp.int32) for token in (START, END))
        return Examples(jnp.concatenate([start, middle, end], axis=1), target, target)
