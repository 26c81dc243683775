"""The tables and the figure of seeds.md: which frequencies networks keep, and what predicts them.

python docs/results/seeds.py RUN_DIR [NETWORKS_CSV TIMINGS_CSV]

RUN_DIR: an analysed sweep of one cell. The two tables: of other seeds of the same setting, whose checkpoints need not
be at hand.
"""

import csv
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from scipy.stats import bootstrap, mannwhitneyu, spearmanr

import jaxgrok
from jaxgrok.config import Run
from jaxgrok.figures.style import TEST, TRAIN, make_figure
from jaxgrok.measures import fourier, subjects
from jaxgrok.stats import Arrival, median
from jaxgrok.store.results import KEYS
from jaxgrok.tables.write import markdown
from jaxgrok.training.run import make_program

DRAWS = 100_000  # of random key sets
HIGH = 0.9  # an AUROC that predicts the keys well
SHOWN = (0, 10, 20, 40, 80, 160, 320, 800, 2_000, 4_000)  # epochs with a checkpoint
SPECTRA = ("W_E_frequency_norms", "W_L_frequency_norms")


def auroc(scores, is_key):
    """The probability that a key has a larger score than another frequency; ties count half."""
    return mannwhitneyu(scores[is_key], scores[~is_key]).statistic / (is_key.sum() * (~is_key).sum())


def initial_norms(config, seed):
    """The norm of each frequency in the initial W_E of a seed."""
    params = jax.jit(make_program(config).init)(Run(config, seed, frac=0.3).hyper()).params
    return np.asarray(fourier.frequency_norms(params["embed"]["W_E"][: config.p]))


def networks_of(results):
    """{seed: (keys, grokked by, {spectrum: [checkpoint, frequency]}, epochs)} of the runs that grokked."""
    (cell,) = results.cells
    found = {}
    for record, timing in zip(cell.records, cell.timings, strict=True):
        if timing.by("grokked") is not None and timing.settled:
            (series,) = results.measured([record], (KEYS, *SPECTRA))
            flat = subjects.flatten(series)
            keys = fourier.frequencies_of(flat[KEYS][-1])
            found[record.seed] = keys, timing.by("grokked"), {name: flat[name] for name in SPECTRA}, flat["epoch"]
    return found


def kept_networks(path, timings):
    """{seed: (keys, grokked by)} of a networks.csv and the timings.csv of the same runs."""
    rows, timings = (list(csv.DictReader(file.read_text().splitlines())) for file in (path, timings))
    grokked = {row["seed"]: int(row["grokked_by"]) for row in timings}
    return {int(row["seed"]): ([int(k) for k in row["keys"].split()], grokked[row["seed"]]) for row in rows}


def folded(k, p):
    """The frequency between 1 and p / 2 that k is modulo p, up to its sign."""
    return min(k % p, -k % p)


