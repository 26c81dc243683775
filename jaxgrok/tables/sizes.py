"""A sweep over dataset sizes: from which size runs generalise, and at which sizes above it they grok.

tables/crossover.csv   a row per size: runs, how many generalised, when they memorised and grokked
tables/crossover.md    the same to read, with the size at which half of the runs generalise
"""

from dataclasses import dataclass
from pathlib import Path

from jaxgrok import stats
from jaxgrok.config import BadInput
from jaxgrok.stats import Arrival, threshold
from jaxgrok.store.results import Results, Status, check_part
from jaxgrok.tables.timing import Table
from jaxgrok.tables.write import markdown, write_csv, write_text

FINISHED = (Status.TRAINED, Status.ENDED)  # the outcome of a run that is still training is not known
LATE = 2  # a run groks late if it generalises at this many times the epoch at which it memorised, or later
NOTE = (
    "Generalised: the run met the criterion of `grokked` within its budget. Crossover: the size at which half of the "
    "runs generalise, from a logistic curve in log size, with its 95 % profile-likelihood interval. Epochs are "
    f"medians with 95 % intervals. The grokking window begins at the crossover; in it runs generalise at least {LATE} "
    "times as late as they memorise, by the medians."
)


@dataclass(frozen=True)
class AtSize:
    """The runs of one size. generalised, memorised, grokked: of each run; grokked is of the part that was asked for."""

    size: int
    generalised: list[bool]
    memorised: list[Arrival]
    grokked: list[Arrival]

    @property
    def medians(self) -> tuple[stats.Median, stats.Median]:
        """When runs memorised, and when they grokked."""
        return stats.median(self.memorised), stats.median(self.grokked)

    @property
    def is_late(self) -> bool | None:
        """Whether runs grokked late after they memorised; None if half of the runs have not grokked."""
        memorised, grokked = (m.value for m in self.medians)
        return None if grokked is None else memorised is not None and grokked >= LATE * memorised


@dataclass(frozen=True)
class Sizes:
    """What a sweep over sizes shows, in order of size. part: the part of the task that counts; None is the whole."""

    of_sizes: list[AtSize]
    part: str | None = None

    @property
    def crossover(self) -> threshold.Crossover:
        return threshold.crossover(*self.outcomes())

    def outcomes(self) -> tuple[list[int], list[bool]]:
        """The size and the outcome of each run."""
        runs = [(at.size, outcome) for at in self.of_sizes for outcome in at.generalised]
        return [size for size, _ in runs], [outcome for _, outcome in runs]

    def window(self) -> tuple[int | None, int | None]:
        """(the largest size from the crossover on at which runs still grok late, the smallest above it at which they no
        longer do)."""
        crossover = self.crossover.size
        above = [at for at in self.of_sizes if at.is_late is not None and (crossover is None or at.size >= crossover)]
        ends = [at.size for at in above if not at.is_late]
        late = [at.size for at in above if at.is_late and (not ends or at.size < ends[0])]
        return (late[-1] if late else None), (ends[0] if ends else None)


def sizes_of(results: Results, part: str | None = None) -> Sizes:
    """The runs of a sweep over n_train, by size. Raises BadInput for a part that does not exist, or for a sweep that
    varies more than the size."""
    other = [name for name in results.varying if name != "n_train"]
    if other or any(record.run.unlimited for record in results.runs):
        what = " ".join(other) or "unlimited data"
        raise BadInput("run directory", str(results.path), f"a sweep over n_train alone, not {what}")
    if part is not None:
        check_part(part, results.runs[0].config)
    found: dict[int, AtSize] = {}
    for record in results.runs:
        size = record.run.n_train
        if record.status not in FINISHED or size is None:
            continue
        whole = results.timing(record)
        timing = whole if part is None else results.part_timings(record).get(part)
        if timing is None:
            accepted = f"a part that every run tests; run {record.number} has no test example of it (--n-test)"
            raise BadInput("part", part, accepted)
        at = found.setdefault(size, AtSize(size, [], [], []))
        at.generalised.append("grokked" in timing.events)
        for arrivals, arrival in ((at.memorised, whole.arrival("memorised")), (at.grokked, timing.arrival("grokked"))):
            if arrival is not None:
                arrivals.append(arrival)
    return Sizes([found[size] for size in sorted(found)], part)


def sizes_table(sizes: Sizes) -> Table:
    """crossover.csv: a row per size."""
    header = ["n_train", "runs", "generalised"]
    header += [f"{event}_{of}" for event in ("memorised", "grokked") for of in ("median", "low", "high", "arrived")]
    rows = []
    for at in sizes.of_sizes:
        medians = [value for m in at.medians for value in (m.value, m.low, m.high, m.arrived)]
        rows.append([at.size, len(at.generalised), sum(at.generalised), *medians])
    return header, rows


def readable_table(sizes: Sizes) -> Table:
    """For people: a row per size."""
    rows = []
    for at in sizes.of_sizes:
        late = {None: "-", True: "yes", False: "no"}[at.is_late]
        generalised = f"{sum(at.generalised)}/{len(at.generalised)}"
        rows.append([f"{at.size:,}", generalised, *map(str, at.medians), late])
    return ["examples", "generalised", "memorised", "grokked", "late"], rows


def size_lines(sizes: Sizes) -> list[str]:
    """The crossover and the grokking window, a line each."""
    what = f" of {sizes.part}" if sizes.part is not None else ""
    last, first = sizes.window()
    if last is None:
        window = "no size above the crossover was in it" + ("" if first is None else f"; it ends below {first:,}")
    else:
        end = "the largest size of this search" if first is None else f"runs no longer grok late at {first:,}"
        window = f"from the crossover to {last:,}; {end}"
    return [f"Crossover{what}: {sizes.crossover} examples.", f"Grokking window: {window}."]


def write_size_tables(results: Results, sizes: Sizes, folder: Path | None = None) -> None:
    """Write crossover.csv and crossover.md into a folder; None means the sweep's own `tables`."""
    folder = results.path / "tables" if folder is None else folder
    write_csv(folder / "crossover.csv", *sizes_table(sizes))
    text = [f"# {results.path.name}", " ".join(size_lines(sizes)), markdown(*readable_table(sizes)), NOTE]
    write_text(folder / "crossover.md", "\n\n".join(text) + "\n")
