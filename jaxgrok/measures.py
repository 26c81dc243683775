"""Every measure of one checkpoint of a modular network (spec: MEASURES.md), as one pytree of fixed shapes.

    config = jaxgrok.Config()                                   # p = 113, add, the transformer
    split = measures.split_of(config, frac=0.3, seed=0)
    keys = measures.find_keys(config, final_params)             # the keys of a run's last checkpoint ...
    m = measures.all(config, params, split, keys)               # ... hold for all its checkpoints
    measures.to_json(config, m)

`measure` is written for one network: `jax.vmap` it over parameters, splits and keys where memory allows (0.15 GB a
network at p = 113, 0.3 in float64), or `jax.lax.map` it. The pytree is a nested dictionary under the names of
reference/wd_10-1_analysis_float64.json. What JSON gives per key stands there for every frequency k = 1 .. K = p // 2,
in order. Without a key, and for a task without waves, the measures that need them are NaN; what an architecture does
not have (the MLP has neither attention nor a skip connection) is None.

Analysis is over the p number classes, the class of "=" dropped; `loss_all_classes` alone is over all of them.
Shapes: P residue, F Fourier row, K frequency, M neurons, H heads, D residual, C classes.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok import fourier
from jaxgrok.config import Config
from jaxgrok.loss import cross_entropy, is_correct
from jaxgrok.model import MLP, make_model
from jaxgrok.tasks import make_task

DRAWS = 10  # of each random control
NARROW = 16  # directions: those of up to eight keys


class Split(NamedTuple):
    """labels [P * P] int32, the answers of all pairs in lexicographic order; train [n_train] int32, the pairs trained on."""

    labels: np.ndarray
    train: np.ndarray


def split_of(config: Config, frac: float, seed: int, split_seed: int | None = None) -> Split:
    """The split and labels of the run with this seed. Raises BadInput for a fraction that leaves no train or test pair."""
    task = make_task(config)
    train, _ = task.split_indices(frac, seed if split_seed is None else split_seed)
    return Split(task.labels(seed), train.astype(np.int32))


# --- one network on all pairs ---------------------------------------------------------------------------------------------


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


def attention_patterns(config: Config, params):
    """[H, S, P, P] attention of the last block from "=" to each position, on every pair; None for the MLP."""
    pattern = run_network(config, params).pattern
    return None if pattern is None else pattern.transpose(2, 3, 0, 1)


# --- losses ---------------------------------------------------------------------------------------------------------------


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


# --- progress measures, from the logits alone -------------------------------------------------------------------------------


class Waves(NamedTuple):
    """The logits as functions of the task's waves. s [P, P] concrete: the argument; mean [P]: over pairs, per X"""

    s: np.ndarray
    mean: jax.Array
    levels: jax.Array
    alpha: jax.Array
    total: jax.Array


def waves_of(logits, s) -> Waves:
    """The wave analysis of logits [P, P, P] for the argument s [P, P] (fourier.wave_argument).

    alpha_k is the ordinary least squares coefficient of cos(w_k (s - c)) over all pairs and classes. The columns are
    orthogonal to one another and to the constant, so each stands alone, and averages over s - c = d and one DFT suffice.
    """
    p = len(s)
    levels = fourier.average_over_levels(logits, s)
    d = np.arange(p)
    by_difference = levels[(d[:, None] + d) % p, d].mean(axis=1)
    overall = by_difference.mean()
    cos_norms = np.linalg.norm(_cosines(p), axis=0)
    alpha = fourier.by_frequency(fourier.transform(by_difference - overall))[:, 0] / jnp.asarray(cos_norms, logits.dtype)
    total = ((logits - overall) ** 2).sum(axis=2).sum(axis=1).sum()
    return Waves(s, levels.mean(axis=0), levels, alpha, total)


def _cosines(p: int) -> np.ndarray:
    """[P, K] cos(w_k d), not normalised."""
    return np.cos(2 * np.pi / p * (np.outer(np.arange(p), np.arange(1, fourier.n_frequencies(p) + 1)) % p))


def restricted_loss(waves: Waves, is_train, keys):
    """{"all", "train", "test"}: of P_S L plus the mean over pairs of L, a vector with one entry per class.

    The post's trig loss. The answer of a pair is its s, so one loss per level of s is all there is to compute.
    Limit: averaging over the pairs of one s carries the labels of the train pairs to the test pairs, so with many keys
    this loss is low even where the network only memorised.
    """
    logits = fourier.keep_frequencies(waves.levels, keys) + waves.mean
    return over_splits(cross_entropy(logits, jnp.arange(len(logits)))[waves.s], is_train)


