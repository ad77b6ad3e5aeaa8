"""Runs the steps in order, and shows what each runs, what it prints, and what that means."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.demo.agent_steps import AGENT_STEPS
from sandbox.demo.approval_steps import APPROVAL_STEPS
from sandbox.demo.hub_steps import HUB_STEPS
from sandbox.demo.operator_steps import OPERATOR_STEPS
from sandbox.demo.processes import DemoError, say
from sandbox.demo.scene import Scene, Step

STEPS = (*AGENT_STEPS, *OPERATOR_STEPS, *APPROVAL_STEPS)
# After those, with several hubs.
MORE_STEPS = HUB_STEPS


def run_script(steps: Sequence[Step], scene: Scene) -> list[str]:
    """Run every step and return the names of those that failed."""
    failed = []
    for step in steps:
        say("")
        try:
            step.act(scene, show)
        except DemoError as error:
            failed.append(step.name)
            say(f"FAILED  {step.name:<13} {error}")
        else:
            say(step.verdict)
    return failed


def show(text: str) -> None:
    """Print terminal lines: commands at the margin, their output indented."""
    for line in text.splitlines():
        say(line if line.startswith("$ ") else f"  {line}")
