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
from jaxgrok.tasks import ModularTask, modular_task


class Split(NamedTuple):
    """The answers of a run's pairs, and the pairs that it is trained on. Pairs and answers are counted in the order of
    the task's group (`tasks.modular`), which for most tasks is that of the numbers themselves.

    Attributes:
        labels: the answers of all pairs over the group, int32.
        train: the train pairs, int32; P*P for one that is not of the group, such as 0 * 3.
    """

    labels: Int[np.ndarray, "P*P"]
    train: Int[np.ndarray, "n_train"]


def split_of(config: Config, frac: float, seed: int, split_seed: int | None = None) -> Split:
    """The split and labels of the run with this seed. split_seed None means the run's own seed.

    Raises BadInput if the task is not modular, or if the fraction leaves no train or no test pair.
    """
    task = modular_task(config)
    train, _ = task.split_indices(frac, seed if split_seed is None else split_seed)
    return split_over(task, train, seed)


def split_over(task: ModularTask, train: Int[np.ndarray, "n_train"], seed: int) -> Split:
    """The split with these train pairs, by their lexicographic numbers. seed: of random labels."""
    P, (a, b) = len(task.group), np.divmod(train, task.p)
    a, b = task.place[a], task.place[b]
    inside = (a < P) & (b < P)
    return Split(task.group_labels(seed), np.where(inside, a * P + b, P * P).astype(np.int32))


def mask_of_train(split: Split, P: int) -> Bool[Array, "P P"]:
    """Whether each pair is a train pair."""
    return jnp.zeros(P * P, bool).at[split.train].set(True, mode="drop").reshape(P, P)


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
        mlp_logits: the logits that the neurons write, without the output bias. They are exactly zero where no neuron
            fires.
        bias: the contribution of the output bias to the logits.
        stream: the residual stream and the attention; None for the MLP network.
    """

    W_E: Float[Array, "P D"]
    W_L: Float[Array, "P M"]
    all_logits: Float[Array, "P P C"]
    logits: Float[Array, "P P P"]
    neurons: Float[Array, "P P M"]
    mlp_logits: Float[Array, "P P P"]
    bias: Float[Array, "P"]
    stream: Stream | None


BLOCK = 1024  # pairs that pass through the network at once
STREAM_HOOKS = ("hook_resid_mid", "hook_resid_pre", "attn.hook_attn_scores", "attn.hook_pattern")


@at_precision("highest")
def neurons_to_logits(config: Config, params: dict) -> Float[Array, "P M"]:
    """W_L = W_out W_U without the class "=": what each neuron of a transformer's last block adds to each class."""
    W_out, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"]["W_out"], unembedding(params)
    return (jnp.asarray(W_out) @ _of_group(modular_task(config), W_U.T).T).T


@at_precision("highest")
def run_network(config: Config, params: dict) -> Network:
    """The network on all pairs over the task's group, in its order. The weights decide the number of classes: p, or
    p + 1 with "=". Classes that are not of the group come last.

    Raises BadInput if the task is not modular.
    """
    task = modular_task(config)
    P, params = len(task.group), jax.tree.map(jnp.asarray, params)
    model, is_mlp = make_model(config, task), config.arch == "mlp"
    prepared = model.prepare(params, P * P)
    last = "" if is_mlp else f"blocks.{config.n_layers - 1}."
    W_U = None if is_mlp else _of_group(task, unembedding(params).T).T
    W_L = _of_group(task, params["W_out"].T) if is_mlp else neurons_to_logits(config, params)
    hooks = ("mlp.hook_post",) if is_mlp else ("mlp.hook_post", *STREAM_HOOKS)

    def of_pairs(tokens):
        logits, activations = model.forward(prepared, tokens)
        # Only one position is read: drop its axis.
        kept = [x[:, :, 0] if x.ndim == 4 else x[:, 0] for x in (activations[last + name] for name in hooks)]
        direct = [] if W_U is None else [kept[1] @ W_U]
        return logits[:, 0], kept[0] @ W_L.T, *kept, *direct

    outputs = in_blocks(of_pairs, jnp.asarray(task.pairs(task.group_pairs, 0).tokens))
    all_logits, mlp_logits, neurons, *of_stream = (x.reshape(P, P, *x.shape[1:]) for x in outputs)
    all_logits = group_first(task, all_logits)
    if W_U is None:
        W_in, bias = (_of_group(task, x) for x in (params["W_in"], params["b_out"]))
        return Network(W_in, W_L, all_logits, all_logits[..., :P], neurons, mlp_logits, bias, None)
    mid, before, scores, pattern, direct = of_stream
    before = before[:1, :1] if config.n_layers == 1 and task.has_equals else before
    weights = params[f"blocks_{config.n_layers - 1}"]["mlp"]
    W_E, bias = _of_group(task, params["embed"]["W_E"]), weights["b_out"] @ W_U

    @at_precision("highest")
    def logits_with(mid):
        def of_pairs(mid):
            post = ACTIVATIONS[config.act](affine(mid, weights["W_in"], weights["b_in"]))
            return affine(mid, W_U, bias) + post @ W_L.T

        return in_blocks(of_pairs, mid.reshape(-1, config.d_model)).reshape(*mid.shape[:2], P)

    stream = Stream(before, mid, direct, logits_with, scores, pattern)
    return Network(W_E, W_L, all_logits, all_logits[..., :P], neurons, mlp_logits, bias, stream)


def _of_group(task: ModularTask, rows: Shaped[Array | np.ndarray, "p ..."]) -> Shaped[Array, "P ..."]:
    """The rows of the numbers of the group, in its order."""
    rows = jnp.asarray(rows)
    return rows[task.group] if task.is_multiplicative else rows[: task.p]


def group_first(task: ModularTask, logits: Float[Array, "P P C"]) -> Float[Array, "P P C"]:
    """Logits with the classes of the group first, in its order."""
    if not task.is_multiplicative:
        return logits
    others = np.setdiff1d(np.arange(logits.shape[-1]), task.group)
    return logits[..., np.concatenate([task.group, others])]


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