def doubled(p, factor):
    """For each frequency, the place of `factor` times it."""
    return np.array([folded(factor * k, p) - 1 for k in range(1, p // 2 + 1)])


def random_masks(sizes, K, rng):
    """[draw, network, frequency]: for each network, as many random frequencies as it has keys."""
    ranks = rng.random((DRAWS, len(sizes), K), np.float32).argsort(axis=2).argsort(axis=2)
    return ranks < np.array(sizes)[:, None]


def squares(masks):
    """The sum over frequencies of the squared number of networks that keep it: large if some are preferred."""
    return (masks.sum(axis=-2) ** 2).sum(axis=-1)


def most(masks):
    """In how many networks the most frequent frequency is."""
    return masks.sum(axis=-2).max(axis=-1)


def multiples(masks, places):
    """The number of pairs of keys in one network of which one is at the place of the other."""
    return (masks & masks[..., places]).sum(axis=(-2, -1))


def with_interval(values):
    """The mean and its bootstrap interval, 95 %, over seeds."""
    values = np.asarray(values, float)
    interval = bootstrap([values], np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{values.mean():.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def with_range(values):
    """The median and the range over runs."""
    return f"{np.median(values):.2f} ({np.min(values):.2f} - {np.max(values):.2f})"


def main(run_dir, *tables):
    results = jaxgrok.load(run_dir)
    config = results.runs[0].config
    p, K = config.p, config.p // 2
    networks = networks_of(results)
    known = {seed: (keys, at) for seed, (keys, at, _, _) in networks.items()}
    if tables:
        known = kept_networks(*map(Path, tables)) | known
    all_keys, times = [keys for keys, _ in known.values()], np.array([at for _, at in known.values()])
    rows = [[seed, f"{at:,}", " ".join(map(str, keys))] for seed, (keys, at) in sorted(known.items())]
    print(markdown(["seed", "grokked", "keys"], rows))
    print(f"\ngrokked: {median([Arrival(at, True) for at in times])}, {times.min():,} - {times.max():,}")
    at_160 = [results.curves_of(record) for record in results.cells[0].records]
    accuracy = [100 * curves.test_acc[np.searchsorted(curves.epoch_eval, 160)] for curves in at_160]
    print(f"test accuracy at epoch 160: {min(accuracy):.1f} to {max(accuracy):.1f} %")

    found = np.array([fourier.mask_of(keys, p) for keys in all_keys])
    by_chance = random_masks([len(keys) for keys in all_keys], K, np.random.default_rng(0))
    tests = {
        "sum of squared counts": squares,
        "networks that keep the most frequent frequency": most,
        "pairs in one network, one twice the other": partial(multiples, places=doubled(p, 2)),
        "pairs in one network, one three times the other": partial(multiples, places=doubled(p, 3)),
    }
    rows = []
    for name, statistic in tests.items():
        draws = statistic(by_chance)
        share = (1 + (draws >= statistic(found)).sum()) / (1 + DRAWS)
        rows.append([name, statistic(found), f"{draws.mean():.1f}", f"{share:.2f}"])
    print("\n" + markdown(["what", "found", "by chance", "p (as many or more)"], rows))
    print(f"\nmost frequent: {np.argmax(found.sum(axis=0)) + 1}")

    numbers = np.array([len(keys) for keys in all_keys])
    of_rank = spearmanr(numbers, times)
    print(f"\nnumber of keys and time to grok: Spearman {of_rank.statistic:.2f}, p {of_rank.pvalue:.2f}")
    for n in np.unique(numbers):
        print(f"  {n} keys: {(numbers == n).sum()} networks, median {np.median(times[numbers == n]):,.0f}")

    masks = {seed: np.isin(np.arange(1, K + 1), keys) for seed, (keys, _) in known.items()}
    at_start = [auroc(initial_norms(config, seed), mask) for seed, mask in masks.items()]
    print(f"\nAUROC of the initial norms of W_E, {len(at_start)} networks: {with_interval(at_start)}")
    header = ["norms of", *(f"{epoch:,}" for epoch in SHOWN), f"stays above {HIGH} from"]
    print("\n" + markdown(header, [predicted(networks, masks, name) for name in SPECTRA]))
    print("\nthe share of the keys among as many of the largest norms, at the same epochs")
    print("\n" + markdown(header[:-1], [hits(networks, masks, name) for name in SPECTRA]))
    draw(networks, masks).savefig(Path(__file__).with_name("seeds.png"), dpi=110)


def aurocs(networks, masks, name):
    """(epochs, AUROC of the norms at each) of every run."""
    for seed, (_, _, spectra, epochs) in networks.items():
        yield epochs, np.array([auroc(norms, masks[seed]) for norms in spectra[name]])


def predicted(networks, masks, name):
    """A row: the AUROC at some epochs, and the epoch from which it stays high, over the runs."""
    curves = list(aurocs(networks, masks, name))
    columns = np.array([of_run[np.searchsorted(epochs, SHOWN)] for epochs, of_run in curves]).T
    firsts = [epochs[np.flatnonzero(np.append(True, of_run < HIGH))[-1]] for epochs, of_run in curves]
    return [name[:3], *map(with_range, columns), f"{np.median(firsts):.0f} ({min(firsts)} - {max(firsts)})"]


def hits(networks, masks, name):
    """A row: of n keys, the share that is among the n largest norms, at some epochs."""
    shares = []
    for seed, (keys, _, spectra, epochs) in networks.items():
        rows = spectra[name][np.searchsorted(epochs, SHOWN)]
        largest = np.argsort(-rows, axis=1)[:, : len(keys)]
        shares.append([masks[seed][of_row].mean() for of_row in largest])
    return [name[:3], *map(with_range, np.array(shares).T)]


def draw(networks, masks):
    """The AUROC of every run over training, with the epochs at which the runs grokked."""
    figure, axes = make_figure(8, 3, columns=len(SPECTRA), sharey=True)
    for axis, name in zip(axes, SPECTRA, strict=True):
        for epochs, of_run in aurocs(networks, masks, name):
            axis.plot(epochs + 1, of_run, color=TRAIN, linewidth=0.8, alpha=0.7)
        for _, grokked, _, _ in networks.values():
            axis.axvline(grokked, color=TEST, linewidth=0.6, alpha=0.6)
        axis.axhline(HIGH, color="grey", linewidth=0.6)
        axis.set(xscale="log", ylim=(0.3, 1.02), xlabel="epoch + 1", title=f"norms of {name[:3]}")
    axes[0].set_ylabel("AUROC of the final keys")
    axes[0].annotate("runs grok", (grokked, 0.34), xytext=(-52, 0), textcoords="offset points", color=TEST)
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:])
