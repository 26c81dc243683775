"""Statistics that know nothing of this project: survival times, orders of arrival, and thresholds in size."""
