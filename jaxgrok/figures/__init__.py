"""One function per figure; each takes data, returns a matplotlib Figure, and knows no files. `write` alone writes.

`timing`: a sweep's curves and when runs grok. `circuits`: what one trained network computes with, or many side by side.
`progress`: how that grows over training. `heads`: what the heads of induction networks attend to.
"""

from jaxgrok.figures.circuits import (
    attention_figure,
    clusters_figure,
    embedding_circles_figure,
    key_spectra_figure,
    logit_spectrum_figure,
    neuron_spectra_figure,
    neuron_waves_figure,
    spectra_figure,
)
from jaxgrok.figures.heads import head_patterns_figure, heads_of_runs_figure, heads_over_training_figure
from jaxgrok.figures.over_training import (
    alpha_over_training_figure,
    excluded_per_key_figure,
    gini_figure,
    keys_of_runs_figure,
    losses_over_training_figure,
    spectra_over_training_figure,
    weights_figure,
)
from jaxgrok.figures.parts import part_losses_figure, part_order_figure
from jaxgrok.figures.sizes import crossover_figure
from jaxgrok.figures.slingshots import slingshots_figure
from jaxgrok.figures.timing import curves_figure, rerun_figure, survival_figure
from jaxgrok.figures.write import (
    write_circuit_figures,
    write_figures,
    write_head_figures,
    write_network_figures,
    write_size_figures,
)

__all__ = [
    "alpha_over_training_figure",
    "attention_figure",
    "clusters_figure",
    "crossover_figure",
    "curves_figure",
    "embedding_circles_figure",
    "excluded_per_key_figure",
    "gini_figure",
    "head_patterns_figure",
    "heads_of_runs_figure",
    "heads_over_training_figure",
    "key_spectra_figure",
    "keys_of_runs_figure",
    "logit_spectrum_figure",
    "losses_over_training_figure",
    "neuron_spectra_figure",
    "neuron_waves_figure",
    "part_losses_figure",
    "part_order_figure",
    "rerun_figure",
    "slingshots_figure",
    "spectra_figure",
    "spectra_over_training_figure",
    "survival_figure",
    "weights_figure",
    "write_circuit_figures",
    "write_figures",
    "write_head_figures",
    "write_network_figures",
    "write_size_figures",
]
