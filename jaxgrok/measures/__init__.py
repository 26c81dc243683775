"""Every measure of trained networks, computed from their weights.

`all`, `measure` and `find_keys` measure one modular network (`circuits`). `split_of` gives the split that it was
trained on. The measures of induction networks are in `heads`, and `checkpoints` measures whole sweeps.
"""

from jaxgrok.measures.all_pairs import Split, split_of
from jaxgrok.measures.circuits import all, find_keys, measure, plain, to_json

__all__ = ["Split", "all", "find_keys", "measure", "plain", "split_of", "to_json"]
