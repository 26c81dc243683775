"""Cross-entropy, exact in float32, and the two forms of the post's loss.

Float32 log_softmax rounds losses below 1.19e-7 to zero and their gradients with them: the post's explanation of
slingshots. softplus(logsumexp of the wrong logits - the right logit) has no such floor (spec: PUBLISHED.md, Precision).
"""

import jax
import jax.numpy as jnp


def _right_and_wrong(logits, targets):
    """The right class's logit [...] and the logits [..., C] with that class at -inf."""
    is_right = jnp.arange(logits.shape[-1]) == targets[..., None]
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return right, jnp.where(is_right, -jnp.inf, logits)


def cross_entropy(logits, targets, mode: str = "exact"):
    """Negative log-probability of each target, in nats.

    logits [..., C], targets [...] int; returns [...]: in the logits' dtype, or float64 for `float64`.
    mode: `exact` keeps about 1e-6 relative accuracy in float32 at any margin; `float64` casts and takes log_softmax, as
    the authors' runs do (it needs x64); `float32` takes log_softmax in float32, as their low-precision run does.
    """
    if mode == "exact":
        right, wrong = _right_and_wrong(logits, targets)
        return jax.nn.softplus(jax.nn.logsumexp(wrong, axis=-1) - right)
    log_probs = jax.nn.log_softmax(logits.astype(mode), axis=-1)
    return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def is_correct(logits, targets):
    """Whether each target's logit beats every other; ties are wrong. logits [..., C], targets [...] -> bool [...]."""
    right, wrong = _right_and_wrong(logits, targets)
    return right > wrong.max(axis=-1)
