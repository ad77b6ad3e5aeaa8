"""An agent with every kind of stream open, for tests that end them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import attrs

from tests.system.world import NAMESPACE, POD, POLL_S, SPDY, TEAM, World, log_in

# From the return of the operator's command to the end of the last kubectl.
ENDS_WITHIN_S = 2.0
READY_WITHIN_S = 60.0
OPEN: dict[str, tuple[list[str], bool]] = {
    "watch": (["get", "pods", "--watch"], False),
    "logs": (["logs", "--follow", POD], False),
    "exec": (["exec", "--stdin", POD, "--", "cat"], False),
    "exec over SPDY": (["exec", "--stdin", POD, "--", "cat"], True),
    "attach": (["attach", "--stdin", POD], False),
    "attach over SPDY": (["attach", "--stdin", POD], True),
    "port-forward": (["port-forward", f"pod/{POD}", ":8080"], False),
    "port-forward over SPDY": (["port-forward", f"pod/{POD}", ":8080"], True),
}
# kubectl's SPDY takes any end of a connection for the command's own, and its watch one without a last chunk.
MAY_END_WELL = {"exec over SPDY", "attach over SPDY", "watch"}


@attrs.frozen
class Victim:
    """An agent of a test's own, logged in."""

    world: World
    name: str
    key_id: str
    api_key: str
    environment: dict[str, str]

    def start(self, way: str, args: list[str], *, spdy: bool) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(way, *args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.environment, **(SPDY if spdy else {})},
        )

    def command(self, way: str, *args: str) -> list[str]:
        return ["kubectl", f"--context={way}", f"--namespace={NAMESPACE}", *args]

    def sessions(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(
            self.world.admin("session", "list", "--agent", self.name, "--json")
        )
        return listed

    def open_sessions(self) -> list[dict[str, Any]]:
        """Those of which all is set up."""
        return [one for one in self.world.session_rows(agent=self.name) if is_open(one)]

    @contextlib.contextmanager
    def everything_open(self, way: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        """Each kind of stream that kubectl has, live at the hub."""
        with contextlib.ExitStack() as stack:
            running = {}
            for kind, (args, spdy) in OPEN.items():
                running[kind] = stack.enter_context(self.start(way, args, spdy=spdy))
                stack.callback(running[kind].kill)
            deadline = time.monotonic() + READY_WITHIN_S
            while len(found := self.open_sessions()) < len(OPEN):
                assert time.monotonic() < deadline, f"only these are open: {found}"
                assert not [kind for kind, process in running.items() if process.poll() is not None]
                time.sleep(POLL_S)
            yield running


def is_open(session: dict[str, object]) -> bool:
    """Whether all of it is set up: the requests before it are over, and its streams are there."""
    kind, status = str(session["kind"]), session["status"]
    if kind.startswith(("exec/spdy", "attach/spdy")):
        # kubectl waits half a minute for what answers its four SYN_STREAMs, even where nothing can come.
        return int(str(session["bytes_out"])) >= 4 * 22
    return kind != "request" and status != 0


def enrol_victim(world: World, name: str) -> Victim:
    """Add an agent that the cluster knows as well, and log it in."""
    made = json.loads(world.admin("agent", "add", name, "--team", TEAM, "--owner", "tests", "--json"))
    rbac = world.admin("cluster", "rbac", "tunnel", "--namespace", "hawse", "--service-account", "relay")
    world.administrator("apply", "-f", "-", stdin=rbac)
    home = world.folder / name
    home.mkdir()
    environment = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "KUBECONFIG": str(home / "kubeconfig"),
    }
    log_in(world, environment, made["api_key"])
    return Victim(world, name, made["api_key_id"], made["api_key"], environment)


def ended_within(running: dict[str, subprocess.Popen[bytes]], seconds: float) -> dict[str, int]:
    """Exit codes by kind; what has not ended by then is a failure."""
    deadline = time.monotonic() + seconds
    while [kind for kind, process in running.items() if process.poll() is None]:
        left = [kind for kind, process in running.items() if process.poll() is None]
        assert time.monotonic() < deadline, f"still running after {seconds} s: {left}"
        time.sleep(POLL_S)
    return {kind: process.returncode for kind, process in running.items()}
