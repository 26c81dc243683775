"""Every measure of one checkpoint of a modular network (spec: MEASURES.md), as one pytree of fixed shapes.

    config = jaxgrok.Config()                                   # p = 113, add, the transformer
    split = measures.split_of(config, frac=0.3, seed=0)
    keys = measures.find_keys(config, final_params)             # find the keys in a run's last checkpoint ...
    m = measures.all(config, params, split, keys)               # ... and use them for all its checkpoints
    measures.to_json(config, m)

`measure` takes one network. To measure many, `jax.vmap` it over parameters, splits and keys if memory allows (it takes
0.1 GB a network at p = 113 on a CPU, and 0.2 GB in float64), or `jax.lax.map` it.

The result is a nested dictionary with the names of reference/wd_10-1_analysis_float64.json. A measure that the JSON
gives for each key is an array over every frequency k = 1 .. K = p // 2 here. Measures that need keys are NaN if there
are none, and measures that need waves are NaN if the task has none. A part that the architecture does not have is None:
the MLP network has neither attention nor a skip connection.

With a norm, W_E, W_L and the logits are read as they are. A factor of the norm could be folded into the weights that
follow it (W_in, W_U); W_L is without it. Ablations of parts of the network are NaN, because the last norm makes the
logits no sum of these parts.

All losses are over the p number classes, without the class of "=". Only `loss_all_classes` includes it.
Shapes: P residue, F Fourier row, K frequency, M neurons, H heads, S positions, D residual, C classes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrok.config import Config
from jaxgrok.measures import clock_pizza, fourier
from jaxgrok.measures.ablations import (
    DRAWS,
    Controls,
    ablations,
    at_singles,
    draw_controls,
    losses_of_key_blocks,
    median_and_range,
    where_known,
)
from jaxgrok.measures.all_pairs import (
    Network,
    Split,
    Stream,
    group_first,
    losses,
    mask_of_train,
    over_splits,
    run_network,
    split_of,
)
from jaxgrok.nets import interop
from jaxgrok.nets.loss import cross_entropy, is_correct
from jaxgrok.nets.precision import at_precision
from jaxgrok.tasks import ModularTask, modular_task

__all__ = ["SCHEMA", "Split", "all", "find_keys", "measure", "plain", "split_of", "to_json"]

# The version of what `measure` returns. Raise it whenever a measure is added, removed or defined anew: saved measures
# of another version are then computed again.
SCHEMA = 4

# --- progress measures, from the logits alone -------------------------------------------------------------------------


class Waves(NamedTuple):
    """Logits L as functions of the wave argument s of the task.

    Attributes:
        s: the argument on each pair; it is concrete, never traced.
        mean: the mean of L over all pairs, for each class.
        levels: the mean of L over the pairs of each value of s.
        alpha: the coefficients of cos(w_k (s - c)), where c is the class.
        total: the sum of squares of L minus its overall mean.
    """

    s: Int[np.ndarray, "P P"]
    mean: Float[Array, "C"]
    levels: Float[Array, "P C"]
    alpha: Float[Array, "K"]
    total: Float[Array, ""]


def waves_of(logits: Float[Array, "P P P"], s: Int[np.ndarray, "P P"]) -> Waves:
    """The wave analysis of logits for the argument s (see `fourier.wave_argument`).

    alpha_k is the ordinary least squares coefficient of cos(w_k (s - c)) over all pairs and classes. The columns of
    that regression are orthogonal to one another and to the constant, so each coefficient can be computed alone:
    averages over s - c = d and one DFT are enough.
    """
    p = len(s)
    levels = fourier.average_over_levels(logits, s)
    d = np.arange(p)
    by_difference = levels[(d[:, None] + d) % p, d].mean(axis=1)
    overall = by_difference.mean()
    cos_norms = jnp.asarray(np.linalg.norm(_cosines(p), axis=0), logits.dtype)
    alpha = fourier.by_frequency(fourier.transform(by_difference - overall))[:, 0] / cos_norms
    total = ((logits - overall) ** 2).sum(axis=2).sum(axis=1).sum()
    return Waves(s, levels.mean(axis=0), levels, alpha, total)


def _cosines(p: int) -> Float[np.ndarray, "P K"]:
    """cos(w_k d) for every difference d, not normalised."""
    return np.cos(2 * np.pi / p * (np.outer(np.arange(p), np.arange(1, fourier.n_frequencies(p) + 1)) % p))


def restricted_loss(
    waves: Waves, is_train: Bool[Array | np.ndarray, "P P"], keys: Bool[Array | np.ndarray, "K"]
) -> dict[str, Float[Array, ""]]:
    """The loss over {"all", "train", "test"} pairs of P_S L plus the mean of L over pairs, a vector over classes.

    The post calls it the trig loss. The answer of a pair is its s, so it takes only one loss per value of s.
    Limit: the average over the pairs of one s carries the labels of the train pairs to the test pairs. With many keys
    this loss is therefore low even in a network that only memorises.
    """
    logits = fourier.keep_frequencies(waves.levels, keys) + waves.mean[None]
    return over_splits(cross_entropy(logits, jnp.arange(len(logits)))[waves.s], is_train)


def excluded_loss(
    logits: Float[Array, "P P P"],
    waves: Waves,
    labels: Int[Array | np.ndarray, "P P"],
    is_train: Bool[Array | np.ndarray, "P P"],
    keys: Bool[Array | np.ndarray, "K"],
) -> dict[str, Float[Array, ""]]:
    """The loss over {"all", "train", "test"} pairs of L - P_S L. The constant stays."""
    return losses(logits - fourier.keep_frequencies(waves.levels, keys)[waves.s], labels, is_train)


@at_precision("highest")
def excluded_loss_of_each(logits: Float[Array, "P P P"], waves: Waves, split: Split) -> Float[Array, "K"]:
    """The train loss with one frequency excluded, for every frequency."""
    p = len(waves.s)
    train = jnp.minimum(jnp.asarray(split.train), p * p - 1)
    weight = (jnp.asarray(split.train) < p * p).astype(logits.dtype)
    logits, s = logits.reshape(p * p, p)[train], jnp.asarray(waves.s).ravel()[train]
    labels = jnp.asarray(split.labels)[train]
    rows = jnp.asarray(fourier.by_frequency(fourier.basis(p)), logits.dtype)

    def of_frequency(cos_and_sin):
        wave = cos_and_sin.T @ (cos_and_sin @ waves.levels)
        return (weight * cross_entropy(logits - wave[s], labels)).sum() / weight.sum()

    return jax.lax.map(of_frequency, rows)


@at_precision("highest")
def wave_fit(waves: Waves, keys: Bool[Array | np.ndarray, "K"]) -> dict[str, Float[Array, ""]]:
    """The least squares fit of L by the sum over keys of alpha_k cos(w_k (s - c)).

    `logit_fve` is the fraction of the variance that it explains, `logit_approximation_loss` the loss of the fit itself.
    """
    p = len(waves.s)
    kept = jnp.where(keys, waves.alpha, 0)
    cos = _cosines(p)
    fit = jnp.asarray(cos, kept.dtype) @ kept
    squared_norms = jnp.asarray(p**2 * (cos**2).sum(axis=0), kept.dtype)
    fve = (kept**2 * squared_norms).sum() / waves.total
    # The fit is a function of s - c with the answer at 0, so every pair has the same loss.
    return {"logit_fve": fve, "logit_approximation_loss": cross_entropy(fit, jnp.int32(0))}


@at_precision("highest")
def mlp_readout_fve(mlp_logits: Float[Array, "P P P"], s: Int[np.ndarray, "P P"]) -> Float[Array, "F-1"]:
    """The fraction of the variance of (F W_L)_r . MLP(a, b) that the matching wave of s explains, for each r > 0.

    It is the r-th component of the logits that the neurons write, over classes.
    """
    p = len(s)
    readout = mlp_logits @ jnp.asarray(fourier.basis(p)[1:], mlp_logits.dtype).T
    on_wave = fourier.transform(fourier.average_over_levels(readout, s))[1:].diagonal() * math.sqrt(p)
    total = ((readout - readout.mean(axis=1).mean(axis=0)[None, None]) ** 2).sum(axis=1).sum(axis=0)
    return on_wave**2 / total


# --- attention, embedding, weights ------------------------------------------------------------------------------------


def attention_measures(stream: Stream | None, has_equals: bool = True) -> dict[str, Array | dict[str, Array] | None]:
    """The attention in the last block from the position that is read; None for each measure that does not exist.

    They are the mean pattern [H, S], the part of it that goes to "=" itself [H], if there is one, and the best
    frequency of each head's score [H]. That score is the one to a minus the one to b, averaged over b and centred,
    which leaves a function of a. `fve` is the share of its energy at the best frequency.
    """
    if stream is None:
        return dict.fromkeys(("attention_pattern_mean", "attention_to_equals_mean", "attention_score_frequency"))
    mean_pattern = stream.pattern.mean(axis=1).mean(axis=0)
    score = (stream.scores[..., 0] - stream.scores[..., 1]).mean(axis=1)
    energies = fourier.frequency_energies(score - score.mean(axis=0)[None])
    fve = energies.max(axis=0) / energies.sum(axis=0)
    return {
        "attention_pattern_mean": mean_pattern,
        "attention_to_equals_mean": mean_pattern[:, -1] if has_equals else None,
        "attention_score_frequency": {"frequency": energies.argmax(axis=0) + 1, "fve": fve},
    }


def principal_components(W_E: Float[Array, "P D"]) -> dict[str, Array]:
    """For each principal component of the centred embedding: its share of the variance, its best frequency, and the
    share of its energy at that frequency.

    The embedding forms circles in the first two components if they are the cos and sin of one frequency.
    """
    scores, sizes, _ = jnp.linalg.svd(W_E - W_E.mean(axis=0)[None], full_matrices=False)
    energies = fourier.frequency_energies(scores)
    exists = sizes > len(W_E) * jnp.finfo(W_E.dtype).eps * sizes[0]
    return {
        "variance": sizes**2 / (sizes**2).sum(),
        "frequency": energies.argmax(axis=0) + 1,
        "share": jnp.where(exists, energies.max(axis=0), jnp.nan),
    }


def sum_squared_weights(params: dict) -> dict[str, Float[Array, ""]]:
    """The sum of squares of every parameter, by its TransformerLens name, and their `total`."""
    squares = {name: (x**2).sum() for name, x in interop.by_name(params).items()}
    return squares | {"total": functools.reduce(jnp.add, squares.values())}


# --- everything -------------------------------------------------------------------------------------------------------


def _wave_measures(
    logits: Float[Array, "P P P"], waves: Waves, split: Split, is_train, keys, controls: Controls
) -> tuple[dict, dict]:
    """The progress measures that need the wave argument, and the draws of their controls."""
    labels = split.labels.reshape(is_train.shape)
    each = excluded_loss_of_each(logits, waves, split)

    def of_set(mask):
        excluded = excluded_loss(logits, waves, labels, is_train, mask)
        return {
            "restricted_loss": restricted_loss(waves, is_train, mask),
            "excluded_loss": {part: excluded[part] for part in ("train", "all")},
            **wave_fit(waves, mask),
        }

    measured = where_known(keys.any(), of_set(keys)) | {
        "excluded_loss_per_key": each,
        "excluded_loss_max_over_frequencies": each.max(),
        "alpha": waves.alpha,
    }
    draws = where_known(controls.sets.any(), jax.lax.map(of_set, controls.sets))
    return measured, draws | {"excluded_loss_per_key": at_singles(each, controls.singles)}


def _of_network(net: Network, split: Split, is_train, keys, controls: Controls, s) -> tuple[dict, dict]:
    """`_wave_measures` of a network, and the share of its MLP's readout that the waves explain."""
    of_logits, draws = _wave_measures(net.logits, waves_of(net.logits, s), split, is_train, keys, controls)
    return of_logits | {"mlp_readout_fve": mlp_readout_fve(net.mlp_logits, s)}, draws


