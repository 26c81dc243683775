"""Cross-entropy that is accurate in float32, and the two forms of it that the post compares.

In float32, log_softmax rounds losses below 1.19e-7 to zero, and their gradients with them. This is the post's
explanation of slingshots. The form softplus(logsumexp of the wrong logits - the right logit) has no such floor
(spec: PUBLISHED.md, Precision).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def _right_and_wrong(
    logits: Float[Array | np.ndarray, "... C"], targets: Int[Array | np.ndarray, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "... C"]]:
    """The right class's logit, and all logits with the right one replaced by -inf."""
    is_right = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return right, jnp.where(is_right, -jnp.inf, logits)


def cross_entropy(
    logits: Float[Array | np.ndarray, "... C"],
    targets: Int[Array | np.ndarray, "..."],
    mode: str = "exact",
    smoothing: float = 0,
) -> Float[Array, "..."]:
    """The negative log-probability of each target, in nats.

    mode: `exact` works in the logits' dtype, and in float32 keeps about 1e-6 relative accuracy at any margin.
        `float64` casts the logits and takes log_softmax, as the authors' runs do. It needs x64.
        `float32` takes log_softmax in float32, as the authors' low-precision run does.
        `stablemax` is -log(s(z_right) / sum s(z)) with s(z) = z + 1 from 0 on and 1 / (1 - z) below, which keeps
        float32 from rounding losses to zero (Prieto et al. 2025, "Grokking at the edge of numerical stability").
    smoothing: the share s of a target that is spread over all C classes: (1 - s) times the loss of the target + s times
        the mean of the losses of all classes (Szegedy et al. 2016, "Rethinking the Inception architecture").
    """
    if smoothing:
        scores = _log_stablemax(logits) if mode == "stablemax" else jnp.asarray(logits, _dtype_of(mode))
        of_all = jax.nn.logsumexp(scores, axis=-1) - scores.mean(axis=-1)
        return (1 - smoothing) * cross_entropy(logits, targets, mode) + smoothing * of_all
    if mode == "stablemax":
        right, wrong = _right_and_wrong(_log_stablemax(logits), targets)
        return jax.nn.softplus(jax.nn.logsumexp(wrong, axis=-1) - right)
    if mode == "exact":
        right, wrong = _right_and_wrong(logits, targets)
        return jax.nn.softplus(jax.nn.logsumexp(wrong, axis=-1) - right)
    log_probs = jax.nn.log_softmax(logits.astype(mode), axis=-1)
    return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def _log_stablemax(logits: Float[Array | np.ndarray, "... C"]) -> Float[Array, "... C"]:
    """log s(z), with s(z) = z + 1 from 0 on and 1 / (1 - z) below."""
    # Not jnp.maximum, whose gradient at 0 is one half.
    above, below = jnp.where(logits >= 0, logits, 0), jnp.where(logits >= 0, 0, logits)
    return jnp.where(logits >= 0, jnp.log1p(above), -jnp.log1p(-below))


def _dtype_of(mode: str) -> str | None:
    """The dtype that a mode casts logits to; None if it leaves them alone."""
    return None if mode == "exact" else mode


def is_correct(
    logits: Float[Array | np.ndarray, "... C"], targets: Int[Array | np.ndarray, "..."]
) -> Bool[Array, "..."]:
    """Whether each target's logit is larger than every other logit. A tie is wrong."""
    right, wrong = _right_and_wrong(logits, targets)
    return right > wrong.max(axis=-1)
