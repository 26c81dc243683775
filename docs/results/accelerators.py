"""The table of accelerators.md: sweeps with published speed-ups beside one without, from the same seeds.

python docs/results/accelerators.py PLAIN_DIR DIR [DIR ...]

Each directory is a sweep of one cell. A row has the runs that grokked, when they memorised and grokked, how many
grokked sooner and later than the same seed of PLAIN_DIR with a two-sided sign test, and the median losses at the end.
"""

import sys
from pathlib import Path

import numpy as np

import jaxgrok
from jaxgrok.stats import compare
from jaxgrok.tables.timing import event_times
from jaxgrok.tables.write import markdown

HEADER = ["", "grokked", "memorised at", "grokked at", "sooner, later", "last train loss", "last test loss"]


def row_of(path, plain):
    """One sweep as a row. plain: the arrivals of its counterpart, by seed."""
    results = jaxgrok.load(path)
    (cell,) = results.cells
    grokked, memorised = (event_times(cell, event) for event in ("grokked", "memorised"))
    arrivals = grokked.arrivals
    losses = [(c.train_loss[-1], c.test_loss[-1]) for c in map(results.curves_of, cell.records)]
    beside = ""
    if arrivals != plain:
        found = compare(arrivals, plain)
        beside = f"{found.first}, {found.second} (p = {found.pvalue:.2g})"
    n = sum(arrival.reached for arrival in arrivals.values())
    medians = [f"{x:.2g}" for x in np.median(losses, axis=0)]
    return [Path(path).name, f"{n} of {len(arrivals)}", str(memorised.median), str(grokked.median), beside, *medians]


def main(plain, *others):
    (cell,) = jaxgrok.load(plain).cells
    arrivals = event_times(cell, "grokked").arrivals
    print(markdown(HEADER, [row_of(path, arrivals) for path in (plain, *others)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