def _where_waves(task: ModularTask, of_argument: Callable[[np.ndarray], Any]) -> Any:
    """What of_argument returns for the task's wave argument, with NaN for every number if the task has none."""
    if fourier.has_waves(task):
        return of_argument(fourier.wave_argument(task))
    P = len(task.group)
    any_argument = np.indices((P, P)).sum(axis=0) % P  # any gives the shapes
    shapes = jax.eval_shape(lambda: of_argument(any_argument))
    return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)


def _of_logits_alone(ablated: dict[str, Any]) -> dict[str, Any]:
    """The ablation of the logits themselves, and NaN for those of parts of the network."""
    unknown = where_known(jnp.zeros((), bool), ablated)
    return unknown | {"keep_key_blocks": ablated["keep_key_blocks"]}


def _rules(net: Network, fits: fourier.NeuronFits) -> fourier.KeyRules:
    W_L_norms, W_E_norms = fourier.frequency_norms(net.W_L), fourier.frequency_norms(net.W_E)
    return fourier.key_frequencies(W_L_norms, W_E_norms, fourier.cluster_sizes(fits, len(W_L_norms)))


@functools.partial(jax.jit, static_argnums=0)
@at_precision("highest")
def find_keys(config: Config, params: dict) -> Bool[Array, "K"]:
    """The key frequencies of one network, as a mask. Compiled once per config."""
    net = run_network(config, params)
    return _rules(net, fourier.fit_neurons(net.of_neurons)).keys


