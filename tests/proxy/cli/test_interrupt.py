"""Ctrl-C at a terminal: every command ends with 130, even while it waits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from audit.record import Kind
from audit.store import AuditStore
from proxy.cli.audit.local_events import local_event
from tests.fakes.terminal import DEADLINE_S, on_terminal

CTRL_C, CTRL_D = b"\x03", b"\x04"
# An interrupted process exits in a tenth of this.
AGAIN_S = 2.0


def typed(keys: bytes, shown: bytes, *args: str, **environment: str) -> tuple[int, bytes]:
    """Type keys at `hawse ARGS` as soon as output appears; returns its status and all output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")}
    argv = [sys.executable, "-m", "hawse", *args]
    with on_terminal(argv, {**clean, **environment}) as terminal:
        terminal.read_until(shown)
        terminal.type(keys)
        try:
            status = terminal.process.wait(AGAIN_S)
        except subprocess.TimeoutExpired:
            # Python loses a signal that arrives just before a read, so press the keys again, as a person
            # would.
            terminal.type(keys)
            status = terminal.process.wait(DEADLINE_S)
        return status, terminal.read_all()


@pytest.fixture
def trail(tmp_path: Path) -> str:
    store = AuditStore(tmp_path / "audit.db")
    store.append([local_event(Kind.HUB_STARTED, "a hub")])
    store.close()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("shown", "args"),
    [
        (b"API key: ", ["login", "--hub", "https://127.0.0.1:9"]),
        (b"Enrolment code: ", ["login", "--hub", "https://127.0.0.1:9", "--code"]),
        (rb"Its name can never be used again \[y/N\]: ", ["admin", "agent", "remove", "sre-1"]),
        (rb"Remove policy guard\? \[y/N\]: ", ["admin", "policy", "remove", "guard"]),
    ],
)
def test_a_prompt(shown: bytes, args: list[str]) -> None:
    status, output = typed(CTRL_C, shown, *args)
    assert (status, b"Aborted" in output) == (130, False)


def test_a_prompt_that_is_answered_by_the_end_of_input_has_failed() -> None:
    status, output = typed(CTRL_D, rb"\[y/N\]: ", "admin", "agent", "remove", "sre-1")
    assert (status, b"Aborted!" in output) == (1, True)


def test_the_prompt_of_a_prune_and_a_followed_trail(trail: str) -> None:
    status, output = typed(CTRL_C, rb"\[y/N\]: ", "audit", "prune", "--keep", "0h", "--data-dir", trail)
    assert (status, b"Aborted" in output) == (130, False)
    status, output = typed(CTRL_C, b"hub.started", "audit", "list", "--follow", "--data-dir", trail)
    # The shell's next prompt starts a new line.
    assert (status, output[-4:]) == (130, b"^C\r\n")


def test_a_hub_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        reach = {"HAWSE_ADMIN_URL": url, "HAWSE_ADMIN_TOKEN": "hwa_x"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HAWSE_")}
        argv = [sys.executable, "-m", "hawse", "admin", "agent", "list"]
        with on_terminal(argv, {**clean, **reach}) as terminal:
            taken, _ = silent.accept()
            with taken:
                terminal.type(CTRL_C)
                assert terminal.process.wait(DEADLINE_S) == 130
