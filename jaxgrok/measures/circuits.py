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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import Config
from jaxgrok.measures import fourier
from jaxgrok.measures.ablations import Controls, ablations, draw_controls, median_and_range, of_singles, where_known
from jaxgrok.measures.all_pairs import Network, Split, losses, over_splits, run_network, split_of
from jaxgrok.nets import interop
from jaxgrok.nets.loss import cross_entropy, is_correct
from jaxgrok.tasks import make_task

__all__ = ["Split", "all", "find_keys", "measure", "split_of", "to_json"]

# --- progress measures, from the logits alone -------------------------------------------------------------------------------


class Waves(NamedTuple):
    """Logits L as functions of the task's waves.

    s [P, P], concrete: the argument of the waves on each pair. mean [C]: of L over all pairs, per class. levels [P, C]:
    the mean of L over the pairs of each s. alpha [K]: the coefficients of cos(w_k (s - c)). total: the energy of L about
    its overall mean.
    """

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


def mlp_readout_fve(neurons, W_L, s):
    """[F - 1] for each row r > 0 of F W_L: the share of the variance of (F W_L)_r . MLP(a, b) that the matching wave of s explains."""
    p = len(s)
    readout = neurons @ fourier.transform(W_L)[1:].T
    on_wave = fourier.transform(fourier.average_over_levels(readout, s))[1:].diagonal() * math.sqrt(p)
    total = ((readout - readout.mean(axis=1).mean(axis=0)) ** 2).sum(axis=1).sum(axis=0)
    return on_wave**2 / total


# --- attention, embedding, weights ----------------------------------------------------------------------------------------


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
    squares = {name: (x**2).sum() for name, x in interop.by_name(params).items()}
    return squares | {"total": sum(squares.values())}


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

    measured = where_known(keys.any(), of_set(keys)) | {
        "excluded_loss_per_key": each,
        "excluded_loss_max_over_frequencies": each.max(),
        "alpha": waves.alpha,
        "mlp_readout_fve": mlp_readout_fve(net.neurons, net.W_L, s),
    }
    draws = where_known(controls.sets.any(), jax.lax.map(of_set, controls.sets))
    return measured, draws | {"excluded_loss_per_key": of_singles(each, controls.singles)}


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
    losses_ablated, ablation_draws = ablations(net, of_neurons, fits, labels, keys, controls)
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
        "W_L_residual": where_known(keys.any(), jnp.linalg.norm(outside) / jnp.linalg.norm(components)),
        "gini": {name: fourier.gini(fourier.component_norms(x)) for name, x in (("W_E", net.W_E), ("W_L", net.W_L))},
        "ablation_loss": losses_ablated,
        "controls": jax.tree.map(median_and_range, draws | {"ablation_loss": ablation_draws}),
        **attention_measures(net),
        "principal_components": principal_components(net.W_E),
        "sum_squared_weights": sum_squared_weights(params),
    }


all = functools.partial(jax.jit, static_argnums=0)(measure)  # compiled once per config; `jaxgrok.measures.all` reads as it should


# --- JSON -------------------------------------------------------------------------------------------------------------------


def plain(x):
    """numpy to plain values; not a number is None, since JSON has none."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if np.ndim(x):
        return [plain(value) for value in np.asarray(x)]
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
    keys = fourier.frequencies_of(m["key_frequencies"]["keys"])

    def per_key(x):
        return {str(k): plain(x[k - 1]) for k in keys}

    frequency = fourier.frequency_of_row(p)
    out = m | {
        "neuron_clusters": {str(k + 1): int(n) for k, n in enumerate(m["neuron_clusters"]) if n},
        "key_frequencies": {rule: fourier.frequencies_of(mask) for rule, mask in m["key_frequencies"].items()},
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
    return {name: None if x is None else x if isinstance(x, str) else plain(x) for name, x in out.items()}
