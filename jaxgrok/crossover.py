"""The search for the smallest dataset on which a task is learned: sizes are tried in rounds, each a sweep in one directory.

A round extends the sweep of those before it, and which sizes it tries follows from what they left on disk: an interrupted
search goes on where it stopped, and one with more seeds or a wider range builds on what is there.
"""

from contextlib import nullcontext
from pathlib import Path

from jaxgrok import size_tables, sweeping, threshold
from jaxgrok.config import BadInput
from jaxgrok.grid import make_sweep
from jaxgrok.results import load
from jaxgrok.tasks import make_task


def search(
    settings: dict,
    out=None,
    *,
    low: int = 100,
    high: int = 3_000,
    count: int = 4,
    precision: float = 1.1,
    part: str | None = None,
    labels: dict | None = None,
    batch_runs: int | None = None,
    watch=lambda: nullcontext(sweeping.Silent()),
    round_done=lambda sizes: None,
) -> Path:
    """Find the size at which half of the runs generalise; returns the sweep's directory.

    settings: of `make_sweep`, for one cell of a task that draws its examples; max_epochs is the budget, and a run ends once
    it has settled. low, high: smallest and largest size; count: sizes a round; precision: the ratio of neighbouring sizes at
    which the search ends. part: of the task, whose learning counts instead of the whole. watch: makes a watcher for each
    round; round_done: called with `Sizes` after each. Raises BadInput before anything is written.
    """
    labels = labels or {}
    if not 1 <= low < high:
        raise BadInput(labels.get("high", "high"), high, f"more than low = {low}, which is at least 1")

    def sweep_of(sizes):
        return make_sweep({**settings, "n_train": sorted(sizes), "until_settled": True}, labels)

    ends = sweep_of([low, high])
    if len(ends.runs()) > 2 * len(ends.seeds):
        raise BadInput("settings", len(ends.runs()) // 2 // len(ends.seeds), "one cell: no lists but of seeds")
    names = make_task(ends.configs[0]).parts
    if part is not None and part not in names:
        raise BadInput(labels.get("part", "part"), part, f"a part of task {ends.configs[0].task}: {', '.join(names) or 'it has none'}")
    path = Path(out or Path("runs") / f"crossover-{ends.default_name()}")
    # What an earlier search began is finished first: its sizes are known from the directory.
    sizes = set()
    if (path / "metrics.npz").exists():
        sizes = {record["n_train"] for record in load(path).runs}
        if None in sizes:
            raise BadInput(labels.get("out", "out"), str(path), "a directory of a sweep over numbers of examples, without unlimited data")
    tried = size_tables.Sizes([])
    while True:
        if not sizes or tried.of_sizes:
            more = threshold.next_sizes(*tried.outcomes(), count, low, high, precision)
            if not more:
                return path
            sizes |= set(more)
        with watch() as watching:
            sweeping.sweep(sweep_of(sizes), path, batch_runs=batch_runs, watch=watching)
        tried = size_tables.sizes_of(load(path), part)
        round_done(tried)
