"""Ablations: the loss of a network without one of its parts, and the random controls beside them.

The definitions are in MEASURES.md. Every loss is over all pairs and the p number classes.
Shapes: P residue, F Fourier row, K frequency, M neurons, n random draws, R directions in neuron space.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxgrok.measures import fourier
from jaxgrok.measures.all_pairs import Network, mean_loss
from jaxgrok.nets.precision import at_precision

DRAWS = 10  # of each random control, unless the caller says otherwise
NARROW = 16  # directions, which is what up to eight keys span


# --- random controls --------------------------------------------------------------------------------------------------


class Controls(NamedTuple):
    """The random choices that are compared with the keys: n of each, the same for every checkpoint of a run.

    Attributes:
        sets: as many random non-key frequencies as there are keys; empty if there are too few.
        singles: one random non-key frequency each; empty if there is none.
        stand_ins: for each frequency with a cluster, the index of another that is neither a key nor has a cluster.
        enough_stand_ins: whether there are enough of those.
        normals_key: the PRNG key of random directions in neuron space, as many as there are key rows.
    """

    sets: Bool[Array, "n K"]
    singles: Bool[Array, "n K"]
    stand_ins: Int[Array, "n K"]
    enough_stand_ins: Bool[Array, ""]
    normals_key: Key[Array, ""]


def draw_controls(
    seed: int | Int[Array, ""], keys: Bool[Array, "K"], clusters: Int[Array, "K"], draws: int = DRAWS
) -> Controls:
    """The controls for these keys and cluster sizes. seed may be traced."""
    sets_key, singles_key, stand_ins_key, normals_key = jax.random.split(jax.random.key(seed), 4)
    has_cluster = clusters > 0
    free = ~keys & ~has_cluster
    # float32 in every dtype, for the reason given in fourier.random_sets.
    score = jnp.where(free[None], jax.random.uniform(stand_ins_key, (draws, len(keys)), jnp.float32), jnp.inf)
    stand_ins = score.argsort(axis=1)[:, jnp.where(has_cluster, has_cluster.cumsum() - 1, 0)]
    return Controls(
        fourier.random_sets(sets_key, ~keys, keys.sum(), draws),
        fourier.random_sets(singles_key, ~keys, 1, draws),
        stand_ins,
        has_cluster.any() & (has_cluster.sum() <= free.sum()),
        normals_key,
    )


def at_singles(per_frequency: Float[Array, "K"], singles: Bool[Array, "n K"]) -> Float[Array, "n"]:
    """The value of per_frequency at the one frequency of each mask; NaN for an empty mask."""
    return jnp.where(singles.any(axis=1), per_frequency[singles.argmax(axis=1)], jnp.nan)


def where_known(condition: Bool[Array, ""], tree: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """The same pytree, with every number NaN if the condition does not hold. The condition may be traced."""
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.nan), tree)


def median_and_range(draws: Float[Array, "n ..."]) -> dict[str, Float[Array, "..."]]:
    """The median, minimum and maximum over the draws; NaN if there are none."""
    if not len(draws):
        return dict.fromkeys(("median", "min", "max"), jnp.full(draws.shape[1:], jnp.nan, draws.dtype))
    return {"median": jnp.median(draws, axis=0), "min": draws.min(axis=0), "max": draws.max(axis=0)}


# --- ablations --------------------------------------------------------------------------------------------------------


@at_precision("highest")
def row_space(rows: Float[Array, "F M"], chosen: Bool[Array, "F"]) -> Float[Array, "M R"]:
    """Orthonormal columns that span the chosen rows. The columns beyond their rank are zero."""
    # With the chosen rows first, the leading columns of Q span them and nothing else.
    order = jnp.argsort(~chosen)
    Q, R = jnp.linalg.qr(jnp.where(chosen[None, order], rows[order].T, 0))
    size = jnp.abs(R.diagonal())
    spans = (jnp.arange(len(size)) < chosen.sum()) & (size > len(rows) * jnp.finfo(rows.dtype).eps * size.max())
    return jnp.where(spans[None], Q, 0)


@at_precision("highest")
def losses_of_key_blocks(
    logits: Float[Array, "P P P"],
    labels: Int[Array | np.ndarray, "P P"],
    keys: Bool[Array, "K"],
    controls: Controls,
) -> tuple[Float[Array, ""], Float[Array, "n"]]:
    """The loss of the logits' mean and their 3x3 blocks of the keys alone, and that of each random set in their place;
    NaN without keys, or without enough other frequencies."""
    p = len(labels)
    of_logits = fourier.neuron_blocks(logits)

    def keep(mask):
        kept = fourier.from_blocks(jnp.where(mask[:, None, None, None], of_logits.blocks, 0), p)
        return mean_loss(of_logits.mean[None, None] + kept, labels)

    of_keys, of_sets = keep(keys), jax.lax.map(keep, controls.sets)
    return where_known(keys.any(), of_keys), where_known(controls.sets.any(), of_sets)


@at_precision("highest")
def losses_without_each_block(
    net: Network,
    labels: Int[Array | np.ndarray, "P P"],
    wanted: Bool[Array, "K"],
) -> Float[Array, "K"]:
    """The loss when every neuron loses the 3x3 block of one frequency and keeps its mean; NaN if it is not wanted.

    Projecting over pairs commutes with reading out over neurons, so the neurons' blocks are read out.
    """
    waves = jnp.asarray(fourier.block_waves(len(labels)), net.logits.dtype)
    blocks = net.of_neurons.blocks @ net.W_L.T

    def without(wave, block):
        return mean_loss(net.logits - jnp.einsum("ia,ijc,jb->abc", wave, block, wave), labels)

    def of_one(x):
        wave, block, is_wanted = x
        return jax.lax.cond(is_wanted, without, lambda *_: jnp.full((), jnp.nan, net.logits.dtype), wave, block)

    return jax.lax.map(of_one, (waves, blocks, wanted))


@at_precision("highest")
def losses_with_polynomials(
    net: Network,
    fits: fourier.NeuronFits,
    stand_ins: Int[Array, "n K"],
    labels: Int[Array | np.ndarray, "P P"],
) -> Float[Array, "n"]:
    """The loss when every neuron in a cluster becomes its mean plus one 3x3 block.

    stand_ins holds, for each frequency, the index of the frequency whose block its cluster gets. In the measure that is
    the frequency itself; in the controls it is another.
    """
    p, K = len(labels), stand_ins.shape[1]
    clustered = fits.fve > fourier.CLUSTERED
    W_L = jnp.where(clustered[None], net.W_L, 0)
    rest = net.logits - net.neurons @ W_L.T + (W_L @ net.of_neurons.mean)[None, None]

    def of_one(stand_in):
        takes = stand_in[None, fits.index] == jnp.arange(K)[:, None]
        kept = fourier.from_blocks(jnp.where(takes[:, None, None], net.of_neurons.blocks, 0) @ W_L.T, p)
        return mean_loss(rest + kept, labels)

    return jax.lax.map(of_one, stand_ins)


@at_precision("highest")
def losses_on_directions(
    net: Network,
    directions: Float[Array, "M R"],
    rank: Int[Array, ""],
    labels: Int[Array | np.ndarray, "P P"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss with the neurons projected on these directions, and the loss with that projection taken away.

    rank is the number of columns in use. The residual stream and the output bias stay as they are.
    """

    def leading(n: int) -> Callable:
        return lambda V: (net.neurons @ V[:, :n]) @ (V[:, :n].T @ net.W_L.T)

    # A few keys span only a few directions, and projecting on those alone is several times cheaper.
    kept = jax.lax.cond(rank <= NARROW, leading(NARROW), leading(directions.shape[1]), directions)
    return mean_loss(net.logits - net.mlp_logits + kept, labels), mean_loss(net.logits - kept, labels)