def excluded_loss(logits, waves: Waves, labels, is_train, keys):
    """{"all", "train", "test"}: of L - P_S L, the constant untouched."""
    return losses(logits - fourier.keep_frequencies(waves.levels, keys)[waves.s], labels, is_train)


def excluded_loss_of_each(logits, waves: Waves, split: Split):
    """[K] train loss with one frequency excluded, for every frequency."""
    p = len(waves.s)
    logits, s, labels = logits.reshape(p * p, p)[split.train], jnp.asarray(waves.s).ravel()[split.train], split.labels[split.train]
    rows = jnp.asarray(fourier.by_frequency(fourier.basis(p)), logits.dtype)

    def of(pair_of_rows):
        wave = pair_of_rows.T @ (pair_of_rows @ waves.levels)
        return cross_entropy(logits - wave[s], labels).mean()

    return jax.lax.map(of, rows)


def wave_fit(waves: Waves, keys):
    """{"logit_fve", "logit_approximation_loss"} of the least squares fit of L by sum alpha_k cos(w_k (s - c)), k in keys."""
    p = len(waves.s)
    kept = jnp.where(keys, waves.alpha, 0)
    cos = _cosines(p)
    fit = jnp.asarray(cos, kept.dtype) @ kept
    squared_norms = jnp.asarray(p**2 * (cos**2).sum(axis=0), kept.dtype)
    # The fit is a function of s - c with the answer at 0, so every pair has the same loss.
    return {"logit_fve": (kept**2 * squared_norms).sum() / waves.total, "logit_approximation_loss": cross_entropy(fit, jnp.int32(0))}


# --- neurons and ablations --------------------------------------------------------------------------------------------------


def mlp_readout_fve(neurons, W_L, s):
    """[F - 1] for each row r > 0 of F W_L: the share of the variance of (F W_L)_r . MLP(a, b) that the matching wave of s explains."""
    p = len(s)
    readout = neurons @ fourier.transform(W_L)[1:].T
    on_wave = fourier.transform(fourier.average_over_levels(readout, s))[1:].diagonal() * math.sqrt(p)
    total = ((readout - readout.mean(axis=1).mean(axis=0)) ** 2).sum(axis=1).sum(axis=0)
    return on_wave**2 / total


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


def attention_measures(net: Network) -> dict:
    """Attention of the last block from "=": mean pattern [H, S] and [H] to "="; best frequency of each head's score.

    The score is to a minus to b, averaged over b and centred: a function [P] of a. `fve` is the best frequency's share of
    its energy.
    """
    if net.pattern is None:
        return dict.fromkeys(("attention_pattern_mean", "attention_to_equals_mean", "attention_score_frequency"))
    pattern = net.pattern.mean(axis=1).mean(axis=0)
    score = (net.scores[..., 0] - net.scores[..., 1]).mean(axis=1)
    energies = fourier.frequency_energies(score - score.mean(axis=0))
    return {
        "attention_pattern_mean": pattern,
        "attention_to_equals_mean": pattern[:, -1],
        "attention_score_frequency": {"frequency": energies.argmax(axis=0) + 1, "fve": energies.max(axis=0) / energies.sum(axis=0)},
    }


def principal_components(W_E) -> dict:
    """Of the centred embedding [P, D], for each component: its share of the variance, its best frequency and the share in that.

    Circles in the first two are the cos and sin of one frequency.
    """
    scores, sizes, _ = jnp.linalg.svd(W_E - W_E.mean(axis=0), full_matrices=False)
    energies = fourier.frequency_energies(scores)
    exists = sizes > len(W_E) * jnp.finfo(W_E.dtype).eps * sizes[0]
    return {
        "variance": sizes**2 / (sizes**2).sum(),
        "frequency": energies.argmax(axis=0) + 1,
        "share": jnp.where(exists, energies.max(axis=0), jnp.nan),
    }


def sum_squared_weights(params) -> dict:
    """{TransformerLens name: sum of squares} of every parameter, and their `total`."""
    squares = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = ".".join(entry.key for entry in path).replace("blocks_", "blocks.")
        squares[name] = (leaf**2).sum()
    return squares | {"total": sum(squares.values())}


# --- random controls --------------------------------------------------------------------------------------------------------


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
    of_sets, of_singles, of_stand_ins, of_normals = jax.random.split(jax.random.key(seed), 4)
    has_cluster = clusters > 0
    free = ~keys & ~has_cluster
    # Drawn in float32 in every dtype, as fourier.random_sets draws.
    score = jnp.where(free, jax.random.uniform(of_stand_ins, (DRAWS, len(keys)), jnp.float32), jnp.inf)
    stand_ins = score.argsort(axis=1)[:, jnp.where(has_cluster, has_cluster.cumsum() - 1, 0)]
    return Controls(
        fourier.random_sets(of_sets, ~keys, keys.sum(), DRAWS),
        fourier.random_sets(of_singles, ~keys, 1, DRAWS),
        stand_ins,
        has_cluster.any() & (has_cluster.sum() <= free.sum()),
        of_normals,
    )


