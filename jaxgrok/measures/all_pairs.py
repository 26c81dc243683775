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
from jaxgrok.measures import fourier
from jaxgrok.measures.columns import Parts, columns_of, in_columns
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import ACTIVATIONS, make_model, unembedding
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

    The logits below are those of a network without a norm, whose residual factor is 1.

    Attributes:
        mid: the stream after attention, which is the MLP's input.
        direct: the logits that the stream writes past the MLP.
        logits_of_start: the logits without attention, from the stream before it alone. With one layer this is the
            embedding of "=", the same for every pair, or that of y.
        logits_of_attention: the logits from what attention writes alone.
        scores: the attention scores.
        pattern: the attention pattern.
    """

    mid: Float[Array, "P P D"]
    direct: Float[Array, "P P P"]
    logits_of_start: Float[Array, "P P P"]
    logits_of_attention: Float[Array, "P P P"]
    scores: Float[Array, "P P H S"]
    pattern: Float[Array, "P P H S"]


class Network(NamedTuple):
    """The parts of a network that the measures need. With several layers they are those of the last block, which writes
    the answer.

    Attributes:
        W_E: the embedding without "=". For the MLP network, its input weights.
        W_L: the transpose of W_out W_U, without the class of "=".
        logits: the logits of the classes of the group: the p numbers for most tasks.
        other_logits: the logits of the other classes: "=" if the network has it, and numbers outside the group.
        neurons: the activations of the MLP.
        of_neurons: their Fourier components, as `fourier.neuron_blocks` has them.
        least, greatest: the bounds of each neuron's activations.
        mlp_logits: the logits that the neurons write, without the output bias. They are exactly zero where no neuron
            fires.
        bias: the contribution of the output bias to the logits.
        stream: the residual stream and the attention; None for the MLP network.
    """

    W_E: Float[Array, "P D"]
    W_L: Float[Array, "P M"]
    logits: Float[Array, "P P P"]
    other_logits: Float[Array, "P P C-P"]
    neurons: Float[Array, "P P M"]
    of_neurons: fourier.NeuronBlocks
    least: Float[Array, "M"]
    greatest: Float[Array, "M"]
    mlp_logits: Float[Array, "P P P"]
    bias: Float[Array, "P"]
    stream: Stream | None

    @property
    def all_logits(self) -> Float[Array, "P P C"]:
        """The logits of every class, those of the group first."""
        return jnp.concatenate([self.logits, self.other_logits], axis=-1)


class _LastBlock(NamedTuple):
    """The weights of the last block from the stream after attention on, with the classes of the group first. The MLP
    network has only those from its neurons on.

    Attributes:
        act: the activation function.
        W_L, bias: from the neurons to the logits.
        W_in, b_in: from the stream to the neurons, [D, M] and [M].
        W_U: from the stream to the logits, [D, C].
    """

    act: Callable[[Array], Array]
    W_L: Float[Array, "C M"]
    bias: Float[Array, "C"]
    W_in: Any = None
    b_in: Any = None
    W_U: Any = None

    @classmethod
    def of(cls, config: Config, params: dict) -> "_LastBlock":
        task, act = modular_task(config), ACTIVATIONS[config.act]
        if config.arch == "mlp":
            return cls(act, group_first(task, params["W_out"]).T, group_first(task, params["b_out"]))
        mlp, W_U = params[f"blocks_{config.n_layers - 1}"]["mlp"], group_first(task, unembedding(params))
        return cls(act, (mlp["W_out"] @ W_U).T, mlp["b_out"] @ W_U, mlp["W_in"], mlp["b_in"], W_U)

    def read(self, stream: Float[Array, "N D"]) -> tuple[Float[Array, "N M"], Float[Array, "N C"]]:
        """What the neurons take in from a stream, without their bias, and what it writes to the logits."""
        return stream @ self.W_in, stream @ self.W_U

    def logits(self, pre: Float[Array, "N M"], direct: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """The logits, from the inputs of the neurons and what the stream writes past them."""
        return self.act(pre) @ self.W_L.T + (direct + self.bias[None])


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
    model, pairs = make_model(config, task), jnp.asarray(task.pairs(task.group_pairs, 0).tokens)
    prepared, block, is_mlp = model.prepare(params, len(pairs)), _LastBlock.of(config, params), config.arch == "mlp"
    last, W_E = ("", params["W_in"]) if is_mlp else (f"blocks.{config.n_layers - 1}.", params["embed"]["W_E"])
    is_sum = config.norm == "none" and config.residual_factor == 1
    start = None  # the stream before attention, where it is the same for every pair
    if not is_mlp and config.n_layers == 1 and task.has_equals:
        start = model.forward(prepared, pairs[:1])[1][last + "hook_resid_pre"][0]

    def of_columns(columns, is_new):
        tokens = columns_of(pairs.reshape(P, P, -1), columns)
        logits, activations = model.forward(prepared, tokens.reshape(-1, tokens.shape[2]))

        def seen(name):  # at the only position that is read
            x = activations[last + name]
            return x[:, :, 0] if x.ndim == 4 else x[:, 0]

        neurons = seen("mlp.hook_post")
        mlp_logits = neurons @ block.W_L.T
        total, stream = mlp_logits + block.bias[None], None
        if not is_mlp:
            direct, stream = _stream(block, seen, start, P)
            total = direct + total
        if not is_sum:
            total = group_first(task, logits[:, 0])
        of_pairs = (total[:, :P], total[:, P:], neurons, mlp_logits[:, :P], stream)
        of_pairs = jax.tree.map(lambda x: x.reshape(P, len(columns), *x.shape[1:]), of_pairs)
        neurons = of_pairs[2]
        constant, *sums = fourier.column_parts(neurons, columns, is_new)
        return Parts(of_pairs, (constant, neurons.min(axis=0), neurons.max(axis=0)), sums)

    found = in_columns(of_columns, P)
    logits, others, neurons, mlp_logits, stream = found.pairs
    constant, least, greatest = found.columns
    of_neurons = fourier.blocks_of_parts(fourier.ColumnParts(constant, *found.sums))
    bounds = least.min(axis=0), greatest.max(axis=0)
    W_E, W_L, bias = _of_group(task, W_E), block.W_L[:P], block.bias[:P]
    return Network(W_E, W_L, logits, others, neurons, of_neurons, *bounds, mlp_logits, bias, stream)


def _stream(
    block: _LastBlock, seen: Callable[[str], Array], start: Float[Array, "1 D"] | None, P: int
) -> tuple[Float[Array, "N C"], Stream]:
    """(what the stream writes to the logits past the MLP, for all classes; the stream) of some pairs.

    seen: the activations by name. start: the stream before attention, where it is the same for every pair.
    """
    pre, mid, before = (seen(name) for name in ("mlp.hook_pre", "hook_resid_mid", "hook_resid_pre"))
    direct, (pre_before, direct_before) = mid @ block.W_U, block.read(before if start is None else start)
    of_start = block.logits(pre_before + block.b_in[None], direct_before)
    # All is linear up to the neurons: without the stream before attention, they take in what attention writes.
    of_attention = block.logits(pre - pre_before, direct - direct_before)
    of_start = jnp.broadcast_to(of_start, direct.shape)
    scores, pattern = seen("attn.hook_attn_scores"), seen("attn.hook_pattern")
    return direct, Stream(mid, direct[:, :P], of_start[:, :P], of_attention[:, :P], scores, pattern)


def _of_group(task: ModularTask, rows: Shaped[Array | np.ndarray, "p ..."]) -> Shaped[Array, "P ..."]:
    """The rows of the numbers of the group, in its order."""
    rows = jnp.asarray(rows)
    return rows[task.group] if task.is_multiplicative else rows[: task.p]


def group_first(task: ModularTask, logits: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Logits, or weights to them, with the classes of the group first, in its order."""
    if not task.is_multiplicative:
        return logits
    others = np.setdiff1d(np.arange(logits.shape[-1]), task.group)
    return logits[..., np.concatenate([task.group, others])]


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
