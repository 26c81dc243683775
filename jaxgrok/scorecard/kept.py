"""Findings on disk: scorecard.json, so that what was found on one machine can stand beside what is found on another.

A finding is used only as long as its claim is measured in the same way, on a sweep of the same command.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrok.atomic import bad_place, replace_text
from jaxgrok.config import BadInput
from jaxgrok.scorecard.card import Row
from jaxgrok.scorecard.claims import Claim, SweepCommand
from jaxgrok.scorecard.findings import Finding

NEVER = "not reached"  # how infinity is written; what is unknown is null
VERSION = 1  # to be raised when a measure computes something else: older findings are then left out


def _identity(claim: Claim, sweep: SweepCommand) -> dict[str, Any]:
    """What a finding depends on."""
    return {"version": VERSION, "measure": claim.measure, "arguments": dict(claim.arguments), "command": sweep.command}


def write_findings(path: Path, rows: Iterable[Row]) -> None:
    """Write what was found for each claim. Raises BadInput if the file cannot be written."""
    content = {
        row.claim.name: {**_identity(row.claim, row.sweep), "made_with": row.made_with, **_to_json(row.finding)}
        for row in rows
        if row.finding is not None
    }
    with bad_place("scorecard", path.parent):
        replace_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_findings(path: Path, rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows with what a file says of their claims. What is said of other claims, of another measure or of another
    sweep is left out. Raises BadInput for a file that `write_findings` did not write."""
    try:
        content = json.loads(path.read_text())
        found = {}
        for name, kept in content.items():
            row = rows.get(name)
            if row is not None and all(kept[key] == x for key, x in _identity(row.claim, row.sweep).items()):
                found[name] = Row(row.claim, row.sweep, _from_json(kept), str(kept["made_with"]), kept=True)
        return {**rows, **found}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise BadInput("--kept", str(path), "a scorecard.json that this command wrote") from None


def _to_json(finding: Finding) -> dict[str, Any]:
    interval = None if finding.interval is None else [_plain(bound) for bound in finding.interval]
    values = [_plain(value) for value in finding.values.tolist()]
    return {"of": finding.of, "runs": finding.runs, "interval": interval, "names": finding.names, "values": values}


def _from_json(content: Mapping[str, Any]) -> Finding:
    interval = content["interval"]
    low_high = None if interval is None else (_number(interval[0]), _number(interval[1]))
    values, names = [_number(value) for value in content["values"]], tuple(map(str, content["names"]))
    if len(values) != len(names) or not isinstance(content["of"], str) or not isinstance(content["runs"], int | None):
        raise ValueError("not a finding")
    return Finding(np.array(values, float), names, content["of"], low_high, content["runs"])


def _plain(value: float) -> float | str | None:
    return None if np.isnan(value) else NEVER if np.isinf(value) else value


def _number(value: float | str | None) -> float:
    return np.nan if value is None else np.inf if value == NEVER else float(value)
