"""Addition of n-digit numbers, digit by digit (spec: EXPERIMENTS.md A1).

Worked example, 3 digits: 472 + 951 = 1423 is the tokens [4, 7, 2, +, 9, 5, 1, =, 1, 4, 2, 3], most significant digit
first, where "+" is 10 and "=" is 11. The logits are read at "=" and at every digit of the answer but the last. They
predict the n + 1 digits of the answer, and each digit is a part. Digit 0, the leading one, is 0 or 1.
"""

from dataclasses import dataclass
from math import log

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxgrok.tasks.base import Criterion, Examples
from jaxgrok.tasks.drawn import DrawnTask

PLUS, EQUALS = 10, 11


@dataclass(frozen=True)
class AdditionTask(DrawnTask):
    """x + y = z, where every digit of x and y is uniform, so that leading zeros occur."""

    digits: int
    test_examples: int = 1024

    batch_size = 256
    d_vocab, d_vocab_out = 12, 10
    criterion = Criterion(loss=log(10) / 2)

    @property
    def n_ctx(self) -> int:
        return 3 * self.digits + 3

    @property
    def read(self) -> tuple[int, int]:
        return 2 * self.digits + 1, 3 * self.digits + 2

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"digit {i}" for i in range(self.digits + 1))

    @property
    def chance(self) -> tuple[float, ...]:
        return (log(2), *[log(10)] * self.digits)

    @property
    def counted(self) -> int:
        return self.digits + 1

    @property
    def n_counted(self) -> int:
        return self.counted

    @property
    def universe(self) -> int:
        return 10 ** (2 * self.digits)

    def sample(self, key: Key[Array, ""], n: int) -> Examples:
        x, y = jax.random.randint(key, (2, n, self.digits), 0, 10, jnp.int32)

        def add(carry, digits):
            total = sum(digits) + carry
            return total // 10, total % 10

        carry, z = jax.lax.scan(add, jnp.zeros(n, jnp.int32), (x.T, y.T), reverse=True)
        z = jnp.concatenate([carry[None], z]).T
        plus, equals = (jnp.full((n, 1), token, jnp.int32) for token in (PLUS, EQUALS))
        part = jnp.broadcast_to(jnp.arange(self.digits + 1, dtype=jnp.int32), z.shape)
        return Examples(jnp.concatenate([x, plus, y, equals, z], axis=1), z, part)
