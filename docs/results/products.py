"""The table of products and quotients in operators.md: the networks that grokked, at their last checkpoint.

python docs/results/products.py RUN_DIR
"""

import sys

import numpy as np

import jaxgrok
from jaxgrok.measures import subjects
from jaxgrok.measures.fourier import frequencies_of
from jaxgrok.tables.write import markdown
from jaxgrok.tasks import modular_task


def main(path):
    results, rows = jaxgrok.load(path), []
    for record in results.runs:
        timing = results.timing(record)
        if timing.by("grokked") is None:
            rows.append([record.config.task, str(record.seed), "not", *[""] * 6])
            continue
        subject = subjects.subject_of_run(results, run=record.number)
        m = subjects.measure_subject(subject)
        keys, order = frequencies_of(m["key_frequencies"]["keys"]), len(modular_task(record.config).group)
        turns = " ".join(f"{k} ({order // np.gcd(k, order)})" for k in keys)
        losses = [float(x) for x in (m["loss"]["all"], m["restricted_loss"]["all"], m["excluded_loss"]["train"])]
        shares = [float(m["logit_fve"]), float(m["neuron_fve_median"])]
        cells = [*(f"{x:.3f}" for x in shares), *(f"{x:.2g}" for x in losses)]
        rows.append([record.config.task, str(record.seed), f"{timing.by('grokked'):,}", turns, *cells])
    header = ["task", "seed", "grokked by", "keys (points on the circle)", "logit FVE", "neuron FVE, median"]
    print(markdown([*header, "loss", "restricted loss", "excluded loss (train)"], rows))


if __name__ == "__main__":
    main(sys.argv[1])
