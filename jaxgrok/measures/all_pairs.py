"""One network on all pairs of its inputs: what every measure and figure starts from.

Shapes: P residue, M neurons, H heads, S positions, D residual, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import Config
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import MLP, make_model
from jaxgrok.tasks import make_task


class Split(NamedTuple):
    """labels [P * P] int32, the answers of all pairs in lexicographic order; train [n_train] int32, the pairs trained on."""

    labels: np.ndarray
    train: np.ndarray


def split_of(config: Config, frac: float, seed: int, split_seed: int | None = None) -> Split:
    """The split and labels of the run with this seed. Raises BadInput for a fraction that leaves no train or test pair."""
    task = make_task(config)
    train, _ = task.split_indices(frac, seed if split_seed is None else split_seed)
    return Split(task.labels(seed), train.astype(np.int32))


class Network(NamedTuple):
    """What the measures need of a network. For several layers, the last block's: there the answer is read.

    W_E [P, D] embedding without "=" (the MLP's input weights); W_L [P, M] = W_out W_U transposed, "=" dropped.
    all_logits [P, P, C] with "=" where the network has it; logits [P, P, P]; neurons [P, P, M], and how many of them are
    always active (positive before the activation function) and never.
    direct [P, P, P]: what reaches the logits past the MLP; bias [P]: what the output bias adds to them.
    logits_with: the logits [P, P, P] for another residual stream [P, P, D] after attention, the MLP's input too.
    mid, before [P, P, D]: that stream, and the stream before attention ([1, 1, D] for one layer). scores, pattern [P, P, H, S]: from "=".
    What the MLP lacks is None.
    """

    W_E: jax.Array
    W_L: jax.Array
    all_logits: jax.Array
    logits: jax.Array
    neurons: jax.Array
    always_active: jax.Array
    never_active: jax.Array
    bias: jax.Array
    direct: jax.Array | None
    logits_with: Callable | None
    mid: jax.Array | None
    before: jax.Array | None
    scores: jax.Array | None
    pattern: jax.Array | None


def run_network(config: Config, params) -> Network:
    """The network on all p^2 pairs. The number of classes is the weights' own: p, or p + 1 with "="."""
    task, p = make_task(config), config.p
    params = jax.tree.map(jnp.asarray, params)
    model = make_model(config, task)
    if config.arch == "transformer":
        model = model.clone(d_vocab_out=params["unembed"]["W_U"].shape[1])
    last = f"blocks.{config.n_layers - 1}." if config.arch == "transformer" else ""
    kept = ("mlp.hook_post", "hook_resid_mid", "hook_resid_pre", "attn.hook_attn_scores", "attn.hook_pattern")[: 5 if last else 1]

    def of_row(tokens):
        logits, activations = model.apply({"params": params}, tokens)
        pre = activations[f"{last}mlp.hook_pre"][:, 0]
        activations = [activations[last + name] for name in kept]
        activations = [x[:, :, 0] if x.ndim == 4 else x[:, 0] for x in activations]  # the one read position
        return logits[:, 0], ((pre > 0).all(axis=0), (pre <= 0).all(axis=0)), *activations

    # The pairs of one a at a time: their activations stay in cache, and only what is kept exists for all of them at once.
    tokens = task.pairs(np.arange(p * p), 0).tokens.reshape(p, p, -1)
    all_logits, activity, neurons, *others = jax.lax.map(of_row, tokens)
    always, never = (x.all(axis=0).sum() for x in activity)
    if config.arch == "mlp":
        nothing = dict.fromkeys(("direct", "logits_with", "mid", "before", "scores", "pattern"))
        W_E, W_L, bias = params["W_in"], params["W_out"].T, params["b_out"]
        return Network(W_E, W_L, all_logits, all_logits, neurons, always, never, bias, **nothing)
    mid, before, scores, pattern = others
    # For one layer the stream before attention is the embedding of "=", the same for every pair.
    before = before[:1, :1] if config.n_layers == 1 else before
    weights, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"], params["unembed"]["W_U"][:, :p]
    mlp = MLP(config.mlp_width, config.d_model, config.act, jnp.dtype(config.dtype))

    def logits_with(mid):
        def of_row(mid):
            out, _ = mlp.apply({"params": weights}, mid)
            return (mid + out) @ W_U

        return jax.lax.map(of_row, mid)

    W_E, W_L, bias = params["embed"]["W_E"][:p], (weights["W_out"] @ W_U).T, weights["b_out"] @ W_U
    return Network(
        W_E, W_L, all_logits, all_logits[..., :p], neurons, always, never, bias, mid @ W_U, logits_with, mid, before, scores, pattern
    )


def _mean(per_pair):
    """Mean of [P, P] values, a row at a time: in float32 a running sum over all p^2 pairs would lose digits."""
    return per_pair.mean(axis=1).mean()


def mean_loss(logits, labels):
    """Mean cross-entropy over all pairs; logits [P, P, C], labels [P, P]."""
    return _mean(cross_entropy(logits, labels))


def over_splits(per_pair, is_train):
    """{"all", "train", "test"}: means of [P, P] values; is_train [P, P] bool."""

    def mean(chosen):
        return jnp.where(chosen, per_pair, 0).sum(axis=1).sum() / chosen.sum()

    return {"all": _mean(per_pair), "train": mean(is_train), "test": mean(~is_train)}


def losses(logits, labels, is_train):
    """{"all", "train", "test"}: mean cross-entropy; logits [P, P, C], labels and is_train [P, P]."""
    return over_splits(cross_entropy(logits, labels), is_train)