def _of_singles(per_frequency, singles):
    """[draws] the values of per_frequency [K] at single frequencies, masks [draws, K]."""
    return jnp.where(singles.any(axis=1), per_frequency[singles.argmax(axis=1)], jnp.nan)


def _where(condition, tree):
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.nan), tree)


def _median_and_range(draws) -> dict:
    return {"median": jnp.median(draws, axis=0), "min": draws.min(axis=0), "max": draws.max(axis=0)}


# --- everything -------------------------------------------------------------------------------------------------------------


def _wave_measures(net: Network, split: Split, is_train, keys, controls: Controls, s) -> tuple[dict, dict]:
    """The progress measures that need the task's waves, and the draws of their controls; s [P, P] is the argument."""
    labels = split.labels.reshape(is_train.shape)
    waves = waves_of(net.logits, s)
    each = excluded_loss_of_each(net.logits, waves, split)

    def of_set(mask):
        excluded = excluded_loss(net.logits, waves, labels, is_train, mask)
        return {
            "restricted_loss": restricted_loss(waves, is_train, mask),
            "excluded_loss": {part: excluded[part] for part in ("train", "all")},
            **wave_fit(waves, mask),
        }

    measured = _where(keys.any(), of_set(keys)) | {
        "excluded_loss_per_key": each,
        "excluded_loss_max_over_frequencies": each.max(),
        "alpha": waves.alpha,
        "mlp_readout_fve": mlp_readout_fve(net.neurons, net.W_L, s),
    }
    draws = _where(controls.sets.any(), jax.lax.map(of_set, controls.sets))
    return measured, draws | {"excluded_loss_per_key": _of_singles(each, controls.singles)}


def _ablations(net: Network, of_neurons: fourier.NeuronBlocks, fits, labels, keys, controls: Controls) -> tuple[dict, dict]:
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
    measured = _where(keys.any(), needs_keys) | {
        "remove_key_from_neurons": without_each,
        "clustered_neurons_as_polynomials": polynomials[0],
        **ablations_of_skips(net, mlp_logits, labels),
    }
    on_random, off_random = _where(keys.any(), jax.lax.map(on_random_rows, jax.random.split(controls.normals_key, DRAWS)))
    draws = {
        "keep_key_blocks": _where(controls.sets.any(), jax.lax.map(keep_blocks, controls.sets)),
        "remove_key_from_neurons": _of_singles(without_each, controls.singles),
        "clustered_neurons_as_polynomials": _where(controls.enough_stand_ins, polynomials[1:]),
        "mlp_on_W_L_key_directions": on_random,
        "mlp_on_their_null_space": off_random,
    }
    return measured, draws


def _rules(net: Network, fits: fourier.NeuronFits) -> fourier.KeyRules:
    norms = fourier.frequency_norms(net.W_L), fourier.frequency_norms(net.W_E)
    return fourier.key_frequencies(*norms, fourier.cluster_sizes(fits, len(norms[0])))


@functools.partial(jax.jit, static_argnums=0)
def find_keys(config: Config, params):
    """The key set [K] bool of one network; compiled once per config."""
    with jax.default_matmul_precision("highest"):
        net = run_network(config, params)
        return _rules(net, fourier.fit_neurons(fourier.neuron_blocks(net.neurons))).keys


def measure(config: Config, params, split: Split, keys=None, seed=0) -> dict:
    """Every measure of one network: see the module's docstring. Pure; jit with `config` static, vmap over the rest.

    keys [K] bool: those to use, of the run's final checkpoint for instance; None: those found in this network. Both sets
    are returned, under key_frequencies `keys` and `found`. seed: of the random controls, which stand under `controls` as
    median and range of 10 draws. In `key_frequencies` sets are masks [K].
    """
    with jax.default_matmul_precision("highest"):
        return _measure(config, params, split, keys, seed)


