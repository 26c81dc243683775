"""The scorecard itself: a row per claim, as Markdown and as a table for the page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgrok.atomic import bad_place, replace_text
from jaxgrok.config import BadInput
from jaxgrok.scorecard.claims import Claim, Claims, Mode, SweepCommand, read_claims
from jaxgrok.scorecard.findings import PARTLY, REPRODUCED, Finding, Verdict
from jaxgrok.store.integrity import digest_of_content
from jaxgrok.store.results import Results, load
from jaxgrok.store.steps import Damaged
from jaxgrok.tables.timing import Table, made_with
from jaxgrok.tables.write import markdown

NOTE = (
    "Rule: what is measured, and the bounds of its values. A claim is reproduced where at least "
    f"{100 * REPRODUCED:.0f} % of the values lie within them, and partly where at least {100 * PARTLY:.0f} % do. What "
    "a run had not reached when it ended lies within no bounds. What cannot be known is not counted, and a claim of "
    "which less than half is known is unknown. Ours: the median over the runs with the 95 % interval of its order "
    "statistics; of fewer than six runs, and of pairs of runs, the range, in round brackets. Claims about circuits are "
    "measured on the runs that grokked, each at its last checkpoint or over its training."
)
HEADER = ["claim", "published", "ours", "verdict", "rule"]


@dataclass(frozen=True)
class Row:
    """A claim, the sweep that it is measured on, and what was found; None if the sweep has not been trained.

    made_with: versions and device. kept: whether it was found on another machine.
    """

    claim: Claim
    sweep: SweepCommand
    finding: Finding | None
    made_with: str = ""
    kept: bool = False

    @property
    def verdict(self) -> Verdict:
        return Verdict.NOT_RUN if self.finding is None else self.claim.rule.verdict(self.finding)

    def cells(self) -> list[str]:
        """The row under HEADER."""
        claim, found = self.claim, self.finding
        rule = f"{claim.value}: {claim.rule}"
        if found is None:
            return [claim.says, claim.published, "", f"not yet run ({duration(self.sweep.minutes)})", rule]
        count = claim.rule.count(found)
        verdict = f"{self.verdict} ({count})" if count else str(self.verdict)
        return [claim.says, claim.published, str(found), verdict, rule]


def duration(minutes: float) -> str:
    """`8 minutes`, `3 hours`, `2 days`: what a sweep takes on two CPU cores."""
    for size, unit in ((24 * 60, "day"), (60, "hour"), (1, "minute")):
        if minutes >= 2 * size or size == 1:
            count = max(1, round(minutes / size))
            return f"{count} {unit}s" if count > 1 else f"1 {unit}"
    raise AssertionError


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table for people."""
    return HEADER, [row.cells() for row in rows]


def rows_to_fill(claims: Claims, mode: Mode) -> dict[str, Row]:
    """{claim: its row} of every claim of a mode, without findings."""
    sweeps = {claim.name: (claim, claims.sweep_of(claim, mode)) for claim in claims.claims}
    return {name: Row(claim, sweep, None) for name, (claim, sweep) in sweeps.items() if sweep is not None}


# --- which sweep a directory is ---------------------------------------------------------------------------------------


def begin(folder: Path, sweep: SweepCommand) -> None:
    """Note which sweep a directory is for, before it is trained.

    Raises BadInput for a directory that holds another sweep, or the same one by another command: its runs would be
    counted with those of this one.
    """
    if folder.exists() and _marked(folder).get("command") != sweep.command and any(folder.iterdir()):
        accepted = f"one that holds the runs of `jaxgrok {sweep.command}` alone; move it away or delete it"
        raise BadInput("sweep directory", str(folder), accepted)
    if _marked(folder).get("command") != sweep.command:
        _mark(folder, sweep, None)


def finish(folder: Path, sweep: SweepCommand) -> None:
    """Note that a sweep has trained and is analysed, and of which runs it is."""
    _mark(folder, sweep, _digest_of_runs(load(folder)))


