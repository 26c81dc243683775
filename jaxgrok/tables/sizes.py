"""The table of a sweep over dataset sizes: at which size runs begin to generalise, and where above it they grok.

tables/crossover.csv   a row per size: runs, how many generalised, when they memorised and grokked
tables/crossover.md    the same to read, with the size at which half of the runs generalise
"""

from dataclasses import dataclass
from pathlib import Path

from jaxgrok.config import BadInput
from jaxgrok.stats import survival as stats
from jaxgrok.stats import threshold
from jaxgrok.store.results import Results, check_part
from jaxgrok.store.steps import replace_text
from jaxgrok.tables.timing import csv_text, markdown

FINISHED = ("trained", "ended")  # of a run that is under way nothing is known yet
LATE = 2  # a run groks, rather than learns, if it generalises at this many times the epoch at which it memorised, or later
NOTE = (
    "Generalised: by the criterion of `grokked`, within the budget. Crossover: the size at which half of the runs generalise, from a "
    "logistic curve in log size, with its 95 % profile-likelihood interval. Epochs are Kaplan-Meier medians with 95 % intervals. The "
    f"grokking window begins at the crossover; in it runs generalise at least {LATE} times as late as they memorise, by the medians."
)


@dataclass(frozen=True)
class AtSize:
    """The runs of one size. generalised: of each; memorised, grokked: (time, reached) of each, grokked of the part asked for."""

    size: int
    generalised: list[bool]
    memorised: list[tuple[int, bool]]
    grokked: list[tuple[int, bool]]

    @property
    def medians(self) -> tuple[stats.Median, stats.Median]:
        """When runs memorised and when they grokked."""
        return stats.median(*zip(*self.memorised)), stats.median(*zip(*self.grokked))

    @property
    def is_late(self) -> bool | None:
        """Whether grokking came late after memorising; None where half of the runs have not grokked."""
        memorised, grokked = (m.value for m in self.medians)
        return None if grokked is None else memorised is not None and grokked >= LATE * memorised


@dataclass(frozen=True)
class Sizes:
    """What a sweep over sizes shows, in order of size. part: of the task, whose learning is asked for; None: the whole."""

    of_sizes: list[AtSize]
    part: str | None = None

    @property
    def crossover(self) -> threshold.Crossover:
        return threshold.crossover(*self.outcomes())

    def outcomes(self) -> tuple[list[int], list[bool]]:
        """Size and outcome of each run."""
        runs = [(at.size, outcome) for at in self.of_sizes for outcome in at.generalised]
        return [size for size, _ in runs], [outcome for _, outcome in runs]

    def window(self) -> tuple[int | None, int | None]:
        """(largest size from the crossover on at which runs still grok, smallest above it at which they no longer do)."""
        crossover = self.crossover.size
        above = [at for at in self.of_sizes if at.is_late is not None and (crossover is None or at.size >= crossover)]
        ends = [at.size for at in above if not at.is_late]
        late = [at.size for at in above if at.is_late and (not ends or at.size < ends[0])]
        return (late[-1] if late else None), (ends[0] if ends else None)


def sizes_of(results: Results, part: str | None = None) -> Sizes:
    """The runs of a sweep over n_train by size. Raises BadInput for a part that does not exist, or a sweep that varies more than sizes."""
    other = [name for name in results.varying() if name != "n_train"]
    if other or any(record["n_train"] is None for record in results.runs):
        raise BadInput("run directory", str(results.path), f"a sweep over n_train alone, not {' '.join(other) or 'unlimited data'}")
    if part is not None:
        check_part(part, results.config(results.runs[0]))
    found = {}
    for record in results.runs:
        if record["status"] not in FINISHED:
            continue
        whole = results.timing(record)
        timing = whole if part is None else results.part_timings(record).get(part)
        if timing is None:
            raise BadInput("part", part, f"a part that every run tests; run {record['run']} has no test example of it (--n-test)")
        at = found.setdefault(record["n_train"], AtSize(record["n_train"], [], [], []))
        at.generalised.append("grokked" in timing.events)
        for times, of, event in ((at.memorised, whole, "memorised"), (at.grokked, timing, "grokked")):
            times.append((of.last_epoch, False) if of.by(event) is None else (of.by(event), True))
    return Sizes([found[size] for size in sorted(found)], part)


def sizes_table(sizes: Sizes) -> tuple[list[str], list[list]]:
    """(header, rows) of crossover.csv."""
    header = ["n_train", "runs", "generalised"]
    header += [f"{event}_{part}" for event in ("memorised", "grokked") for part in ("median", "low", "high", "arrived")]
    rows = []
    for at in sizes.of_sizes:
        medians = [value for m in at.medians for value in (m.value, m.low, m.high, m.arrived)]
        rows.append([at.size, len(at.generalised), sum(at.generalised), *medians])
    return header, rows


def readable_table(sizes: Sizes) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a row per size."""
    rows = []
    for at in sizes.of_sizes:
        late = {None: "-", True: "yes", False: "no"}[at.is_late]
        rows.append([f"{at.size:,}", f"{sum(at.generalised)}/{len(at.generalised)}", *map(str, at.medians), late])
    return ["examples", "generalised", "memorised", "grokked", "late"], rows


def lines(sizes: Sizes) -> list[str]:
    """The crossover and the grokking window, a line each."""
    what = f" of {sizes.part}" if sizes.part else ""
    last, first = sizes.window()
    if last is None:
        window = "no size tried above the crossover lies in it" + ("" if first is None else f"; it ends below {first:,}")
    else:
        window = f"from the crossover to {last:,}, " + ("the largest tried" if first is None else f"no longer at {first:,}")
    return [f"Crossover{what}: {sizes.crossover} examples.", f"Grokking window: {window}."]


def write_size_tables(results: Results, sizes: Sizes) -> None:
    """Write tables/crossover.csv and crossover.md."""
    folder = Path(results.path) / "tables"
    folder.mkdir(exist_ok=True)
    replace_text(folder / "crossover.csv", csv_text(*sizes_table(sizes)))
    text = [f"# {results.path.name}", " ".join(lines(sizes)), markdown(*readable_table(sizes)), NOTE]
    replace_text(folder / "crossover.md", "\n\n".join(text) + "\n")
