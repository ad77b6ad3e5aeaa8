"""A step of the scripted session, and the scene that each step gets."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import attrs

from sandbox.demo.processes import DemoError
from sandbox.demo.program import Program

# Prints lines of a terminal: `$ COMMAND`, or what a command printed.
Show = Callable[[str], None]
# With the indentation of an output, 80.
PROSE_COLUMNS = 78


@attrs.frozen
class Scene:
    """The agent's kubectl, the operator's hawse, and the names that their outputs have."""

    # Unmodified; its kubeconfig names the hub and holds no Kubernetes credential.
    kubectl: Program
    # On the hub's machine, with the hub's configuration.
    hawse: Program
    agent: str
    team: str
    org: str
    pod_port: int
    # For files that a step writes.
    folder: Path

    @property
    def agent_user(self) -> str:
        """The Kubernetes user that the API server sees."""
        return f"agent:{self.agent}"

    @property
    def agent_group(self) -> str:
        """The Kubernetes group that the API server sees."""
        return f"{self.org}/{self.team}"


@attrs.frozen
class Step:
    """A named step: `act` shows what it does, and raises DemoError unless `meaning` is true of it."""

    name: str
    meaning: str
    act: Callable[[Scene, Show], None]


def expect(text: str, *needed: str) -> None:
    """Every one of `needed` stands in the text."""
    for part in needed:
        if part not in text:
            raise DemoError(f"{part!r} is missing in the output: {text.strip()!r}")


def prose(text: str) -> str:
    """The text in lines that fit a terminal, broken between words."""
    return textwrap.fill(
        text, PROSE_COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