def _note_of(folder: Path) -> Path:
    """The file beside a sweep's directory that says which sweep it is; the directory itself holds the sweep alone."""
    folder = folder.absolute()
    return folder.parent / f"{folder.name}.json"


def _mark(folder: Path, sweep: SweepCommand, runs: str | None) -> None:
    content = {"sweep": sweep.name, "command": sweep.command, "runs": runs}
    with bad_place("scorecard", folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_text(_note_of(folder), json.dumps(content) + "\n")


def _marked(folder: Path) -> dict[str, Any]:
    """What is noted of a directory; empty if nothing is, or if it cannot be read."""
    try:
        content = json.loads(_note_of(folder).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest_of_runs(results: Results) -> str:
    """A digest of which runs there are, and how far each was trained."""
    return digest_of_content({"runs": [[record.identity, record.last_epoch] for record in results.runs]})


def is_done(results: Results, sweep: SweepCommand) -> bool:
    """Whether an opened directory holds the whole of a sweep, and no more."""
    noted = {"sweep": sweep.name, "command": sweep.command, "runs": _digest_of_runs(results)}
    return _marked(results.path) == noted


def rows_of(results: Results) -> list[Row]:
    """The claims that are measured on an opened sweep. There are none unless `reproduce` has trained it."""
    claims, name = read_claims(), _marked(results.path).get("sweep")
    if not isinstance(name, str) or name not in claims.sweeps or not is_done(results, claims.sweeps[name]):
        return []
    sweep, made = claims.sweeps[name], made_with(results)
    return [Row(claim, sweep, _find(claim, results), made) for claim in claims.of_sweep(name)]


def _find(claim: Claim, results: Results) -> Finding | None:
    """What is found for a claim; None if what it is measured on is damaged or missing (`results.damage` names it)."""
    try:
        return claim.find(results)
    except (BadInput, Damaged):
        return None


# --- Markdown ---------------------------------------------------------------------------------------------------------


def scorecard_markdown(rows: Sequence[Row], claims: Claims, mode: Mode, command: str, folder: Path) -> str:
    """scorecard.md. command: that made it. folder: where it is written, for its links to figures and pages."""
    counts = ", ".join(
        f"{number} {verdict}" for verdict in Verdict if (number := sum(row.verdict is verdict for row in rows))
    )
    where = {
        Mode.QUICK: "Small networks, which take minutes on two CPU cores. Their epochs are not those of the post.",
        Mode.FULL: "The settings of the post.",
    }[mode]
    sections = [f"# The claims of the post: {mode}", f"{where} {counts}.", f"Made by `{command}`."]
    for title in dict.fromkeys(row.claim.where for row in rows):
        of_section = [row for row in rows if row.claim.where == title]
        body = [[*row.cells(), " ".join(_links(row, folder))] for row in of_section]
        sections += [f"## {title}", markdown([*HEADER, "look at"], body)]
    sections.append(NOTE)
    used = dict.fromkeys(row.sweep.name for row in rows)
    sweeps = [claims.sweeps[name] for name in used]
    made = {row.sweep.name: row.made_with for row in rows if row.made_with}
    body = [[s.name, s.setting, f"`jaxgrok {s.command}`", duration(s.minutes), made.get(s.name, "")] for s in sweeps]
    sections += ["## The sweeps", markdown(["name", "what", "command", "on two cores", "made with"], body)]
    return "\n\n".join(sections) + "\n"


def _links(row: Row, folder: Path) -> Iterator[str]:
    name = row.sweep.name
    for text, pattern in (("figure", row.claim.figure and f"{name}/{row.claim.figure}"), ("more", row.claim.more)):
        for path in sorted(folder.glob(pattern))[:1] if pattern else ():
            yield f"[{text}]({path.relative_to(folder).as_posix()})"
    if row.kept:
        yield f"{name} (kept)"
    else:
        yield f"[{name}]({name}/report.html)" if (folder / name / "report.html").exists() else name
