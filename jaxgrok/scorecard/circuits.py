"""Measures of claims about circuits: what the networks that grokked have learned, and how it came about.

Each gives a `Finding` of an analysed sweep: of its runs that grokked, at their last checkpoints or over training.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgrok.measures import all_pairs, fourier, subjects
from jaxgrok.scorecard.findings import Finding, finding_of
from jaxgrok.scorecard.times import grokked_runs
from jaxgrok.store.events import first_held
from jaxgrok.store.results import KEYS, Results, RunRecord
from jaxgrok.tasks import modular_task

# The matrices between the embedding and the unembedding, through which every logit passes.
IN_A_ROW = ("embed.W_E", "blocks.0.attn.W_V", "blocks.0.attn.W_O", "blocks.0.mlp.W_in", "blocks.0.mlp.W_out")
TOTAL = "sum_squared_weights/total"
DEPARTED = 0.1  # of the rise of the logarithm of the excluded loss


def _series(results: Results, *names: str) -> Iterator[tuple[str, RunRecord, dict[str, np.ndarray]]]:
    """(its name, a run, {measure: [checkpoints, ...]}) of the runs that grokked, with `epoch`."""
    runs = grokked_runs(results)
    if not runs:
        return
    all_series = results.measured([record for _, record in runs], names)
    for (name, record), series in zip(runs, all_series, strict=True):
        yield name, record, subjects.flatten(series)


def _of_each(results: Results, names: tuple[str, ...], value: Callable[[RunRecord, dict[str, Any]], float]) -> Finding:
    """A value of each run that grokked, from its measures over training."""
    found = [(name, value(record, series)) for name, record, series in _series(results, *names)]
    return finding_of([value for _, value in found], [name for name, _ in found])


# --- at the last checkpoint -------------------------------------------------------------------------------------------


def final(results: Results, name: str, over: str | None = None) -> Finding:
    """A measure of each network, or its ratio to another one. Their names are paths in `measures.all`."""

    def value(_, series):
        return float(series[name][-1]) / (1.0 if over is None else float(series[over][-1]))

    return _of_each(results, (name,) if over is None else (name, over), value)


def n_keys(results: Results) -> Finding:
    """How many key frequencies each network has."""
    return _of_each(results, (KEYS,), lambda _, series: int(series[KEYS][-1].sum()))


def keys_shared(results: Results) -> Finding:
    """Of each pair of networks, the share of their keys that both have: the size of the intersection over that of the
    union."""
    keys = [(name, set(np.flatnonzero(series[KEYS][-1]) + 1)) for name, _, series in _series(results, KEYS)]
    pairs = list(itertools.combinations(keys, 2))
    values = [len(one & other) / len(one | other) if one | other else np.nan for (_, one), (_, other) in pairs]
    names = [
        f"{first.replace('seed', 'seeds')} and {second.removeprefix('seed ')}" for (first, _), (second, _) in pairs
    ]
    return finding_of(values, names, of="pairs of runs")


def gini_gained(results: Results) -> Finding:
    """How much the Gini coefficient of the components of W_E has grown in each run: 0 is as even as at the start, 1 is
    a single component."""
    return _of_each(results, ("gini/W_E",), lambda _, series: float(series["gini/W_E"][-1] - series["gini/W_E"][0]))


def neurons_in_clusters(results: Results) -> Finding:
    """The share of each network's neurons in the cluster of a key: more than 85 % of the variance in its frequency."""

    def value(_, series):
        clusters, keys = series["neuron_clusters"][-1], series[KEYS][-1]
        return float(clusters[keys].sum()) / series["neuron_frequency"].shape[-1]

    return _of_each(results, (KEYS, "neuron_clusters", "neuron_frequency"), value)


def frequencies_with_cluster(results: Results) -> Finding:
    """The share of all frequencies that have a cluster of neurons."""
    return _of_each(results, ("neuron_clusters",), lambda _, series: float((series["neuron_clusters"][-1] > 0).mean()))


