"""The scorecard: the claims of the post, each beside what our sweeps measure, with a verdict by a rule that is stated.

claims.toml   the claims, and the sweeps they are measured on, as data
claims.py     reads them
findings.py   what a claim's measure gives, and the rule that judges it
times.py      measures of when things happen: phase changes, parts, slingshots
circuits.py   measures of what the networks have learned
card.py       the card: a row per claim, as Markdown and for the page
kept.py       findings on disk, to stand beside those of another machine
"""

from jaxgrok.scorecard.card import NOTE, Row, begin, finish, is_done, rows_of, rows_to_fill, scorecard_markdown, table
from jaxgrok.scorecard.claims import Claim, Claims, Mode, SweepCommand, read_claims
from jaxgrok.scorecard.findings import Finding, Rule, Verdict
from jaxgrok.scorecard.kept import read_findings, write_findings

__all__ = [
    "NOTE",
    "Claim",
    "Claims",
    "Finding",
    "Mode",
    "Row",
    "Rule",
    "SweepCommand",
    "Verdict",
    "begin",
    "finish",
    "is_done",
    "read_claims",
    "read_findings",
    "rows_of",
    "rows_to_fill",
    "scorecard_markdown",
    "table",
    "write_findings",
]