@at_precision("highest")
def measure(
    config: Config,
    params: dict,
    split: Split,
    keys: Bool[Array | np.ndarray, "K"] | None = None,
    seed: int | Int[Array, ""] = 0,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Every measure of one network, in the form that the module's docstring describes.

    Pure: `jit` it with a static config, and `vmap` it over the rest.

    keys: the key frequencies to use, for instance those of the run's last checkpoint. None means those found in this
    network. The result holds both, as masks: key_frequencies `keys` and `found`.
    seed: of the random controls. The result holds the median and range of their draws under `controls`.
    draws: of each control. They take half of the time; with 0 there are none, and `controls` is NaN.

    Raises BadInput if the task is not modular.
    """
    task = modular_task(config)
    p = len(task.group)
    net = run_network(config, params)
    labels = split.labels.reshape(p, p)
    is_train = mask_of_train(split, p)
    fits = fourier.fit_neurons(net.of_neurons)
    clusters = fourier.cluster_sizes(fits, p // 2)
    rules = _rules(net, fits)
    keys = rules.keys if keys is None else jnp.asarray(keys)
    controls = draw_controls(seed, keys, clusters, draws)
    ablated = ablations(net, fits, labels, keys, controls)
    if config.norm != "none":  # the logits are no sum of parts
        ablated = tuple(_of_logits_alone(of) for of in ablated)
    losses_ablated, ablation_draws = ablated
    of_waves, wave_draws = _where_waves(task, lambda s: _of_network(net, split, is_train, keys, controls, s))
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
        "neurons_always_active": (net.least > 0).sum(),
        "neurons_never_active": (net.greatest <= 0).sum(),
        "neuron_fve_median": jnp.median(fits.fve),
        "key_frequencies": rules._asdict() | {"keys": keys, "found": rules.keys},
        "no_keys": ~keys.any(),
        **of_waves,
        "W_L_residual": where_known(keys.any(), jnp.linalg.norm(outside) / jnp.linalg.norm(components)),
        "gini": {name: fourier.gini(fourier.component_norms(x)) for name, x in (("W_E", net.W_E), ("W_L", net.W_L))},
        "ablation_loss": losses_ablated,
        "controls": jax.tree.map(median_and_range, wave_draws | {"ablation_loss": ablation_draws}),
        **attention_measures(net.stream, task.has_equals),
        "principal_components": principal_components(net.W_E),
        "sum_squared_weights": sum_squared_weights(params),
        "gradient_symmetricity": clock_pizza.gradient_symmetricity(config, params),
        "distance_irrelevance": clock_pizza.distance_irrelevance(config, net.logits, labels),
    }


# `measure`, compiled once per config and number of draws. It shadows a builtin, so that callers can write
# `jaxgrok.measures.all`.
all = functools.partial(jax.jit, static_argnums=(0, 5))(measure)


@functools.partial(jax.jit, static_argnums=0)
@at_precision("highest")
def of_logits(
    config: Config, logits: Float[Array | np.ndarray, "P P C"], split: Split, seed: int | Int[Array, ""] = 0
) -> dict[str, Any]:
    """Every measure that needs the logits alone, of any architecture, with the names that `measure` gives them.

    logits: on all pairs (a, b), for the p number classes, or for p + 1 with "=" last. seed: of the random controls.

    Without weights the keys are found by the rule of W_L, applied to the square root of |alpha|: at least a quarter of
    the largest, and 3 times the median. The root, because a key's logits are a product of activations and of W_L, which
    both grow with the key.

    Raises BadInput if the task is not modular.
    """
    task = modular_task(config)
    p = len(task.group)
    logits = group_first(task, jnp.asarray(logits)[task.group[:, None], task.group])
    numbers, labels, is_train = logits[..., :p], split.labels.reshape(p, p), mask_of_train(split, p)
    no_clusters = jnp.zeros(p // 2, int)

    def of_argument(s):
        waves = waves_of(numbers, s)
        size = jnp.sqrt(jnp.abs(waves.alpha))
        keys = fourier.key_frequencies(size, size, no_clusters).keys
        controls = draw_controls(seed, keys, no_clusters)
        measured, draws = _wave_measures(numbers, waves, split, is_train, keys, controls)
        kept, kept_draws = losses_of_key_blocks(numbers, labels, keys, controls)
        ablated = {"ablation_loss": {"keep_key_blocks": kept}}
        controlled = jax.tree.map(median_and_range, draws | {"ablation_loss": {"keep_key_blocks": kept_draws}})
        return measured | ablated | {"controls": controlled}, keys.astype(numbers.dtype)

    measured, keys = _where_waves(task, of_argument)
    accuracies = over_splits(is_correct(numbers, labels).astype(numbers.dtype), is_train)
    return measured | {
        "accuracy": accuracies["all"],
        "accuracies": accuracies,
        "loss": losses(numbers, labels, is_train),
        "loss_all_classes": losses(logits, labels, is_train),
        "key_frequencies": {"keys": keys > 0},
        "no_keys": ~(keys > 0).any(),
        "distance_irrelevance": clock_pizza.distance_irrelevance(config, numbers, labels),
    }


# --- JSON -------------------------------------------------------------------------------------------------------------


def plain(x: Any) -> Any:
    """Arrays, and dictionaries of them, as plain Python values. NaN and infinity become None, for JSON has neither."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if np.ndim(x):
        return [plain(value) for value in np.asarray(x)]
    value = np.asarray(x).item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(config: Config, measures: dict[str, Any]) -> dict[str, Any]:
    """One network's measures as plain values, with exactly the names of reference/wd_10-1_analysis_float64.json.

    Sets of frequencies are lists. A measure that exists for each key is a dictionary from key frequency to value. None
    means that the measure does not exist here (no keys, no waves, or not finite).

    For products and quotients modulo a prime, `group` lists the numbers in the order that frequencies refer to.

    Names beyond those of the reference: `accuracies`, `neuron_frequency`, `neuron_fve`, `no_keys`, `controls`, `waves`
    (the argument of the task's waves), `attention_pattern_mean`, `principal_components`, `gradient_symmetricity`,
    `distance_irrelevance` and key_frequencies `found`.
    The caller adds `split`.
    """
    m, p = jax.tree.map(np.asarray, measures), len(modular_task(config).group)
    per_key, keys = _by_key(m)
    rows = [(row, name) for row, name in enumerate(fourier.row_names(p)) if fourier.frequency_of_row(p)[row] in keys]
    out = m | {
        "neuron_clusters": {str(k + 1): int(n) for k, n in enumerate(m["neuron_clusters"]) if n},
        **_key_measures(m),
        "mlp_readout_fve": {name: m["mlp_readout_fve"][row - 1] for row, name in rows},
        "ablation_loss": {name: x for name, x in m["ablation_loss"].items() if x is not None},
    }
    out["ablation_loss"]["remove_key_from_neurons"] = per_key(m["ablation_loss"]["remove_key_from_neurons"])
    by_head = m["attention_score_frequency"]
    if by_head is not None:
        heads = zip(by_head["frequency"], by_head["fve"], strict=True)
        out["attention_score_frequency"] = {str(h): {"frequency": k, "fve": fve} for h, (k, fve) in enumerate(heads)}
    return _with_waves(config, out)


def logits_to_json(config: Config, measures: dict[str, Any]) -> dict[str, Any]:
    """What `of_logits` returns as plain values, in the form of `to_json`."""
    m = jax.tree.map(np.asarray, measures)
    return _with_waves(config, m | _key_measures(m))


def _by_key(m: dict[str, Any]) -> tuple[Callable[[np.ndarray], dict[str, Any]], list[int]]:
    """(what makes an array over frequencies a dictionary over keys, the keys)."""
    keys = fourier.frequencies_of(m["key_frequencies"]["keys"])
    return lambda x: {str(k): plain(x[k - 1]) for k in keys}, keys


def _key_measures(m: dict[str, Any]) -> dict[str, Any]:
    """The sets of frequencies as lists, and the measures that exist for each key as dictionaries."""
    per_key, _ = _by_key(m)
    sets = {rule: fourier.frequencies_of(mask) for rule, mask in m["key_frequencies"].items()}
    return {"key_frequencies": sets, **{name: per_key(m[name]) for name in ("excluded_loss_per_key", "alpha")}}


def _with_waves(config: Config, out: dict[str, Any]) -> dict[str, Any]:
    """Plain values, with the argument of the task's waves."""
    task = modular_task(config)
    out["waves"] = fourier.WAVE_ARGUMENTS[task.operation][0] if fourier.has_waves(task) else None
    if task.is_multiplicative:
        out["group"] = task.group
    return {name: x if x is None or isinstance(x, str) else plain(x) for name, x in out.items()}
