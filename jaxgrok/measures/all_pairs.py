"""One network on all pairs of its inputs. Every measure and every figure of a modular network starts from this.

Shapes: P residue, M neurons, H heads, S positions, D residual, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrok.config import Config
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import make_model, mlp
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
    """The residual stream and the attention of the last block, from "=". The MLP network has neither.

    Attributes:
        before: the stream before attention. With one layer it is the embedding of "=", the same for every pair.
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
        always_active: the number of neurons that are positive before the activation function on every pair.
        never_active: the number of neurons that are positive on none.
        bias: the contribution of the output bias to the logits.
        stream: the residual stream and the attention; None for the MLP network.
    """

    W_E: Float[Array, "P D"]
    W_L: Float[Array, "P M"]
    all_logits: Float[Array, "P P C"]
    logits: Float[Array, "P P P"]
    neurons: Float[Array, "P P M"]
    always_active: Int[Array, ""]
    never_active: Int[Array, ""]
    bias: Float[Array, "P"]
    stream: Stream | None


STREAM_HOOKS = ("hook_resid_mid", "hook_resid_pre", "attn.hook_attn_scores", "attn.hook_pattern")


@at_precision("highest")
def neurons_to_logits(config: Config, params: dict) -> Float[Array, "P M"]:
    """W_L = W_out W_U without the class "=": what each neuron of a transformer's last block adds to each class."""
    W_out, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"]["W_out"], params["unembed"]["W_U"]
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
    kept = ("mlp.hook_post",) if is_mlp else ("mlp.hook_post", *STREAM_HOOKS)

    def of_row(tokens):
        logits, activations = model.forward(prepared, tokens)
        pre = activations[f"{last}mlp.hook_pre"][:, 0]
        activations = [activations[last + name] for name in kept]
        # Only one position is read: drop its axis.
        activations = [x[:, :, 0] if x.ndim == 4 else x[:, 0] for x in activations]
        return logits[:, 0], ((pre > 0).all(axis=0), (pre <= 0).all(axis=0)), *activations

    # One value of a at a time: its activations stay in cache, and only what is kept exists for all pairs at once.
    tokens = task.pairs(np.arange(p * p), 0).tokens.reshape(p, p, -1)
    all_logits, activity, neurons, *of_stream = jax.lax.map(of_row, tokens)
    always, never = (x.all(axis=0).sum() for x in activity)
    if is_mlp:
        W_E, W_L, bias = params["W_in"], params["W_out"].T, params["b_out"]
        return Network(W_E, W_L, all_logits, all_logits, neurons, always, never, bias, None)
    mid, before, scores, pattern = of_stream
    before = before[:1, :1] if config.n_layers == 1 else before
    weights, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"], params["unembed"]["W_U"][:, :p]
    W_E, W_L, bias = params["embed"]["W_E"][:p], neurons_to_logits(config, params), weights["b_out"] @ W_U
    stream = Stream(before, mid, mid @ W_U, _logits_with(config, weights, W_U), scores, pattern)
    return Network(W_E, W_L, all_logits, all_logits[..., :p], neurons, always, never, bias, stream)


def _logits_with(config: Config, weights: dict, W_U: Float[Array, "D P"]) -> Callable:
    @at_precision("highest")
    def logits_with(mid):
        def of_row(mid):
            return (mid + mlp(weights, mid, config.act)) @ W_U

        return jax.lax.map(of_row, mid)

    return logits_with


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
