"""All pairs (a, b), some columns b at a time, whose activations stay in a CPU's cache.

Shapes: P residue, B columns in a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

PAIRS_AT_ONCE = 1024  # as in training; half or twice as many take as long


class Parts(NamedTuple):
    """What is known of a block of columns, and then of all of them: three pytrees of arrays.

    Attributes:
        pairs: of each pair, [P, B, ...].
        columns: of each column, [B, ...].
        sums: over the pairs of the columns that are new in this block. Each column is new once.
    """

    pairs: Any = ()
    columns: Any = ()
    sums: Any = ()


def in_columns(
    f: Callable[[Int[Array, "B"], Bool[Array, "B"]], Parts], P: int, pairs_at_once: int = PAIRS_AT_ONCE
) -> Parts:
    """The parts that f(columns, is_new) returns of blocks of columns, joined and added up over all P columns.

    The last block overlaps the one before it, so that all have the same size: columns that were there before are not
    new. On an accelerator all columns pass at once.
    """
    n_blocks = -(-P * P // max(pairs_at_once, 1)) if jax.default_backend() == "cpu" else 1
    size = -(-P // n_blocks)
    if size == P:
        return f(jnp.arange(P, dtype=jnp.int32), jnp.ones(P, bool))

    def of_block(start: Int[Array, ""], first_new: Int[Array, ""]) -> Parts:
        columns = start + jnp.arange(size, dtype=start.dtype)
        return f(columns, columns >= first_new)

    def body(i: Int[Array, ""], found: Parts) -> Parts:
        start = jnp.minimum(i * size, P - size)
        block = of_block(start, i * size)

        def put(axis: int) -> Callable[[Array, Array], Array]:
            return lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, axis)

        return Parts(
            jax.tree.map(put(1), found.pairs, block.pairs),
            jax.tree.map(put(0), found.columns, block.columns),
            jax.tree.map(jnp.add, found.sums, block.sums),
        )

    shapes = jax.eval_shape(of_block, jnp.int32(0), jnp.int32(0))
    nothing = Parts(
        jax.tree.map(lambda x: jnp.zeros((P, P, *x.shape[2:]), x.dtype), shapes.pairs),
        jax.tree.map(lambda x: jnp.zeros((P, *x.shape[1:]), x.dtype), shapes.columns),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.sums),
    )
    return jax.lax.fori_loop(0, -(-P // size), body, nothing)


def columns_of(x: Array, columns: Int[Array, "B"]) -> Array:
    """These columns of x [P, P, ...]. They follow one another."""
    return jax.lax.dynamic_slice_in_dim(x, columns[0], len(columns), axis=1)
