"""The claims of the post as data: claims.toml, read and checked."""

import functools
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from importlib.resources import files
from typing import Any

from jaxgrok.config import BadInput
from jaxgrok.scorecard import circuits, times
from jaxgrok.scorecard.findings import Finding, Rule
from jaxgrok.store.results import Results

MEASURES: dict[str, Callable[..., Finding]] = {
    measure.__name__: measure for measure in (*times.MEASURES, *circuits.MEASURES)
}
BOUNDS = tuple(field.name for field in fields(Rule))


class Mode(StrEnum):
    """Where claims are measured: on networks small enough for 15 minutes, or in the settings of the post."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True)
class SweepCommand:
    """A sweep that claims are measured on.

    command: what jaxgrok is called with, without --out. setting: what is trained, in a few words. minutes: what it
    takes on two CPU cores, its analysis included. analyze: whether its networks have to be analysed.
    """

    name: str
    command: str
    setting: str
    minutes: float
    analyze: bool = False

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)


@dataclass(frozen=True)
class Claim:
    """One claim of the post.

    says: the claim in a few words. where: where it stands. published: the published value. value: what the number is,
    with its unit. measure: its name in MEASURES, called with the sweep's results and `arguments`. rule: the bounds of
    its values. sweeps: the name of the sweep in each mode; a mode without one does not have the claim. figure: the
    figure to look at, in the sweep's directory; of several that fit a pattern, the first. more: a page of docs/results.
    """

    name: str
    says: str
    where: str
    published: str
    value: str
    measure: str
    rule: Rule
    sweeps: Mapping[Mode, str]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    figure: str = ""
    more: str = ""

    def find(self, results: Results) -> Finding:
        """What the claim's measure gives of a sweep."""
        return MEASURES[self.measure](results, **self.arguments)


@dataclass(frozen=True)
class Claims:
    """All claims, in the order of the post, and the sweeps by name."""

    claims: list[Claim]
    sweeps: dict[str, SweepCommand]

    def sweep_of(self, claim: Claim, mode: Mode) -> SweepCommand | None:
        name = claim.sweeps.get(mode)
        return None if name is None else self.sweeps[name]

    def of_sweep(self, name: str) -> list[Claim]:
        """The claims that are measured on a sweep."""
        return [claim for claim in self.claims if name in claim.sweeps.values()]

    def select(self, names: list[str] | None) -> list[Claim]:
        """The named claims, or all. Raises BadInput for a name that is none."""
        known = {claim.name: claim for claim in self.claims}
        for name in names or ():
            if name not in known:
                raise BadInput("--only", name, " ".join(known))
        return self.claims if names is None else [known[name] for name in dict.fromkeys(names)]


@functools.cache
def read_claims() -> Claims:
    """The claims that come with jaxgrok."""
    content = tomllib.loads((files("jaxgrok.scorecard") / "claims.toml").read_text())
    sweeps = {name: SweepCommand(name, **sweep) for name, sweep in content["sweeps"].items()}
    return Claims([_claim(name, dict(claim)) for name, claim in content["claims"].items()], sweeps)


def _claim(name: str, content: dict[str, Any]) -> Claim:
    rule = Rule(**{bound: content.pop(bound) for bound in BOUNDS if bound in content})
    sweeps = {mode: content.pop(str(mode)) for mode in Mode if str(mode) in content}
    return Claim(name, rule=rule, sweeps=sweeps, **content)
