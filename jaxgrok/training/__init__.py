"""Train runs: a checked grid, the plan and its cost, one run as pure functions, and many runs at once."""
