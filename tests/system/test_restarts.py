"""What dies and comes back: a hub, a relay."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest

from auth.assertion import issue_assertion
from auth.keys import SigningKey
from tests.faults.figures import note
from tests.system.callers import shells
from tests.system.forgers import dial, hello_forger, issuer
from tests.system.homes import add_agent
from tests.system.load import get
from tests.system.raw import Answer, RawClient, parse
from tests.system.waiting import wait_until
from tests.system.world import POD_PATH, POLL_S, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

# The hub's start included. Relays dial each second.
BACK_WITHIN_S = 10.0

# From the moment the new hub listens to the first answered request.
OFFLINE_S = 2.0
RESTARTS = 3
RESTART_EVERY_S = 4.0
# `stop.grace_s` is 10: a stopping hub cuts an exec that goes on after that.
STOPS_WITHIN_S = 20.0
STARTS_WITHIN_S = 30.0
# A longer time is a failure as well, but is not measured.
SEEN_OFFLINE_MAX_S = 60.0


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """A world of this test's own: its relays have not spent their budget of early dials."""
    with running_world(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def lasting_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world in which hub and relays run after each test."""
    with running_world(tmp_path_factory.mktemp("lasting")) as running:
        yield running


def test_relays_and_hub_come_back_and_an_offline_cluster_says_so_at_once(lasting_world: World) -> None:
    world = lasting_world
    assert world.kubectl("tunnel", "get", "pods").code == 0

    # The hub dies without a word, and starts again: the relay finds back by itself.
    assert world.hub is not None
    world.hub.process.kill()
    world.hub.process.wait()
    began = time.monotonic()
    world.start_hub()
    world.wait_for_tunnel(BACK_WITHIN_S)
    assert time.monotonic() - began < BACK_WITHIN_S
    assert world.kubectl("tunnel", "get", "pods").code == 0
    # What the dead hub had begun has an end in the trail, and the events are in one sequence.
    sequence = [event["seq"] for event in world.hub_audit()]
    assert sequence == sorted(set(sequence))

    # The relay dies without a word. Its socket's end tells the hub, which waits two seconds for a comeback.
    client = RawClient(world, "tunnel")
    token = client.token()
    world.relays["tunnel"].process.kill()
    world.relays["tunnel"].process.wait()
    for waits_s in (2.0, 0.0):
        # Not by kubectl, whose own start takes what a busy machine has for it.
        began = time.monotonic()
        status, said = get(client, token, "/api/v1/namespaces/work/pods")
        elapsed = time.monotonic() - began
        assert (status, b"offline" in said) == (503, True), said
        assert elapsed < waits_s + 1.0, f"{elapsed:.2f} s"
    for args in (["get", "pods"], ["get", "--raw", "/api/v1/namespaces/work/pods"]):
        offline = world.kubectl("tunnel", *args)
        assert offline.code == 1
        assert b"offline" in offline.err, offline.err
    assert world.kubectl("direct", "get", "pods").code == 0

    # Another instance takes over as soon as it is there.
    world.start_relay("tunnel")
    world.wait_for_tunnel()
    assert world.kubectl("tunnel", "get", "pods").code == 0


def test_a_terminated_hub_ends_with_exit_code_zero(lasting_world: World) -> None:
    world = lasting_world
    watching = world.popen("tunnel", "get", "pods", "--watch")
    try:
        assert world.hub is not None
        # kubectl's first line is of a list that it asks for before.
        wait_until(lambda: any(one["kind"] == "watch" for one in world.session_rows()))
        world.hub.process.terminate()
        assert world.hub.process.wait(30) == 0
        events = [json.dumps(event) for event in world.audit_rows()]
        assert any('"watch"' in event and '"complete"' in event for event in events)
    finally:
        watching.kill()
        watching.communicate()
    world.start_hub()
    world.wait_for_tunnel()


@pytest.mark.parametrize(
    ("relays", "execs"),
    [
        pytest.param(1, 0, id="one relay, no streams", marks=pytest.mark.long),
        pytest.param(2, 0, id="two relays, no streams", marks=pytest.mark.long),
        pytest.param(1, 1, id="one relay, an exec", marks=pytest.mark.long),
        pytest.param(2, 2, id="two relays, execs"),
    ],
)
def test_a_hub_restarted_by_sigterm_again_and_again_has_its_relays_back_within_2_s(
    own_world: World, relays: int, execs: int
) -> None:
    """A container knows no other restart. The port is closed between the old hub and the new one."""
    world = own_world
    if relays == 2:
        world.start_relay("tunnel", "second")
        wait_until(lambda: sum(bool(row["connected"]) for row in world.relay_rows()) == 2)
    offline_s = []
    with ExitStack() as stack:
        for _ in range(RESTARTS):
            # Each restart cuts those of the one before.
            stack.enter_context(shells(world, execs, "tunnel"))
            client = RawClient(world, "tunnel")
            hub = world.hub
            assert hub is not None
            hub.process.terminate()
            assert hub.process.wait(STOPS_WITHIN_S) == 0
            world.launch_hub()
            listening_at = wait_for_listener(world)
            wait_for_answer(client)
            offline_s.append(time.monotonic() - listening_at)
            time.sleep(max(0.0, listening_at + RESTART_EVERY_S - time.monotonic()))
    note(
        "offline after restarts of the hub by SIGTERM",
        f"{relays} relays, {execs} execs",
        **{f"restart_{number}_s": round(each_s, 2) for number, each_s in enumerate(offline_s, 1)},
    )
    assert max(offline_s) <= OFFLINE_S, offline_s


def wait_for_listener(world: World) -> float:
    """Wait until the hub accepts connections; returns since when."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        assert time.monotonic() < deadline, "the hub does not listen"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", world.hub_port)) == 0:
                return time.monotonic()
        time.sleep(POLL_S / 5)