def _measure(config: Config, params, split: Split, keys, seed) -> dict:
    task, p = make_task(config), config.p
    net = run_network(config, params)
    labels = split.labels.reshape(p, p)
    is_train = jnp.zeros(p * p, bool).at[split.train].set(True).reshape(p, p)
    of_neurons = fourier.neuron_blocks(net.neurons)
    fits = fourier.fit_neurons(of_neurons)
    clusters = fourier.cluster_sizes(fits, p // 2)
    rules = _rules(net, fits)
    keys = rules.keys if keys is None else jnp.asarray(keys)
    controls = draw_controls(seed, keys, clusters)
    ablations, ablation_draws = _ablations(net, of_neurons, fits, labels, keys, controls)
    if fourier.has_waves(task):
        of_waves, draws = _wave_measures(net, split, is_train, keys, controls, fourier.wave_argument(task))
    else:
        # The same structure, from any argument, with nothing in it.
        shapes = jax.eval_shape(lambda: _wave_measures(net, split, is_train, keys, controls, np.indices((p, p)).sum(axis=0) % p))
        of_waves, draws = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
    accuracies = over_splits(is_correct(net.logits, labels).astype(net.logits.dtype), is_train)
    components = fourier.transform(net.W_L)
    outside = jnp.where(fourier.rows_of(keys, p)[:, None], 0, components)
    return {
        "accuracy": accuracies["all"],
        "accuracies": accuracies,
        "loss_all_classes": losses(net.all_logits, labels, is_train),
        "loss": losses(net.logits, labels, is_train),
        "W_E_frequency_norms": fourier.frequency_norms(net.W_E),
        "W_L_frequency_norms": fourier.frequency_norms(net.W_L),
        "neuron_frequency": fits.index + 1,
        "neuron_fve": fits.fve,
        "neuron_clusters": clusters,
        "neurons_unclustered": (fits.fve <= fourier.CLUSTERED).sum(),
        "neurons_always_active": net.always_active,
        "neurons_never_active": net.never_active,
        "neuron_fve_median": jnp.median(fits.fve),
        "key_frequencies": rules._asdict() | {"keys": keys, "found": rules.keys},
        "no_keys": ~keys.any(),
        **of_waves,
        "W_L_residual": _where(keys.any(), jnp.linalg.norm(outside) / jnp.linalg.norm(components)),
        "gini": {name: fourier.gini(fourier.component_norms(x)) for name, x in (("W_E", net.W_E), ("W_L", net.W_L))},
        "ablation_loss": ablations,
        "controls": jax.tree.map(_median_and_range, draws | {"ablation_loss": ablation_draws}),
        **attention_measures(net),
        "principal_components": principal_components(net.W_E),
        "sum_squared_weights": sum_squared_weights(params),
    }


all = functools.partial(jax.jit, static_argnums=0)(measure)  # compiled once per config; `jaxgrok.measures.all` reads as it should


# --- JSON -------------------------------------------------------------------------------------------------------------------


def _plain(x):
    """numpy to plain values; not a number is None, since JSON has none."""
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if np.ndim(x):
        return [_plain(value) for value in np.asarray(x)]
    value = np.asarray(x).item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(config: Config, measures: dict) -> dict:
    """One network's measures as plain values, under exactly the names of reference/wd_10-1_analysis_float64.json.

    Sets of frequencies are lists; what is per key is a dictionary by frequency, over the keys alone; None stands for a
    measure that does not exist there (no keys, no waves, not finite). Beside the reference's names: `accuracies`,
    `neuron_frequency`, `neuron_fve`, `no_keys`, `waves` (what the task's waves are waves of), `controls`,
    `attention_pattern_mean`, `principal_components` and key_frequencies `found`. `split` is the caller's to add.
    """
    m, p = jax.tree.map(np.asarray, measures), config.p
    keys = np.flatnonzero(m["key_frequencies"]["keys"]) + 1

    def per_key(x):
        return {str(k): _plain(x[k - 1]) for k in keys}

    frequency = fourier.frequency_of_row(p)
    out = m | {
        "neuron_clusters": {str(k + 1): int(n) for k, n in enumerate(m["neuron_clusters"]) if n},
        "key_frequencies": {rule: (np.flatnonzero(mask) + 1).tolist() for rule, mask in m["key_frequencies"].items()},
        **{name: per_key(m[name]) for name in ("excluded_loss_per_key", "alpha")},
        "mlp_readout_fve": {
            name: m["mlp_readout_fve"][row - 1] for row, name in enumerate(fourier.row_names(p)) if row and frequency[row] in keys
        },
        "ablation_loss": {name: x for name, x in m["ablation_loss"].items() if x is not None},
    }
    out["ablation_loss"]["remove_key_from_neurons"] = per_key(m["ablation_loss"]["remove_key_from_neurons"])
    by_head = m["attention_score_frequency"]
    if by_head is not None:
        heads = zip(by_head["frequency"], by_head["fve"], strict=True)
        out["attention_score_frequency"] = {str(h): {"frequency": k, "fve": fve} for h, (k, fve) in enumerate(heads)}
    task = make_task(config)
    out["waves"] = fourier.WAVE_ARGUMENTS[task.operation][0] if fourier.has_waves(task) else None
    return {name: None if x is None else x if isinstance(x, str) else _plain(x) for name, x in out.items()}