def clusters_of_size(results: Results, least: int, most: int) -> Finding:
    """The share of each network's clusters that have at least `least` and at most `most` neurons."""

    def value(_, series):
        sizes = series["neuron_clusters"][-1]
        sizes = sizes[sizes > 0]
        return float(((sizes >= least) & (sizes <= most)).mean()) if len(sizes) else np.nan

    return _of_each(results, ("neuron_clusters",), value)


def circle_share(results: Results) -> Finding:
    """The share of the first two principal components of the embedding that lies in one frequency: the smaller of the
    two; 0 if they have different ones."""
    share, frequency = (f"principal_components/{name}" for name in ("share", "frequency"))

    def value(_, series):
        one, other = series[frequency][-1][:2]
        return float(series[share][-1][:2].min()) if one == other else 0.0

    return _of_each(results, (share, frequency), value)


def norms_apart(results: Results) -> Finding:
    """The largest over the smallest sum of squared weights of the five matrices before the unembedding."""
    names = tuple(f"sum_squared_weights/{name}" for name in IN_A_ROW)

    def value(_, series):
        sizes = [float(series[name][-1]) for name in names]
        return max(sizes) / min(sizes)

    return _of_each(results, names, value)


# --- over training ----------------------------------------------------------------------------------------------------


def excluded_loss_departs(results: Results) -> Finding:
    """When the excluded loss, on train pairs, begins to rise, over when the test loss begins to fall.

    While a network memorises, its excluded loss falls. It has begun to rise once its logarithm has risen for good by a
    tenth of the way from its lowest to its last value; the test loss has begun to fall at a tenth likewise.
    """

    def value(record, series):
        start = results.timing(record).by("drop_10")
        if start is None:
            return np.nan
        log_loss = np.log(series["excluded_loss/train"])
        lowest = int(np.argmin(log_loss))
        risen = log_loss - log_loss[lowest] > DEPARTED * (log_loss[-1] - log_loss[lowest])
        index = first_held(risen & (np.arange(len(risen)) > lowest))
        return np.inf if index is None else float(series["epoch"][index]) / start

    return _of_each(results, ("excluded_loss/train",), value)


def restricted_split_apart(results: Results) -> Finding:
    """The restricted loss on the test pairs over that on the train pairs: the ratio furthest from 1, of all checkpoints
    of a run, as a factor of at least 1."""

    def value(_, series):
        ratios = np.log(series["restricted_loss/test"]) - np.log(series["restricted_loss/train"])
        return float(np.exp(np.abs(ratios).max()))

    return _of_each(results, ("restricted_loss/test", "restricted_loss/train"), value)


def weights_fall_twice(results: Results) -> Finding:
    """By how much the weights fall faster in two stages than between them: the slower of the two falls minus what lies
    between.

    A rate is how much the logarithm of the sum of squared weights falls in 1,000 epochs. The first fall is the first
    quarter of the interpolation, from the peak of the test loss to a tenth of the fall of the restricted loss. Between
    is the rest of it. The second fall is from there to half of the fall of the test loss.
    """

    def value(record, series):
        timing = results.timing(record)
        peak, start, end = (timing.by(event) for event in ("test_loss_peak", "restricted_10", "drop_50"))
        if peak is None or start is None or end is None or not peak < start < end:
            return np.nan
        at = [peak, peak + (start - peak) / 4, start, end]
        levels = np.interp(at, series["epoch"], np.log(series[TOTAL]))
        first, between, second = -1000 * np.diff(levels) / np.diff(at)
        return float(min(first, second) - between)

    return _of_each(results, (TOTAL,), value)


def attention_to_equals_rises(results: Results) -> Finding:
    """The epoch at which the most that any head attends to "=" has half of its last value, for good."""
    name = "attention_to_equals_mean"

    def value(_, series):
        most = series[name].max(axis=1)
        settled = series["epoch"] > series["epoch"][-1] / 10  # attention is even at the start
        index = first_held((most > most[-1] / 2) & settled)
        return np.inf if index is None else float(series["epoch"][index])

    return _of_each(results, (name,), value)