def wait_for_answer(client: RawClient) -> None:
    """Ask for the pod until the cluster answers."""
    deadline = time.monotonic() + SEEN_OFFLINE_MAX_S
    token = client.token()
    while (answer := get(client, token, POD_PATH))[0] != 200:
        assert answer[0] == 503, answer
        assert time.monotonic() < deadline, answer
        time.sleep(POLL_S)


@pytest.mark.parametrize("planned", [True, False], ids=["replaced", "killed"])
def test_what_was_good_once_is_not_good_again_after_a_restart(
    lasting_world: World, tmp_path: Path, planned: bool
) -> None:
    """An agent's assertion and a relay's token that an attacker captured while they are valid."""
    world, name = lasting_world, "replaced" if planned else "killed"
    home, made = add_agent(world, name, tmp_path / "home", "--credential", "code")
    assert home.login("--code", stdin=f"{made['code']}\n".encode()).code == 0
    [logins] = home.folder.rglob("logins.json")
    [entry] = json.loads(logins.read_text())["hubs"].values()
    key = SigningKey.from_pem(entry["private_key_pem"].encode())

    def assertion() -> str:
        return issue_assertion(
            key.key, agent=name, hub_url=issuer(world), jti=uuid.uuid4().hex, now=time.time()
        )

    client = RawClient(world, "tunnel")
    seen, hello = assertion(), hello_forger(world).token(jti=uuid.uuid4().hex)
    assert ask_for_a_token(client, seen).status == 200
    assert dial(client, hello, rest=False).status == 101
    assert world.hub is not None
    if planned:
        world.replace_hub()
    else:
        world.hub.process.kill()
        world.hub.process.wait()
        world.start_hub()

    refused = ask_for_a_token(client, seen)
    assert (refused.status, b"used before" in refused.body) == (401, True)
    refused = dial(client, hello)
    assert (refused.status, b"used before" in refused.body) == (401, True)
    assert ask_for_a_token(client, assertion()).status == 200


def ask_for_a_token(client: RawClient, assertion: str) -> Answer:
    form = urlencode(
        {
            "grant_type": "client_credentials",
            "audience": client.way,
            "client_assertion": assertion,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        }
    )
    lines = [
        "POST /oauth/token HTTP/1.1",
        "Host: hub",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(form)}",
        "Connection: close",
    ]
    return parse(client.send("\r\n".join([*lines, "", form]).encode()))
