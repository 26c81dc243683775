"""What the measure of a claim gives, and the rule that judges it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import quantile_test

MOST_NAMED = 4  # of the values that do not fulfil a rule: more are counted alone
# Shares of the values that must fulfil a rule, for a claim to be reproduced, and to be so in part.
REPRODUCED, PARTLY = 0.9, 0.5


class Verdict(StrEnum):
    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT = "not reproduced"
    UNKNOWN = "unknown"  # it was run, and less than half of the values can be known
    NOT_RUN = "not yet run"


@dataclass(frozen=True)
class Finding:
    """What a measure gives: a value of each run, or of each pair of runs, or one of all of them.

    values: infinity is what was not reached by the end of a run; NaN is what cannot be known. names: of each value, as
    `seed 3`. of: what the values are of. interval, runs: of a single value that is an estimate, its 95 % interval and
    the number of runs that it rests on.
    """

    values: Float[np.ndarray, "n"]
    names: tuple[str, ...]
    of: str = "runs"
    interval: tuple[float, float] | None = None
    runs: int | None = None

    @property
    def known(self) -> Float[np.ndarray, "m"]:
        return self.values[~np.isnan(self.values)]

    def __str__(self) -> str:
        """The median with its 95 % interval, and the number of values: `7,510 [5,230, 10,070], 8 runs`.

        The interval is that of the order statistics, which supposes nothing about the distribution. It does not exist
        for fewer than 6 values, nor for values of pairs, which are not independent: of those the range is given.
        """
        if not len(self.known):
            return "unknown"
        if len(self.known) == 1:
            text = number(self.known[0])
            if self.interval is not None:
                text += " [" + ", ".join(map(number, self.interval)) + "]"
        else:
            low, high = quantile_test(self.known, p=0.5).confidence_interval(0.95)
            exists = self.of == "runs" and not (np.isnan(low) or np.isnan(high))
            ends = (low, high) if exists else (self.known.min(), self.known.max())
            bounds = "[{}, {}]" if exists else "({} - {})"
            text = f"{number(float(np.median(self.known)))} {bounds.format(*map(number, ends))}"
        unknown = len(self.values) - len(self.known)
        count = len(self.values) if self.runs is None else self.runs
        counted, *rest = self.of.split(" ")
        of = " ".join([counted.removesuffix("s") if count == 1 else counted, *rest])
        return f"{text}, {count} {of}" + (f" ({unknown} unknown)" if unknown else "")


def number(value: float) -> str:
    """A number for people: three digits, thousands with commas."""
    if not np.isfinite(value):
        return "not reached" if value > 0 else "-"
    if value and not 1e-3 <= abs(value) < 1e7:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Rule:
    """The bounds within which values agree with a claim. What was not reached lies within none."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def fulfilled(self, values: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        within = np.isfinite(values)
        for bound, compare in (
            (self.above, np.greater),
            (self.at_least, np.greater_equal),
            (self.below, np.less),
            (self.at_most, np.less_equal),
        ):
            if bound is not None:
                within &= compare(values, bound)
        return within

    def verdict(self, finding: Finding) -> Verdict:
        known = finding.known
        if len(known) < max(1, len(finding.values) / 2):
            return Verdict.UNKNOWN
        share = self.fulfilled(known).mean()
        if share >= REPRODUCED:
            return Verdict.REPRODUCED
        return Verdict.PARTLY if share >= PARTLY else Verdict.NOT

    def count(self, finding: Finding) -> str:
        """`7 of 8; not seed 6`; empty of a single value for all runs."""
        known = ~np.isnan(finding.values)
        if finding.runs is not None or not known.any():
            return ""
        fulfilled = self.fulfilled(finding.values)
        text = f"{(fulfilled & known).sum()} of {known.sum()}"
        failed = [name for name, bad in zip(finding.names, ~fulfilled & known, strict=True) if bad]
        return f"{text}; not {', '.join(failed)}" if 0 < len(failed) <= MOST_NAMED else text

    def __str__(self) -> str:
        """`at least 3 and at most 7`."""
        words = (("above", self.above), ("at least", self.at_least), ("below", self.below), ("at most", self.at_most))
        return " and ".join(f"{word} {number(bound)}" for word, bound in words if bound is not None)


def finding_of(values: Sequence[float], names: Sequence[str], of: str = "runs") -> Finding:
    return Finding(np.array(values, float), tuple(names), of)


def single(value: float, runs: int, interval: tuple[float, float] | None = None) -> Finding:
    """A finding that is one number of all runs."""
    return Finding(np.array([value], float), ("all",), interval=interval, runs=runs)
