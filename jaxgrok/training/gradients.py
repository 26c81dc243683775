"""What is published to make networks grok sooner and acts on gradients or weights, as optax transformations.

Each is a few lines, with the equation of its paper. They come after the terms of a regulariser in the loss and before
the optimiser, as in the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

TINY = 1e-30  # keeps a division by the size of a zero array finite


class Averaged(NamedTuple):
    """The state of `grokfast`: the gradients' moving average, and the updates done."""

    average: Any
    count: Int[Array, ""]


def grokfast(alpha: float, factor: float) -> optax.GradientTransformation:
    """Grokfast-EMA, which amplifies the slow part of the gradient (Lee et al. 2024, Algorithm 2):

    m <- alpha m + (1 - alpha) g,    g <- g + factor m,    with m = g at the first step.
    """

    def init(params: Any) -> Averaged:
        return Averaged(jax.tree.map(jnp.zeros_like, params), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Averaged]:
        def moved(m, g):
            return jnp.where(state.count == 0, g, alpha * m + (1 - alpha) * g)

        average = jax.tree.map(moved, state.average, updates)
        return jax.tree.map(lambda g, m: g + factor * m, updates, average), Averaged(average, state.count + 1)

    return optax.GradientTransformation(init, update)


def orthograd() -> optax.GradientTransformation:
    """OrthoGrad, which takes from each array's gradient what only scales the array, and keeps the gradient's size
    (Prieto et al. 2025, "Grokking at the edge of numerical stability"):

        g' = g - (w . g / w . w) w,    g <- g' |g| / |g'|.
    """

    def across(g, w):
        rest = g - (w * g).sum() / ((w * w).sum() + TINY) * w
        return rest * (jnp.sqrt((g * g).sum()) / (jnp.sqrt((rest * rest).sum()) + TINY))

    return optax.stateless(lambda grads, params: jax.tree.map(across, grads, params))


def within_norm(params: Any, most: float) -> Any:
    """Parameters scaled down so that the norm of all of them together is at most this (after Liu et al. 2023,
    "Omnigrok")."""
    norm = jnp.sqrt(sum((w * w).sum() for w in jax.tree.leaves(params)))
    return jax.tree.map(lambda w: w * jnp.minimum(1, most / norm), params)
