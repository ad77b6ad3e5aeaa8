"""A step of the scripted session, and the shared state of all steps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import attrs

from sandbox.demo.hubs import Hubs
from sandbox.demo.processes import Daemon, DemoError
from sandbox.demo.program import Program

# Prints lines of a terminal: `$ COMMAND`, or a command's output.
Show = Callable[[str], None]
# With the indentation of an output, 80.
PROSE_COLUMNS = 78


@attrs.frozen
class Scene:
    """The agent's kubectl, the operator's hawse, and the names in their outputs."""

    # Unmodified; its kubeconfig names the hub and contains no Kubernetes credential.
    kubectl: Program
    # On the hub's machine, with the hub's configuration.
    hawse: Program
    agent: str
    team: str
    org: str
    pod_port: int
    # For files that a step writes.
    folder: Path
    relays: list[Daemon] = attrs.field(factory=list)
    # The hubs of `--hubs`; None for a single one.
    several: Hubs | None = None

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
    """A named step: `act` shows what it does, and raises DemoError unless `meaning` holds."""

    name: str
    meaning: str
    act: Callable[[Scene, Show], None]

    @property
    def verdict(self) -> str:
        """The line that ends the step when it was right."""
        return f"ok      {self.name:<13} {self.meaning}"


def expect(text: str, *needed: str) -> None:
    """Raise DemoError unless the text contains every one of `needed`."""
    for part in needed:
        if part not in text:
            raise DemoError(f"{part!r} is missing in the output: {text.strip()!r}")


def write_policy(scene: Scene, show: Show, name: str, content: str) -> None:
    """Write a policy into a file of the scene's folder."""
    (scene.folder / name).write_text(content)
    show(f"$ cat {name}")
    show(content)


def apply_policy(scene: Scene, show: Show, name: str) -> None:
    """Apply the policy of that file; raises DemoError unless it is in force."""
    show(f"$ hawse admin policy apply {name}")
    out, err = scene.hawse.run("admin", "policy", "apply", str(scene.folder / name))
    expect(out + err, "in force")
    show(out + err)


def prose(text: str) -> str:
    """The text in lines that fit a terminal, broken between words."""
    return textwrap.fill(
        text, PROSE_COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
