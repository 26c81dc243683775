"""The search for the smallest dataset on which a task is learned: sizes are tried in rounds, each a sweep in one directory.

A round extends the sweep of those before it, and which sizes it tries follows from what they left on disk: an interrupted
search goes on where it stopped, and one with more seeds or a wider range builds on what is there.
"""

from contextlib import nullcontext
from pathlib import Path

from jaxgrok.config import CONFIG_FIELDS, BadInput
from jaxgrok.stats import threshold
from jaxgrok.store.results import check_part, load
from jaxgrok.tables import sizes as size_tables
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import Run, Sweep, make_sweep

NUMBERS = ("wd", "lr", "init_scale")  # of the grid: one value each in a search


def _sizes_in(path: Path, sweep: Sweep, labels: dict) -> set[int]:
    """The sizes of an earlier search in a directory. Raises BadInput where its runs are not of this one."""
    first, records = sweep.runs()[0], load(path).runs
    ours, budget = first.coordinates(), sweep.planned_epochs(first)
    for record in records:
        theirs = Run.from_record(record).coordinates()
        for name, value in ours.items():
            if name not in ("seed", "n_train") and theirs[name] != value:
                raise BadInput(labels.get(name, name), value, f"{theirs[name]}, as the runs in {path} have it; or another directory")
        if record["n_train"] is None:
            raise BadInput(labels.get("out", "out"), str(path), "a directory of a sweep over numbers of examples, without unlimited data")
        if record["epochs"] > budget:
            accepted = f"at least {record['epochs']}, the budget of the runs in {path}; or another directory"
            raise BadInput(labels.get("max_epochs", "max_epochs"), budget, accepted)
    return {record["n_train"] for record in records}


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
    lists = [name for name in CONFIG_FIELDS if len({getattr(config, name) for config in ends.configs}) > 1]
    lists += [name for name in NUMBERS if len(getattr(ends, name)) > 1]
    for field in lists:
        raise BadInput(labels.get(field, field), settings[field], "one value: a search varies the size and the seed alone")
    if part is not None:
        check_part(part, ends.configs[0], labels.get("part", "part"))
    name = ends.default_name((*NUMBERS, "max_epochs"))
    path = Path(out or Path("runs") / f"crossover-{name}")
    # What an earlier search began is finished first: its sizes are known from the directory.
    sizes = _sizes_in(path, ends, labels) if (path / "metrics.npz").exists() else set()
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
