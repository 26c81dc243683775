"""Figures of runs and networks. One function per figure: it takes data and returns a matplotlib Figure.

Only the `write_*` functions know files. The modules have the names of the tables they show:

- `timing`: the curves of a sweep, when its runs grok, and a run beside a released one.
- `parts`: how the parts of a task are learned, and in which order.
- `sizes`: a sweep over dataset sizes.
- `slingshots`: spikes of the train loss.
- `circuits`: what trained networks compute with. `over_training`: how that grows.
- `heads`: what the heads of induction networks attend to.
- `representations`: which irreducible representations networks on a group use.
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
from jaxgrok.figures.phase_diagram import phase_diagram_figure
from jaxgrok.figures.representations import representations_figure, representations_over_training_figure
from jaxgrok.figures.sizes import crossover_figure
from jaxgrok.figures.slingshots import slingshots_figure
from jaxgrok.figures.timing import curves_figure, rerun_figure, survival_figure
from jaxgrok.figures.write import (
    write_circuit_figures,
    write_figures,
    write_head_figures,
    write_list_figures,
    write_network_figures,
    write_representation_figures,
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
    "phase_diagram_figure",
    "representations_figure",
    "representations_over_training_figure",
    "rerun_figure",
    "slingshots_figure",
    "spectra_figure",
    "spectra_over_training_figure",
    "survival_figure",
    "weights_figure",
    "write_circuit_figures",
    "write_figures",
    "write_head_figures",
    "write_list_figures",
    "write_network_figures",
    "write_representation_figures",
    "write_size_figures",
]