def ablations_of_skips(net: Network, labels: Int[Array | np.ndarray, "P P"]) -> dict[str, Float[Array, ""] | None]:
    """The losses of the ablations that need a residual stream; None for each if the network has none.

    They have no random controls, because nothing in them has a size that a control could match. With several layers
    they are those of the last block: `attention_zero` leaves the stream before it, which with one layer is the
    embedding of "=" alone.
    """
    names = ("mlp_skip_zero", "mlp_skip_mean", "attention_zero", "attention_skip_zero")
    if net.stream is None:
        return dict.fromkeys(names)
    stream = net.stream
    mlp_alone = net.mlp_logits + net.bias[None, None]
    mean_direct = stream.direct.mean(axis=1).mean(axis=0)[None, None]
    logits = (mlp_alone, mlp_alone + mean_direct, stream.logits_of_start, stream.logits_of_attention)
    return {name: mean_loss(x, labels) for name, x in zip(names, logits, strict=True)}


@at_precision("highest")
def ablations(
    net: Network,
    fits: fourier.NeuronFits,
    labels: Int[Array | np.ndarray, "P P"],
    keys: Bool[Array, "K"],
    controls: Controls,
) -> tuple[dict, dict]:
    """The loss of every ablation, and the losses of each draw of their controls."""
    p, M = net.W_L.shape
    key_blocks, draws_of_blocks = losses_of_key_blocks(net.logits, labels, keys, controls)
    without_each = losses_without_each_block(net, labels, keys | controls.singles.any(axis=0))
    itself = jnp.arange(p // 2)[None]
    stand_ins = jnp.concatenate([itself, controls.stand_ins])
    polynomials = losses_with_polynomials(net, fits, stand_ins, labels)
    key_rows = fourier.rows_of(keys, p)

    def on_rows(rows):
        return losses_on_directions(net, row_space(rows, key_rows), key_rows.sum(), labels)

    def on_random_rows(key):
        return on_rows(jax.random.normal(key, (p, M), jnp.float32).astype(net.W_L.dtype))

    on_keys, on_null_space = on_rows(fourier.transform(net.W_L))
    needs_keys = {
        "keep_key_blocks": key_blocks,
        "mlp_on_W_L_key_directions": on_keys,
        "mlp_on_their_null_space": on_null_space,
    }
    measured = where_known(keys.any(), needs_keys) | {
        "remove_key_from_neurons": without_each,
        "clustered_neurons_as_polynomials": polynomials[0],
        **ablations_of_skips(net, labels),
    }
    random_keys = jax.random.split(controls.normals_key, len(controls.sets))
    on_random, off_random = where_known(keys.any(), jax.lax.map(on_random_rows, random_keys))
    draws = {
        "keep_key_blocks": draws_of_blocks,
        "remove_key_from_neurons": at_singles(without_each, controls.singles),
        "clustered_neurons_as_polynomials": where_known(controls.enough_stand_ins, polynomials[1:]),
        "mlp_on_W_L_key_directions": on_random,
        "mlp_on_their_null_space": off_random,
    }
    return measured, draws