# --- from the weights -------------------------------------------------------------------------------------------------


def _last_networks(results: Results) -> Iterator[tuple[str, RunRecord, dict[str, Any]]]:
    """(its name, a run, its measures at its last checkpoint, with its `params`) of the runs that grokked."""
    for name, record, series in _series(results, KEYS, "neuron_frequency", "neuron_fve"):
        measures: dict[str, Any] = {measure: x[-1] for measure, x in series.items()}
        yield name, record, measures | {"params": results.network(record, int(measures["epoch"]))}


def linear_terms(results: Results) -> Finding:
    """The share of the logits' energy that is in waves of a alone or of b alone, over that share of the neurons'.

    These are the top row and the left column of the two-dimensional transform. The energy is that about the mean.
    """
    values, names = [], []
    for name, record, found in _last_networks(results):
        net = all_pairs.run_network(subjects.config_for_analysis(record.config), found["params"])
        values.append(_linear_share(net.logits) / _linear_share(net.neurons))
        names.append(name)
    return finding_of(values, names)


def _linear_share(of_pairs: Float[Any, "P P n"]) -> float:
    energies = (fourier.transform2(jnp.asarray(of_pairs)) ** 2).sum(axis=-1).at[0, 0].set(0)
    return float((energies[0].sum() + energies[:, 0].sum()) / energies.sum())


def two_directions(results: Results) -> Finding:
    """The share of W_L on the neurons of a key's cluster that lies in the cosine and the sine of this key over the
    classes: the smallest of each network's keys."""
    values, names = [], []
    for name, record, found in _last_networks(results):
        W_L = all_pairs.neurons_to_logits(record.config, found["params"])
        energies = np.asarray(fourier.transform(W_L)) ** 2  # of components over the classes, for each neuron
        shares = []
        for k in np.flatnonzero(found[KEYS]) + 1:
            cluster = (found["neuron_frequency"] == k) & (found["neuron_fve"] > fourier.CLUSTERED)
            if cluster.any():
                shares.append(energies[2 * k - 1 : 2 * k + 1, cluster].sum() / energies[:, cluster].sum())
        values.append(min(shares, default=np.nan))
        names.append(name)
    return finding_of(values, names)


def start_on_final_directions(results: Results) -> Finding:
    """The initial embedding, projected on the two directions in which the last one holds each key: the share of its
    energy at this key's frequency, over the share that chance gives, as the mean over the keys of a network."""
    values, names = [], []
    for name, record, found in _last_networks(results):
        group, keys = modular_task(record.config).group, np.flatnonzero(found[KEYS]) + 1
        start, end = (
            np.asarray(params["embed"]["W_E"])[group]
            for params in (results.network(record, results.checkpoint_epochs(record)[0]), found["params"])
        )
        components = np.asarray(fourier.transform(end))
        shares = []
        for k in keys:
            directions, _ = np.linalg.qr(components[2 * k - 1 : 2 * k + 1].T)
            projected = start @ directions
            energies = np.asarray(fourier.frequency_energies(projected - projected.mean(axis=0))).sum(axis=-1)
            shares.append(energies[k - 1] / energies.sum())
        values.append(float(np.mean(shares)) * (len(group) - 1) / 2 if shares else np.nan)
        names.append(name)
    return finding_of(values, names)


MEASURES = (
    final,
    n_keys,
    keys_shared,
    gini_gained,
    neurons_in_clusters,
    frequencies_with_cluster,
    clusters_of_size,
    circle_share,
    norms_apart,
    excluded_loss_departs,
    restricted_split_apart,
    weights_fall_twice,
    attention_to_equals_rises,
    linear_terms,
    two_directions,
    start_on_final_directions,
)
