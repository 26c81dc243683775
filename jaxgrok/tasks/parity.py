"""Parity of a few bits among others (Barak et al. 2022, "Hidden progress in deep learning"; Merrill et al. 2023).

Worked example, parity2 with 5 bits: the bits 1 0 1 1 0 and then "=" are the tokens [1, 0, 1, 1, 0, 2]. The answer is
read at "=": the parity of the first two bits, 1 + 0, is 1. The network is not told which bits count.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxgrok.config import BadInput
from jaxgrok.tasks.base import Examples
from jaxgrok.tasks.drawn import ReadAtEnd

EQUALS = 2


@dataclass(frozen=True)
class ParityTask(ReadAtEnd):
    """seq_len - 1 uniform bits and "=". The target is the parity of the first `bits` of them.

    Raises BadInput for more bits than there are.
    """

    bits: int
    seq_len: int = 41
    test_examples: int = 1024

    batch_size = 256
    d_vocab, d_vocab_out = 3, 2
    read_token = EQUALS

    def __post_init__(self):
        if self.bits > self.seq_len - 1:
            raise BadInput("seq_len", self.seq_len, f"at least {self.bits + 1}: {self.bits} bits and =")

    @property
    def universe(self) -> int:
        return 2 ** (self.seq_len - 1)

    def sample(self, key: Key[Array, ""], n: int) -> Examples:
        drawn = jax.random.randint(key, (n, self.seq_len - 1), 0, 2, jnp.int32)
        target = drawn[:, : self.bits].sum(axis=1, keepdims=True, dtype=jnp.int32) % jnp.int32(2)
        return Examples(jnp.concatenate([drawn, jnp.full((n, 1), EQUALS, jnp.int32)], axis=1), target)
