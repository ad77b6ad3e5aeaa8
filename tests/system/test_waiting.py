"""A token lives for a minute and `kubectl wait` for as long as it takes: neither notices the other."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from tests.system.forgers import access_forger
from tests.system.world import AGENT, NAMESPACE, POLL_S, WAYS, World

pytestmark = pytest.mark.kubectl

DEADLINE_S = 30.0
# kubectl asks for watches of five to ten minutes, so that in this time it has watched twice at least.
LONG_WAIT_S = 630.0
TOKEN_S = 2
# How often a watch is ended under the wait that needs it.
CUTS = 2
ROOT = Path(__file__).parents[2]


@contextmanager
def waiting(world: World, name: str, *flags: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A `kubectl wait` by each way, for an annotation that nothing has yet."""
    world.administrator("create", "configmap", name, f"--namespace={NAMESPACE}")
    condition = "--for=jsonpath={.metadata.annotations.done}=yes"
    with ExitStack() as stack:
        running = {}
        for way in WAYS:
            args = ["wait", condition, f"configmap/{name}", "--timeout=20m", *flags]
            running[way] = stack.enter_context(world.popen(way, *args))
            stack.callback(running[way].kill)
        yield running


def watches(world: World, name: str) -> dict[str, dict[str, object]]:
    """The watch of each wait that is answered now, by its way."""
    return {
        str(one["cluster"]): one
        for one in world.session_rows(agent=AGENT)
        if one["kind"] == "watch" and one["name"] == name and one["status"]
    }


def all_watched(
    world: World, name: str, running: Mapping[str, subprocess.Popen[bytes]]
) -> dict[str, dict[str, object]]:
    """What `watches` says, once each wait has its watch."""
    deadline = time.monotonic() + DEADLINE_S
    while len(found := watches(world, name)) < len(running):
        assert time.monotonic() < deadline, f"only these watch: {found}"
        still_waiting(running)
        time.sleep(POLL_S)
    return found


# kubectl's log of its own end: it gives its watch up once the condition is met, and may be reading it then.
OWN_END = re.compile(rb"^I[^\n]*watch ended with error[^\n]*: context canceled\\?\"[^\n]*\n", re.MULTILINE)


def still_waiting(running: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for way, process in running.items():
        assert process.poll() is None, (way, process.communicate())


def fulfil(world: World, name: str, running: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Let the condition come true; each wait says so and nothing else, and ends well."""
    world.administrator("annotate", f"--namespace={NAMESPACE}", f"configmap/{name}", "done=yes")
    for way, process in running.items():
        out, err = process.communicate(timeout=DEADLINE_S)
        said = OWN_END.sub(b"", err)
        assert (process.returncode, out, said) == (0, f"configmap/{name} condition met\n".encode(), b""), way


def tokens_of(world: World, way: str, name: str) -> list[str]:
    """The tokens under which a wait asked, in the order of its requests, all of which were answered."""
    events = [
        event
        for event in world.hub_audit("--cluster", way, "--agent", AGENT)
        if event["phase"] == "complete" and (event.get("req") or {}).get("name") == name
    ]
    assert {event["resp"]["status"] for event in events} == {200}
    return [event["actor"]["jti"] for event in events]


def refused_tokens(world: World) -> int:
    # The sum that ends a flood may be of another test's; each flood begins with an event of its own.
    failed = [event for event in world.hub_audit() if event["kind"] == "auth.failed"]
    return len([event for event in failed if event.get("count", 1) == 1])


def short_lived(world: World) -> Path:
    """The agent's kubeconfig, but with a plugin that gives each token two seconds."""
    kubeconfig = yaml.safe_load(Path(world.agent["KUBECONFIG"]).read_text())
    forgers = {way: access_forger(world, way) for way in WAYS}
    kubeconfig["users"] = []
    for way, forger in forgers.items():
        claims = json.dumps({**forger.claims, "jti": secrets.token_hex(8)})
        pem = str(world.folder / "hub" / "keys" / f"{forger.kid}.pem")
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-m", "tests.system.minting", pem, forger.kid, claims, str(TOKEN_S)],
            "env": [{"name": "PYTHONPATH", "value": str(ROOT)}],
            "interactiveMode": "Never",
        }
        kubeconfig["users"].append({"name": way, "user": {"exec": plugin}})
    for context in kubeconfig["contexts"]:
        context["context"]["user"] = context["name"]
    file = world.folder / "agent" / "short-lived"
    file.write_text(json.dumps(kubeconfig))
    return file


@pytest.mark.timeout(120)
def test_a_wait_outlives_its_tokens_and_its_watches(world: World) -> None:
    name = f"wait-{secrets.token_hex(4)}"
    refused = refused_tokens(world)
    with waiting(world, name, f"--kubeconfig={short_lived(world)}") as running:
        found = all_watched(world, name, running)
        for _ in range(CUTS):
            expired_at = time.time() + TOKEN_S + 1
            while time.time() < expired_at:
                still_waiting(running)
                time.sleep(POLL_S)
            # Under a token that is dead the watch lives on; what comes in its place needs another.
            assert {one["id"] for one in watches(world, name).values()} == {
                one["id"] for one in found.values()
            }
            for one in found.values():
                world.admin("session", "kill", str(one["id"]), "--reason", "the test's", "--yes")
            before, found = found, all_watched(world, name, running)
            assert {one["id"] for one in before.values()}.isdisjoint(one["id"] for one in found.values())
        fulfil(world, name, running)
    assert refused_tokens(world) == refused


@pytest.mark.long
@pytest.mark.timeout(LONG_WAIT_S + 120)
def test_a_wait_of_ten_minutes_is_not_interrupted_by_tokens_of_one(world: World) -> None:
    name = f"wait-{secrets.token_hex(4)}"
    refused = refused_tokens(world)
    with waiting(world, name) as running:
        all_watched(world, name, running)
        until = time.monotonic() + LONG_WAIT_S
        for process in running.values():
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        still_waiting(running)
        fulfil(world, name, running)
    for way in WAYS:
        tokens = tokens_of(world, way, name)
        assert tokens[0] != tokens[-1], tokens
    assert refused_tokens(world) == refused
