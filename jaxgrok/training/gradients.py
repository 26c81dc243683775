"""What is published to make networks grok sooner and acts on gradients or weights, as optax transformations.

Each is a few lines, with the equation of its paper. They come after the terms of a regulariser in the loss and before
the optimiser, as in the authors' code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

MUON_RMS = 0.2  # the root mean square of Muon's updates (Liu et al. 2025, "Muon is scalable for LLM training")
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


class Window(NamedTuple):
    """The state of `grokfast_of_window`: the last gradients, each leaf [window, ...], and the updates done."""

    gradients: Any
    count: Int[Array, ""]


def grokfast_of_window(window: int, factor: float) -> optax.GradientTransformation:
    """Grokfast-MA, which adds the mean of the last gradients once there are as many as the window holds (Lee et al.
    2024, Algorithm 1):

    g <- g + factor (sum of the last `window` gradients) / window.
    """

    def init(params: Any) -> Window:
        return Window(jax.tree.map(lambda w: jnp.zeros((window, *w.shape), w.dtype), params), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Window]:
        at, count = state.count % jnp.int32(window), state.count + 1
        last = jax.tree.map(lambda kept, g: kept.at[at].set(g), state.gradients, updates)
        # The sum is taken anew: one that is carried along would keep the rounding of the first, large gradients.
        slow = jax.tree.map(lambda kept: jnp.where(count >= window, kept.mean(axis=0), 0), last)
        return jax.tree.map(lambda g, m: g + factor * m, updates, slow), Window(last, count)

    return optax.GradientTransformation(init, update)


class ScheduleFree(NamedTuple):
    """The state of `schedule_free`: the newest iterate z, the largest learning rate so far, the sum of the weights of
    the average, the updates done, and the state of the optimiser."""

    z: Any
    largest: Float[Array, ""]
    weights: Float[Array, ""]
    count: Int[Array, ""]
    inner: Any


def schedule_free(
    inner: optax.GradientTransformation, rate: Callable[[Any], Any], b1: float
) -> optax.GradientTransformation:
    """Schedule-free optimisation (Defazio et al. 2024, "The road less scheduled"), of an optimiser without momentum:

    y = (1 - b1) z + b1 x,    z <- z + inner(g at y),    x <- (1 - c) x + c z,    c = l^2 / sum of l^2

    with l the largest learning rate so far. The parameters are x. `where_gradients_are` gives y.

    Optax's keeps y and takes x from it by a division, twice a step, which in float32 costs x most of its digits where
    b1 is small.
    """

    def init(params: Any) -> ScheduleFree:
        zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        return ScheduleFree(jax.tree.map(jnp.array, params), zero, zero, jnp.int32(0), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ScheduleFree]:
        steps, inner_state = inner.update(updates, state.inner, where_gradients_are(params, state, b1))
        z = jax.tree.map(jnp.add, state.z, steps)
        largest = jnp.maximum(state.largest, rate(state.count))
        weights = state.weights + largest**2
        share = jnp.where(weights > 0, largest**2 / jnp.where(weights > 0, weights, 1), 0)
        moved = jax.tree.map(lambda x, z: share * (z - x), params, z)
        return moved, ScheduleFree(z, largest, weights, state.count + 1, inner_state)

    return optax.GradientTransformation(init, update)


def where_gradients_are(params: Any, state: ScheduleFree, b1: float) -> Any:
    """Where `schedule_free` takes gradients: between the parameters, which are an average, and the newest iterate."""
    return jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, params, state.z)


def orthograd() -> optax.GradientTransformation:
    """OrthoGrad, which takes from each array's gradient what only scales the array, and keeps the gradient's size
    (Prieto et al. 2025, "Grokking at the edge of numerical stability"):

        g' = g - (w . g / w . w) w,    g <- g' |g| / |g'|.
    """

    def across(g, w):
        rest = g - (w * g).sum() / ((w * w).sum() + TINY) * w
        return rest * (jnp.sqrt((g * g).sum()) / (jnp.sqrt((rest * rest).sum()) + TINY))

    return optax.stateless(lambda grads, params: jax.tree.map(across, grads, params))


def muon(others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024), by optax, for the matrices of attention, each head's by itself, and of MLPs. `others`
    is for all else: embeddings, the unembedding and biases.

    The momentum of a matrix [A, B] is made orthogonal and multiplied by 0.2 sqrt(max(A, B)). Its root mean square is
    then about that of Adam's updates, so that both have the same learning rate and weight decay.
    """

    def kinds(params: Any) -> Any:
        def kind(path, w):
            return "matrix" if w.ndim > 1 and {"attn", "mlp"} & {step.key for step in path} else "other"

        return jax.tree.map_with_path(kind, params)

    def axes(params: Any) -> Any:
        return jax.tree.map(lambda w: optax.contrib.MuonDimensionNumbers(w.ndim - 2, w.ndim - 1), params)

    def scaled(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda w: w * float(MUON_RMS * max(w.shape[-2:]) ** 0.5), updates)

    orthogonal = optax.contrib.scale_by_muon(weight_dimension_numbers=axes)

    def init(params: Any) -> Any:
        # Optax keeps the iteration's coefficients in the state: under x64 in float64, whatever the weights are in.
        state: Any = orthogonal.init(params)
        return state._replace(ns_coeffs=state.ns_coeffs.astype(jax.tree.leaves(params)[0].dtype))

    of_matrices = optax.chain(optax.GradientTransformation(init, orthogonal.update), optax.stateless(scaled))
    return optax.partition({"matrix": of_matrices, "other": others}, kinds)


def within_norm(params: Any, most: float) -> Any:
    """Parameters scaled down so that the norm of all of them together is at most this (after Liu et al. 2023,
    "Omnigrok")."""
    norm = jnp.sqrt(sum((w * w).sum() for w in jax.tree.leaves(params)))
    return jax.tree.map(lambda w: w * jnp.minimum(1, most / norm), params)
