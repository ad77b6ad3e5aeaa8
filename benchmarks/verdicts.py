"""What a gate says of each of its figures: no more than so many times what its baseline has."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from benchmarks.figures import brief

Allowed = float | Mapping[str, float]
"""How many times its baseline a figure may be: one share for all of them, or one for each."""


@attrs.frozen
class Verdict:
    """One line of a gate."""

    title: str
    now: float | None
    """None when the run did not have it."""
    before: float
    unit: str
    allowed: float

    @property
    def passed(self) -> bool:
        return self.now is not None and self.now <= self.before * self.allowed

    def __str__(self) -> str:
        now = brief(self.now) if self.now is not None else "not measured"
        end = "" if self.passed else f"  more than {self.allowed:g} times the baseline"
        return f"{self.title:34} {now:>8} {self.unit}, baseline {brief(self.before)}{end}"


def judge(
    now: Mapping[str, float], baseline: Mapping[str, float], *, unit: str, allowed: Allowed
) -> list[Verdict]:
    """A verdict for each line of the baseline."""
    shares = dict.fromkeys(baseline, allowed) if isinstance(allowed, float) else allowed
    return [Verdict(title, now.get(title), before, unit, shares[title]) for title, before in baseline.items()]


def report(now: Mapping[str, float], baseline: Mapping[str, float], *, unit: str, allowed: Allowed) -> None:
    """Print the verdicts, and exit with 1 unless all have passed."""
    verdicts = judge(now, baseline, unit=unit, allowed=allowed)
    print("\n".join(map(str, verdicts)))
    if not all(verdict.passed for verdict in verdicts):
        sys.exit(1)


def conclude(now: Mapping[str, float], file: Path, *, unit: str, allowed: Allowed, write: bool) -> None:
    """Print the verdicts by a baseline's file and exit with 1 unless all have passed; or write the file."""
    if write:
        file.write_text(json.dumps(now, indent=1) + "\n")
        print(f"wrote {file.name}: {now}")
        return
    report(now, json.loads(file.read_text()), unit=unit, allowed=allowed)
