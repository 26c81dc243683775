"""One network on all pairs of its inputs. Every measure and every figure of a modular network starts from this.

Shapes: P residue, M neurons, H heads, S positions, D residual, C classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxgrok.config import Config
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import ACTIVATIONS, affine, make_model, unembedding
from jaxgrok.nets.precision import at_precision
from jaxgrok.tasks import modular_task


class Split(NamedTuple):
    """The answers of a run's pairs, and the pairs that it is trained on.

    Attributes:
        labels: the answers of all pairs in lexicographic order, int32.
        train: the numbers of the train pairs in that order, int32.
    """

    labels: Int[np.ndarray, "P*P"]
    train: Int[np.ndarray, "n_train"]


def split_of(config: Config, frac: float, seed: int, split_seed: int | None = None) -> Split:
    """The split and labels of the run with this seed. split_seed None means the run's own seed.

    Raises BadInput if the task is not modular, or if the fraction leaves no train or no test pair.
    """
    task = modular_task(config)
    train, _ = task.split_indices(frac, seed if split_seed is None else split_seed)
    return Split(task.labels(seed), train.astype(np.int32))


class Stream(NamedTuple):
    """The residual stream and the attention of the last block, from the position that is read: "=", or y where there is
    no "=". The MLP network has neither.

    Attributes:
        before: the stream before attention. With one layer it is the embedding of "=", the same for every pair, or that
            of y.
        mid: the stream after attention, which is the MLP's input.
        direct: the logits that the stream writes past the MLP.
        logits_with: computes the logits for another stream after attention, which is then the MLP's input too.
        scores: the attention scores.
        pattern: the attention pattern.
    """

    before: Float[Array, "P P D"] | Float[Array, "1 1 D"]
    mid: Float[Array, "P P D"]
    direct: Float[Array, "P P P"]
    logits_with: Callable[[Float[Array, "A B D"]], Float[Array, "A B P"]]
    scores: Float[Array, "P P H S"]
    pattern: Float[Array, "P P H S"]


class Network(NamedTuple):
    """The parts of a network that the measures need. With several layers they are those of the last block, which writes
    the answer.

    Attributes:
        W_E: the embedding without "=". For the MLP network, its input weights.
        W_L: the transpose of W_out W_U, without the class of "=".
        all_logits: the logits, with the class of "=" if the network has it.
        logits: the logits of the p number classes.
        neurons: the activations of the MLP.
        bias: the contribution of the output bias to the logits.
        stream: the residual stream and the attention; None for the MLP network.
    """

    W_E: Float[Array, "P D"]
    W_L: Float[Array, "P M"]
    all_logits: Float[Array, "P P C"]
    logits: Float[Array, "P P P"]
    neurons: Float[Array, "P P M"]
    bias: Float[Array, "P"]
    stream: Stream | None

    @property
    @at_precision("highest")
    def mlp_logits(self) -> Float[Array, "P P P"]:
        """The logits that the neurons write, without the output bias. They are exactly zero where no neuron fires."""
        return self.neurons @ self.W_L.T


BLOCK = 1024  # pairs that pass through the network at once
STREAM_HOOKS = ("hook_resid_mid", "hook_resid_pre", "attn.hook_attn_scores", "attn.hook_pattern")


@at_precision("highest")
def neurons_to_logits(config: Config, params: dict) -> Float[Array, "P M"]:
    """W_L = W_out W_U without the class "=": what each neuron of a transformer's last block adds to each class."""
    W_out, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"]["W_out"], unembedding(params)
    return (jnp.asarray(W_out) @ jnp.asarray(W_U[:, : config.p])).T


