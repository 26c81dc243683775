"""The scorecard itself: a row per claim, as Markdown and as a table for the page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgrok.atomic import replace_text
from jaxgrok.scorecard.claims import Claim, Claims, Mode, SweepCommand, read_claims
from jaxgrok.scorecard.findings import PARTLY, REPRODUCED, Finding, Verdict
from jaxgrok.store.results import Results
from jaxgrok.tables.timing import Table
from jaxgrok.tables.write import markdown

MARK = "claims.json"  # in the directory of a sweep that claims were measured on: which sweep it is
NOTE = (
    "Rule: what is measured, and the bounds of its values. A claim is reproduced where at least "
    f"{100 * REPRODUCED:.0f} % of the values lie within them, and partly where at least {100 * PARTLY:.0f} % do. What "
    "never happened lies within no bounds, and what cannot be known is not counted. Ours: the median over the runs, or "
    "over what else is named, with the 95 % interval of its order statistics; of fewer than six values, the range, in "
    "round brackets. Claims about circuits are measured on the runs that grokked, each at its last checkpoint or over "
    "its training."
)
HEADER = ["claim", "published", "ours", "verdict", "rule"]


@dataclass(frozen=True)
class Row:
    """A claim, the sweep that it is measured on, and what was found; None if the sweep has not been trained.

    made_with: versions and device.
    """

    claim: Claim
    sweep: SweepCommand
    finding: Finding | None
    made_with: str = ""

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


# --- which sweep a directory is ---------------------------------------------------------------------------------------


def mark(folder: Path, sweep: SweepCommand) -> None:
    """Note in a sweep's directory, once it has trained and is analysed, which sweep it is, and by which command."""
    replace_text(folder / MARK, json.dumps({"sweep": sweep.name, "command": sweep.command}) + "\n")


def marked(folder: Path) -> dict[str, Any]:
    """What `mark` has noted; empty if it has not, or if what is there cannot be read."""
    try:
        content = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_done(folder: Path, sweep: SweepCommand) -> bool:
    """Whether a directory holds the whole of a sweep."""
    return marked(folder) == {"sweep": sweep.name, "command": sweep.command}


def rows_of(results: Results) -> list[Row]:
    """The claims that are measured on an opened sweep. There are none unless `reproduce` has trained it."""
    claims, name = read_claims(), marked(results.path).get("sweep")
    if not isinstance(name, str) or name not in claims.sweeps:
        return []
    return [Row(claim, claims.sweeps[name], claim.find(results), made_with(results)) for claim in claims.of_sweep(name)]


def made_with(results: Results) -> str:
    """Versions and device of the session that trained last."""
    if not results.sessions:
        return ""
    session = results.sessions[-1]
    versions = ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items())
    devices = session.get("devices", [])
    return f"{versions}; {len(devices)} x {devices[0]}" if devices else versions


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
    made_with = {row.sweep.name: row.made_with for row in rows}
    body = [[s.name, s.setting, f"`jaxgrok {s.command}`", duration(s.minutes), made_with[s.name]] for s in sweeps]
    sections += ["## The sweeps", markdown(["name", "what", "command", "on two cores", "made with"], body)]
    return "\n\n".join(sections) + "\n"


def _links(row: Row, folder: Path) -> Iterator[str]:
    name = row.sweep.name
    for text, pattern in (("figure", row.claim.figure and f"{name}/{row.claim.figure}"), ("more", row.claim.more)):
        for path in sorted(folder.glob(pattern))[:1] if pattern else ():
            yield f"[{text}]({path.relative_to(folder).as_posix()})"
    yield f"[{name}]({name}/report.html)" if (folder / name / "report.html").exists() else name
