"""Repeated subsequences, a task that needs induction heads (spec: EXPERIMENTS.md A2).

A sequence is START (token 0) followed by equal blocks of random tokens. Each block holds a copy of the same random
subsequence, at an offset of its own. Worked example, 2 copies of [7, 3, 5] in blocks of 5:

    START  4 7 3 5 9  7 3 5 2 6      offsets 1 and 0

The loss counts what can be predicted: the tokens of each later copy except its first, here the second 3 and 5. Each of
them is a part, "copy 1 token 1" and "copy 1 token 2". Every other token from the second block on is in the part
"outside", which the loss does not count. The published task has 85 positions, 3 copies of 16 tokens, and 127 tokens
beside START.
"""

from dataclasses import dataclass
from math import log

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxgrok.config import BadInput
from jaxgrok.tasks.base import Criterion, Examples
from jaxgrok.tasks.drawn import DrawnTask

START = 0


@dataclass(frozen=True)
class InductionTask(DrawnTask):
    """Repeated subsequences.

    seq_len: positions, START included. n_repeats: copies. repeat_len: tokens in each copy. n_tokens: token ids, START
    included. Raises BadInput if a copy does not fit into its block.
    """

    seq_len: int = 85
    repeat_len: int = 16
    n_repeats: int = 3
    n_tokens: int = 128
    test_examples: int = 256

    batch_size = 128

    def __post_init__(self):
        if self.block < self.repeat_len:
            accepted = f"at most {self.block}, a block of a sequence of {self.seq_len} in {self.n_repeats} repeats"
            raise BadInput("repeat_len", self.repeat_len, accepted)

    @property
    def block(self) -> int:
        """The positions in each block. Positions left over at the end of the sequence are random filler."""
        return (self.seq_len - 1) // self.n_repeats

    @property
    def d_vocab(self) -> int:
        return self.n_tokens

    @property
    def d_vocab_out(self) -> int:
        return self.d_vocab

    @property
    def n_ctx(self) -> int:
        return self.seq_len

    @property
    def read(self) -> tuple[int, int]:
        return self.block + 1, self.seq_len - 1

    @property
    def n_counted(self) -> int:
        return (self.n_repeats - 1) * (self.repeat_len - 1)

    @property
    def counted(self) -> int:
        return self.n_counted

    @property
    def parts(self) -> tuple[str, ...]:
        inside = (
            f"copy {copy} token {token}" for copy in range(1, self.n_repeats) for token in range(1, self.repeat_len)
        )
        return (*inside, "outside")

    @property
    def chance(self) -> tuple[float, ...]:
        return (log(self.n_tokens - 1),) * len(self.parts)

    @property
    def criterion(self) -> Criterion:
        return Criterion(loss=log(self.n_tokens - 1) / 2)

    @property
    def universe(self) -> int:
        """A lower bound: the sequences whose copies stand at one fixed choice of offsets."""
        return (self.n_tokens - 1) ** (self.seq_len - 1 - (self.n_repeats - 1) * self.repeat_len)

    def draw(self, key: Key[Array, ""], n: int) -> tuple[Int[Array, "N S"], Int[Array, "N C"]]:
        """(tokens, copies): n sequences, and the position of the first token of each of their C copies."""
        keys = jax.random.split(key, 3)
        length, block, repeats = self.seq_len - 1, self.block, self.n_repeats
        filler = jax.random.randint(keys[0], (n, length), 1, self.n_tokens, jnp.int32)
        repeated = jax.random.randint(keys[1], (n, self.repeat_len), 1, self.n_tokens, jnp.int32)
        offsets = jax.random.randint(keys[2], (n, repeats), 0, block - self.repeat_len + 1, jnp.int32)
        copies = 1 + jnp.arange(repeats, dtype=jnp.int32)[None] * block + offsets
        _, token = self._places(copies)
        tokens = jnp.concatenate([jnp.full((n, 1), START, jnp.int32), filler], axis=1)
        inside = jnp.take_along_axis(repeated, jnp.maximum(token, 0), axis=1)
        return jnp.where(token >= 0, inside, tokens), copies

    def _places(self, copies):
        """(copy [1, S], token [N, S]): the copy whose block each position is in, and the number of the copy's token
        that stands there, -1 outside the copy."""
        position = jnp.arange(self.seq_len, dtype=jnp.int32)
        copy = jnp.clip((position - 1) // self.block, 0, self.n_repeats - 1)
        token = position[None] - copies[:, copy]
        return copy[None], jnp.where((token >= 0) & (token < self.repeat_len), token, -1)

    def sample(self, key: Key[Array, ""], n: int) -> Examples:
        tokens, copies = self.draw(key, n)
        copy, token = self._places(copies)
        known = (copy > 0) & (token > 0)
        part = jnp.where(known, (copy - 1) * (self.repeat_len - 1) + token - 1, self.counted)
        predicted = slice(self.read[0] + 1, self.read[1] + 1)
        return Examples(tokens, tokens[:, predicted], part[:, predicted].astype(jnp.int32))
