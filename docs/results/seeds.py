"""The tables and the figure of seeds.md: which frequencies networks keep, and what foretells them.

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
from scipy.stats import bootstrap, rankdata, spearmanr

import jaxgrok
from jaxgrok.config import Run
from jaxgrok.figures.style import TEST, make_figure
from jaxgrok.measures import fourier, subjects
from jaxgrok.store.results import KEYS
from jaxgrok.tables.write import markdown
from jaxgrok.training.run import make_program

DRAWS = 5_000  # of random key sets
HIGH = 0.9  # an AUROC that foretells the keys well
SPECTRA = ("W_E_frequency_norms", "W_L_frequency_norms")


def auroc(scores, is_key):
    """The probability that a key has a larger score than another frequency; ties count half."""
    n = is_key.sum()
    return (rankdata(scores)[is_key].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


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


def related(keys, p, factor):
    """How many ordered pairs of keys are `factor` apart: one is the other times it."""
    return sum(folded(factor * k, p) in keys for k in keys)


def against_chance(all_keys, p, statistic, rng):
    """(the statistic of all networks, its mean if each drew its keys at random, and the share of draws at least as
    large)."""
    K = p // 2
    draws = np.array(
        [statistic([list(rng.choice(K, len(keys), replace=False) + 1) for keys in all_keys]) for _ in range(DRAWS)]
    )
    value = statistic(all_keys)
    return value, draws.mean(), (draws >= value).mean()


def with_interval(values):
    """The mean and its bootstrap interval over seeds."""
    values = np.asarray(values, float)
    interval = bootstrap([values], np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{values.mean():.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main(run_dir, *tables):
    results = jaxgrok.load(run_dir)
    config = results.runs[0].config
    p, K = config.p, config.p // 2
    networks = networks_of(results)
    known = {seed: (keys, at) for seed, (keys, at, _, _) in networks.items()}
    if tables:
        known = kept_networks(*map(Path, tables)) | known
    rng = np.random.default_rng(0)
    all_keys, times = [keys for keys, _ in known.values()], np.array([at for _, at in known.values()])
    counts = np.bincount(np.concatenate(all_keys), minlength=K + 1)[1:]
    rows = [[seed, f"{at:,}", " ".join(map(str, keys))] for seed, (keys, at) in sorted(known.items())]
    print(markdown(["seed", "grokked", "keys"], rows))

    def squares(sets):
        return int((np.bincount(np.concatenate(sets), minlength=K + 1)[1:] ** 2).sum())

    def multiples(sets, factor):
        return sum(related(keys, p, factor) for keys in sets)

    tests = {
        "a frequency is preferred: sum of squared counts": squares,
        "pairs in one network of which one is twice the other": partial(multiples, factor=2),
        "pairs in one network of which one is three times the other": partial(multiples, factor=3),
    }
    rows = [[name, *against_chance(all_keys, p, statistic, rng)] for name, statistic in tests.items()]
    header = ["what", "found", "by chance", "p (as many or more)"]
    print("\n" + markdown(header, [[name, x, f"{mean:.1f}", f"{share:.3f}"] for name, x, mean, share in rows]))
    print(f"\nmost frequent: {', '.join(f'{k + 1} ({counts[k]} times)' for k in np.argsort(-counts)[:3])}")

    numbers = np.array([len(keys) for keys in all_keys])
    of_rank = spearmanr(numbers, times)
    print(f"\nnumber of keys and time to grok: Spearman {of_rank.statistic:.2f}, p {of_rank.pvalue:.2f}")
    for n in np.unique(numbers):
        print(f"  {n} keys: {(numbers == n).sum()} networks, median {np.median(times[numbers == n]):,.0f}")

    masks = {seed: np.isin(np.arange(1, K + 1), keys) for seed, (keys, _) in known.items()}
    at_start = {seed: auroc(initial_norms(config, seed), mask) for seed, mask in masks.items()}
    print(f"\nAUROC of the initial norms of W_E, {len(at_start)} networks: {with_interval(list(at_start.values()))}")
    figure, axes = make_figure(8, 3, columns=len(SPECTRA))
    shares = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    rows = []
    for axis, name in zip(np.ravel(axes), SPECTRA, strict=True):
        curves, firsts = [], []
        for seed, (_, grokked, spectra, epochs) in networks.items():
            of_run = np.array([auroc(norms, masks[seed]) for norms in spectra[name]])
            curves.append(np.interp(shares * grokked, epochs, of_run))
            high = np.flatnonzero(of_run < HIGH)
            firsts.append(epochs[high[-1] + 1] / grokked if len(high) and high[-1] + 1 < len(epochs) else 0.0)
            axis.plot(epochs / grokked, of_run, color=TEST, linewidth=0.8, alpha=0.6)
        axis.axhline(HIGH, color="grey", linewidth=0.6)
        axis.set(
            xscale="log",
            xlim=(0.002, 1.5),
            ylim=(0.3, 1.02),
            ylabel="AUROC",
            title=f"{name[:3]} norms and the final keys",
        )
        axis.set_xlabel("epoch, as a share of that at which the run grokked")
        rows.append([name[:3], *(with_interval(column) for column in np.array(curves).T), with_interval(firsts)])
    print(
        "\n"
        + markdown(["norms of", *(f"{100 * share:.0f} %" for share in shares), f"above {HIGH} for good from"], rows)
    )
    figure.savefig(Path(__file__).with_name("seeds.png"), dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
