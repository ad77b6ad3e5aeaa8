"""The steps one by one, and the audit trail that grows between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sandbox.demo.stage import AGENT, hawse, say
from sandbox.demo.steps import Scene, Step, StepFailedError


class Trail:
    """The audit trail as `hawse audit list` prints it, read between the steps to show it growing."""

    def __init__(self, config: Path) -> None:
        self._environment = {"HAWSE_HUB_CONFIG": str(config)}
        self.length = 0

    def new_lines(self) -> list[str]:
        """The events since the last call."""
        rows = hawse(
            "audit", "list", "--agent", AGENT, "--limit", "all", environment=self._environment
        ).splitlines()[1:]
        new, self.length = rows[self.length :], len(rows)
        return new


def run_script(
    steps: Sequence[Step], scene: Scene, new_lines: Callable[[], Sequence[str]], *, brief: bool
) -> int:
    """Run every step, a line each, and return how many failed.

    Unless `brief`, each is announced before it begins, and followed by what it added to the trail.
    """
    failures = 0
    for step in steps:
        if not brief:
            say(f"\n        $ {step.command}")
        try:
            seen = step.act(scene)
        except StepFailedError as error:
            failures += 1
            say(f"FAILED  {step.name:<13} {error}")
        else:
            say(f"ok      {step.name:<13} {seen}")
        new = new_lines()
        if not brief:
            for line in new:
                say(f"        | {line}")
    return failures
