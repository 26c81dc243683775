"""Statistics that know nothing of this project: survival times, orders of arrival, and thresholds in size.

The submodules are `survival` (its names are also found here), `order` and `threshold`.
"""

from jaxgrok.stats.survival import Arrival, Comparison, Median, Survival, compare, holm, median, survival_curve

__all__ = ["Arrival", "Comparison", "Median", "Survival", "compare", "holm", "median", "survival_curve"]
