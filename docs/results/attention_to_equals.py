"""The table of other seeds in own-mainline.md: how much the heads attend to "=" late in training.

python docs/results/attention_to_equals.py RUN_DIR
"""

import sys

import jax
import numpy as np

import jaxgrok
from jaxgrok.measures.all_pairs import run_network
from jaxgrok.measures.circuits import attention_measures
from jaxgrok.tables.write import markdown

EPOCHS = (20_000, 30_000, 40_000, 45_000, 50_000)


def main(path):
    results = jaxgrok.load(path)
    measure = jax.jit(lambda config, params: attention_measures(run_network(config, params).stream), static_argnums=0)
    rows = []
    for record in results.runs:
        epochs = results.checkpoint_epochs(record)

        def most(epoch, record=record):
            """The most that a head attends to "=", its mean over all pairs."""
            found = measure(record.config, results.params(epoch, run=record.number))
            return float(np.max(found["attention_to_equals_mean"]))

        last = epochs[-1]
        late = [most(epoch) for epoch in epochs if epoch >= 20_000 and epoch % 500 == 0]
        squares = [
            sum(float(np.square(x).sum()) for x in jax.tree.leaves(results.params(epoch, run=record.number)))
            for epoch in (20_000, last)
        ]
        cells = [f"{most(epoch):.4f}" if epoch <= last else "" for epoch in EPOCHS]
        rows.append([str(record.seed), f"{last:,}", *cells, f"{max(late):.4f}", "{:.1f}, {:.1f}".format(*squares)])
    header = ["seed", "trained to", *(f"{epoch:,}" for epoch in EPOCHS), "most since 20,000"]
    print(markdown([*header, "squared weights at 20,000, at the end"], rows))


if __name__ == "__main__":
    main(sys.argv[1])
