"""The search for the smallest dataset on which a task is learned.

Sizes are tried in rounds, and each round extends the sweep of the rounds before it in one directory. Which sizes a
round tries follows from what is on disk. So an interrupted search resumes, and a search with more seeds or a wider
range builds on what is there.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jaxgrok.config import CONFIG_FIELDS, BadInput
from jaxgrok.stats import threshold
from jaxgrok.store.files import SweepFiles
from jaxgrok.store.results import check_part, load
from jaxgrok.tables import sizes as size_tables
from jaxgrok.training import sweep as sweeping
from jaxgrok.training.grid import MAX_SIZES, Sweep, make_sweep

NUMBERS = ("wd", "lr", "init_scale")  # settings of the grid that have one value in a search


def search(
    settings: dict[str, Any],
    out: str | Path | None = None,
    *,
    low: int = 100,
    high: int = 3_000,
    count: int = 4,
    precision: float = threshold.PRECISION,
    part: str | None = None,
    labels: dict[str, str] | None = None,
    batch_runs: int | None = None,
    watch: Callable[[], AbstractContextManager[Any]] = lambda: nullcontext(sweeping.Silent()),
    round_done: Callable[[size_tables.Sizes], None] = lambda sizes: None,
) -> Path:
    """Find the size at which half of the runs generalise, and return the sweep's directory.

    settings: as in `make_sweep`, for one cell of a task that draws its examples. Its max_epochs is the budget of a run,
    which ends earlier once it has settled.
    out: the directory. None means one in `runs/` whose name is made from the settings.
    low, high: the smallest and the largest size. count: how many sizes a round tries.
    precision: the ratio of neighbouring sizes at which the search ends.
    part: a part of the task, whose learning counts instead of the whole task's.
    labels, batch_runs: as in `make_sweep` and in `sweep`.
    watch: makes a watcher for each round (`training.sweep.Watcher`). round_done: is called after each round.

    Raises BadInput before anything is written, and Interrupted as `sweep` does.
    """
    labels = {} if labels is None else labels
    if not 1 <= low < high:
        raise BadInput(labels.get("high", "high"), high, f"more than low = {low}, which is at least 1")
    if not 2 <= count <= MAX_SIZES:
        raise BadInput("count", count, f"a whole number from 2 to {MAX_SIZES:,}")

    def sweep_of(sizes: Iterable[int]) -> Sweep:
        return make_sweep({**settings, "n_train": sorted(sizes), "until_settled": True}, labels)

    ends = sweep_of([low, high])
    _check_one_cell(ends, settings, labels)
    if part is not None:
        check_part(part, ends.configs[0], labels.get("part", "part"))
    path = Path("runs") / f"crossover-{ends.default_name((*NUMBERS, 'max_epochs'))}" if out is None else Path(out)
    # What an earlier search began is finished first. Its sizes are known from the directory.
    sizes = _sizes_in(path, ends, labels) if SweepFiles(path).exists() else set()
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


def _check_one_cell(sweep: Sweep, settings: dict[str, Any], labels: dict[str, str]) -> None:
    """Raises BadInput if anything but the size and the seed has several values."""
    lists = [name for name in CONFIG_FIELDS if len({getattr(config, name) for config in sweep.configs}) > 1]
    lists += [name for name in NUMBERS if len(sweep.setting(name)) > 1]
    for name in lists:
        raise BadInput(labels.get(name, name), settings[name], "one value: a search varies the size and the seed alone")


def _sizes_in(path: Path, sweep: Sweep, labels: dict[str, str]) -> set[int]:
    """The sizes of an earlier search in a directory. Raises BadInput if its runs are not of this search."""
    first, sizes = sweep.runs()[0], set()
    ours, budget = first.coordinates(), sweep.planned_epochs(first)
    for record in load(path).runs:
        for name, value in ours.items():
            theirs = record.coordinates[name]
            if name not in ("seed", "n_train") and theirs != value:
                accepted = f"{theirs}, as the runs in {path} have it; or another directory"
                raise BadInput(labels.get(name, name), value, accepted)
        if record.run.n_train is None:
            accepted = "a directory of a sweep over numbers of examples, without unlimited data"
            raise BadInput(labels.get("out", "out"), str(path), accepted)
        if record.epochs > budget:
            accepted = f"at least {record.epochs}, the budget of the runs in {path}; or another directory"
            raise BadInput(labels.get("max_epochs", "max_epochs"), budget, accepted)
        sizes.add(record.run.n_train)
    return sizes
