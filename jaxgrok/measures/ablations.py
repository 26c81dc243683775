"""Ablations: the loss of a network with one part of it taken away, and the random controls beside them (spec: MEASURES.md).

Every loss is over all pairs and the p number classes. Shapes: P residue, F Fourier row, K frequency, M neurons.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgrok.measures import fourier
from jaxgrok.measures.all_pairs import Network, mean_loss

DRAWS = 10  # of each random control
NARROW = 16  # directions: those of up to eight keys


# --- random controls -------------------------------------------------------------------------------------------------------


class Controls(NamedTuple):
    """The random choices that stand beside the keys, DRAWS of each, the same for every checkpoint of a run.

    sets [draws, K]: as many non-key frequencies as there are keys; singles [draws, K]: one each; both empty where there
    are too few. stand_ins [draws, K]: for each frequency with a cluster another, without key or cluster.
    enough_stand_ins: whether there were. normals_key: for as many random directions in neuron space as there are key rows.
    """

    sets: jax.Array
    singles: jax.Array
    stand_ins: jax.Array
    enough_stand_ins: jax.Array
    normals_key: jax.Array


def draw_controls(seed, keys, clusters) -> Controls:
    """The controls for keys [K] and cluster sizes [K]; seed may be traced."""
    sets_key, singles_key, stand_ins_key, normals_key = jax.random.split(jax.random.key(seed), 4)
    has_cluster = clusters > 0
    free = ~keys & ~has_cluster
    # Drawn in float32 in every dtype, as fourier.random_sets draws.
    score = jnp.where(free, jax.random.uniform(stand_ins_key, (DRAWS, len(keys)), jnp.float32), jnp.inf)
    stand_ins = score.argsort(axis=1)[:, jnp.where(has_cluster, has_cluster.cumsum() - 1, 0)]
    return Controls(
        fourier.random_sets(sets_key, ~keys, keys.sum(), DRAWS),
        fourier.random_sets(singles_key, ~keys, 1, DRAWS),
        stand_ins,
        has_cluster.any() & (has_cluster.sum() <= free.sum()),
        normals_key,
    )


def of_singles(per_frequency, singles):
    """[draws] the values of per_frequency [K] at single frequencies, masks [draws, K]."""
    return jnp.where(singles.any(axis=1), per_frequency[singles.argmax(axis=1)], jnp.nan)


def where_known(condition, tree):
    """A pytree of floats, NaN where a traced condition does not hold."""
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.nan), tree)


def median_and_range(draws) -> dict:
    """Over the draws, the first axis."""
    return {"median": jnp.median(draws, axis=0), "min": draws.min(axis=0), "max": draws.max(axis=0)}


# --- ablations -------------------------------------------------------------------------------------------------------------


def row_space(rows, chosen):
    """[M, R] columns that span the chosen rows of [F, M], orthonormal; columns beyond their rank are zero."""
    # The chosen rows first: the leading columns of Q then span them and nothing else.
    order = jnp.argsort(~chosen)
    Q, R = jnp.linalg.qr(jnp.where(chosen[order], rows[order].T, 0))
    size = jnp.abs(R.diagonal())
    spans = (jnp.arange(len(size)) < chosen.sum()) & (size > len(rows) * jnp.finfo(rows.dtype).eps * size.max())
    return jnp.where(spans, Q, 0)


def losses_without_each_block(net: Network, mlp_logits, labels, wanted):
    """[K] loss when every neuron loses the 3x3 block of one frequency, its constant kept; NaN where not `wanted` [K].

    mlp_logits [P, P, P]: what the neurons write. Projecting over pairs and reading out over neurons commute, so the block
    is taken from those logits.
    """
    waves = jnp.asarray(fourier.block_waves(len(labels)), net.logits.dtype)
    blocks = fourier.blocks(fourier.transform2(mlp_logits))

    def without(wave, block):
        return mean_loss(net.logits - jnp.einsum("ia,ijc,jb->abc", wave, block, wave), labels)

    def of_one(x):
        wave, block, is_wanted = x
        return jax.lax.cond(is_wanted, without, lambda *_: jnp.full((), jnp.nan, net.logits.dtype), wave, block)

    return jax.lax.map(of_one, (waves, blocks, wanted))


def losses_with_polynomials(net: Network, of_neurons: fourier.NeuronBlocks, fits: fourier.NeuronFits, stand_ins, labels):
    """[draws] loss when each clustered neuron is its mean plus one 3x3 block.

    stand_ins [draws, K]: the index of the frequency whose block stands for each one; the frequency itself in the measure.
    """
    p, K = len(labels), stand_ins.shape[1]
    clustered = fits.fve > fourier.CLUSTERED
    W_L = jnp.where(clustered, net.W_L, 0)
    rest = net.logits - net.neurons @ W_L.T + W_L @ of_neurons.mean

    def of_one(stand_in):
        takes = stand_in[fits.index] == jnp.arange(K)[:, None]
        return mean_loss(rest + fourier.from_blocks(jnp.where(takes[:, None, None], of_neurons.blocks, 0) @ W_L.T, p), labels)

    return jax.lax.map(of_one, stand_ins)


def losses_on_directions(net: Network, mlp_logits, directions, rank, labels):
    """(loss with the neurons projected on directions [M, R], loss with the projection taken away); rank: columns in use.

    mlp_logits [P, P, P]: what the neurons write. The residual stream and the output bias stay as they are.
    """

    def leading(n):
        return lambda V: (net.neurons @ V[:, :n]) @ (V[:, :n].T @ net.W_L.T)

    # A handful of keys spans a handful of directions; projecting on them alone is several times cheaper.
    kept = jax.lax.cond(rank <= NARROW, leading(NARROW), leading(directions.shape[1]), directions)
    return mean_loss(net.logits - mlp_logits + kept, labels), mean_loss(net.logits - kept, labels)


def ablations_of_skips(net: Network, mlp_logits, labels) -> dict:
    """The ablations that need a residual stream beside the MLP: nothing in them has a size that a random control could match.

    For several layers they are those of the last block: `attention_zero` leaves the stream before it, which for one layer
    is the embedding of "=" alone.
    """
    names = ("mlp_skip_zero", "mlp_skip_mean", "attention_zero", "attention_skip_zero")
    if net.mid is None:
        return dict.fromkeys(names)
    mlp_alone = mlp_logits + net.bias
    mean_direct = net.direct.mean(axis=1).mean(axis=0)
    without_attention = jnp.broadcast_to(net.logits_with(net.before), net.logits.shape)
    logits = (mlp_alone, mlp_alone + mean_direct, without_attention, net.logits_with(net.mid - net.before))
    return {name: mean_loss(x, labels) for name, x in zip(names, logits, strict=True)}


def ablations(net: Network, of_neurons: fourier.NeuronBlocks, fits, labels, keys, controls: Controls) -> tuple[dict, dict]:
    """Every ablation loss, and the draws of their controls."""
    p, M = net.W_L.shape
    mlp_logits = net.neurons @ net.W_L.T
    logit_components = fourier.transform2(net.logits)
    logit_blocks, mean = fourier.blocks(logit_components), logit_components[0, 0] / p

    def keep_blocks(mask):
        return mean_loss(mean + fourier.from_blocks(jnp.where(mask[:, None, None, None], logit_blocks, 0), p), labels)

    without_each = losses_without_each_block(net, mlp_logits, labels, keys | controls.singles.any(axis=0))
    itself = jnp.arange(p // 2)[None]
    polynomials = losses_with_polynomials(net, of_neurons, fits, jnp.concatenate([itself, controls.stand_ins]), labels)
    key_rows = fourier.rows_of(keys, p)

    def on_rows(rows):
        return losses_on_directions(net, mlp_logits, row_space(rows, key_rows), key_rows.sum(), labels)

    def on_random_rows(key):
        return on_rows(jax.random.normal(key, (p, M), jnp.float32).astype(net.W_L.dtype))

    on_keys, on_null_space = on_rows(fourier.transform(net.W_L))
    needs_keys = {"keep_key_blocks": keep_blocks(keys), "mlp_on_W_L_key_directions": on_keys, "mlp_on_their_null_space": on_null_space}
    measured = where_known(keys.any(), needs_keys) | {
        "remove_key_from_neurons": without_each,
        "clustered_neurons_as_polynomials": polynomials[0],
        **ablations_of_skips(net, mlp_logits, labels),
    }
    on_random, off_random = where_known(keys.any(), jax.lax.map(on_random_rows, jax.random.split(controls.normals_key, DRAWS)))
    draws = {
        "keep_key_blocks": where_known(controls.sets.any(), jax.lax.map(keep_blocks, controls.sets)),
        "remove_key_from_neurons": of_singles(without_each, controls.singles),
        "clustered_neurons_as_polynomials": where_known(controls.enough_stand_ins, polynomials[1:]),
        "mlp_on_W_L_key_directions": on_random,
        "mlp_on_their_null_space": off_random,
    }
    return measured, draws
