"""The scorecards of this folder, from what was found: scorecard.json and scorecard-quick.json.

python docs/results/scorecard.py [FINDINGS]

FINDINGS: a scorecard.json that `jaxgrok reproduce` wrote. What it found replaces what is kept here.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jaxgrok.scorecard import Mode, read_claims, read_findings, rows_to_fill, scorecard_markdown, write_findings

HERE = Path(__file__).parent
NAMES = {Mode.FULL: "scorecard", Mode.QUICK: "scorecard-quick"}


def rows_of(mode, paths):
    """{claim: its row} of every claim of a mode, with what these files say was found; the last one counts."""
    rows = rows_to_fill(read_claims(), mode)
    for path in paths:
        rows = read_findings(path, rows)
    return {name: replace(row, kept=False) for name, row in rows.items()}


def text_of(mode, rows):
    """The scorecard of a mode as this folder keeps it."""
    return scorecard_markdown(list(rows.values()), read_claims(), mode, f"jaxgrok reproduce --{mode}", HERE)


def main(*findings):
    for mode, name in NAMES.items():
        kept = HERE / f"{name}.json"
        rows = rows_of(mode, [path for path in (kept, *map(Path, findings)) if path.exists()])
        write_findings(kept, rows.values())
        (HERE / f"{name}.md").write_text(text_of(mode, rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