@at_precision("highest")
def run_network(config: Config, params: dict) -> Network:
    """The network on all p^2 pairs. The weights decide the number of classes: p, or p + 1 with "=".

    Raises BadInput if the task is not modular.
    """
    task, p = modular_task(config), config.p
    params = jax.tree.map(jnp.asarray, params)
    model, is_mlp = make_model(config, task), config.arch == "mlp"
    prepared = model.prepare(params, p * p)
    last = "" if is_mlp else f"blocks.{config.n_layers - 1}."
    W_U = None if is_mlp else unembedding(params)[:, :p]
    hooks = ("mlp.hook_post",) if is_mlp else ("mlp.hook_post", *STREAM_HOOKS)

    def of_pairs(tokens):
        logits, activations = model.forward(prepared, tokens)
        # Only one position is read: drop its axis.
        kept = [x[:, :, 0] if x.ndim == 4 else x[:, 0] for x in (activations[last + name] for name in hooks)]
        direct = [] if W_U is None else [kept[1] @ W_U]
        return logits[:, 0], *kept, *direct

    outputs = in_blocks(of_pairs, jnp.asarray(task.pairs(np.arange(p * p), 0).tokens))
    all_logits, neurons, *of_stream = (x.reshape(p, p, *x.shape[1:]) for x in outputs)
    if W_U is None:
        return Network(params["W_in"], params["W_out"].T, all_logits, all_logits, neurons, params["b_out"], None)
    mid, before, scores, pattern, direct = of_stream
    before = before[:1, :1] if config.n_layers == 1 and task.has_equals else before
    weights = params[f"blocks_{config.n_layers - 1}"]["mlp"]
    W_E, W_L, bias = params["embed"]["W_E"][:p], neurons_to_logits(config, params), weights["b_out"] @ W_U

    @at_precision("highest")
    def logits_with(mid):
        def of_pairs(mid):
            post = ACTIVATIONS[config.act](affine(mid, weights["W_in"], weights["b_in"]))
            return affine(mid, W_U, bias) + post @ W_L.T

        return in_blocks(of_pairs, mid.reshape(-1, config.d_model)).reshape(*mid.shape[:2], p)

    stream = Stream(before, mid, direct, logits_with, scores, pattern)
    return Network(W_E, W_L, all_logits, all_logits[..., :p], neurons, bias, stream)


def in_blocks(f: Callable[[Array], Any], pairs: Shaped[Array, "N ..."]) -> Any:
    """f(pairs), computed for at most BLOCK pairs at a time, whose activations stay in a CPU's cache.

    f: a function that returns a pytree of arrays [N, ...]. The last block overlaps the one before it, so that all have
    the same size.
    """
    n = len(pairs)
    size = -(-n // -(-n // BLOCK))

    def body(i, out):
        start = jnp.minimum(i * size, n - size)
        block = f(jax.lax.dynamic_slice_in_dim(pairs, start, size))
        return jax.tree.map(lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, 0), out, block)

    shapes = jax.eval_shape(f, pairs[:size])
    out = jax.tree.map(lambda x: jnp.zeros((n, *x.shape[1:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, -(-n // size), body, out)


def _mean(per_pair: Float[Array, "P P"]) -> Float[Array, ""]:
    # Row by row: in float32 a running sum over all p^2 pairs would lose digits.
    return per_pair.mean(axis=1).mean()


def mean_loss(logits: Float[Array, "P P C"], labels: Int[Array | np.ndarray, "P P"]) -> Float[Array, ""]:
    """The mean cross-entropy over all pairs."""
    return _mean(cross_entropy(logits, labels))


def over_splits(
    per_pair: Float[Array, "P P"], is_train: Bool[Array | np.ndarray, "P P"]
) -> dict[str, Float[Array, ""]]:
    """The means over {"all", "train", "test"} pairs."""

    def mean(chosen):
        return jnp.where(chosen, per_pair, 0).sum(axis=1).sum() / chosen.sum().astype(per_pair.dtype)

    return {"all": _mean(per_pair), "train": mean(is_train), "test": mean(~is_train)}


def losses(
    logits: Float[Array, "P P C"], labels: Int[Array | np.ndarray, "P P"], is_train: Bool[Array | np.ndarray, "P P"]
) -> dict[str, Float[Array, ""]]:
    """The mean cross-entropies over {"all", "train", "test"} pairs."""
    return over_splits(cross_entropy(logits, labels), is_train)
