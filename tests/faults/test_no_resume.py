"""With resumption switched off a cut is the end of what it cuts, and everybody is told so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.trail import closing, events
from tests.faults.world import CLUSTER, FaultWorld, running_faults
from tests.system.load import get
from tests.system.raw import End
from tests.system.world import NAMESPACE, POD, POD_PATH

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

EXEC_PATH = f"{POD_PATH}/exec?command=cat&stdin=true&stdout=true"
# Relays dial each second after a lost tunnel.
NEXT_DIAL_S = 5.0
# A call that waited would do so for as long as the dials are refused.
AT_ONCE_S = 1.0
SWITCHES = {
    "hub": {"settings": "[tunnel]\nresume = false"},
    "relay": {"relay_environment": {"HAWSE_RELAY_TUNNEL_RESUME": "false"}},
}


@pytest.fixture(scope="module", params=SWITCHES)
def frail(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    """A world in which one side has switched resumption off; it takes both to have it."""
    folder = tmp_path_factory.mktemp(f"no-resume-at-the-{request.param}")
    with running_faults(folder, **SWITCHES[request.param]) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
def connected(frail: FaultWorld) -> FaultWorld:
    """It, with its relay there."""
    frail.heal()
    return frail


@pytest.mark.parametrize("spdy", [False, True], ids=["ws", "spdy"])
def test_an_exec_that_is_cut_fails_and_its_record_says_what_was_done(
    connected: FaultWorld, spdy: bool
) -> None:
    world = connected
    exec_args = ("exec", "-i", POD, "--", "sh", "-c", "echo up; exec cat")
    process = world.popen(CLUSTER, *exec_args, spdy=spdy)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    world.tunnel.cut()
    out, err = process.communicate(timeout=20)
    # Over SPDY kubectl takes the end of a connection for the end of the command (kubernetes/kubectl#1726).
    assert (process.returncode != 0 and err) or spdy
    assert out == b""
    event = closing(world, "exec")
    # The API server has answered: it was done, whatever it was.
    assert event["resp"]["processed"] == "yes"
    assert event["stream"]["close_reason"] not in ("", "done")
    assert event.get("tunnel") is None


def test_a_stream_that_is_cut_never_looks_complete(connected: FaultWorld) -> None:
    """No WebSocket is closed with 1000, nor with anything else, and no body gets its final chunk."""
    world = connected
    client = world.client()
    with (
        client.talk(client.upgrade(EXEC_PATH, "Sec-WebSocket-Protocol: v5.channel.k8s.io")) as shell,
        client.talk(client.head(f"{POD_PATH}/log?follow=true")) as log,
        client.talk(client.head(f"/api/v1/namespaces/{NAMESPACE}/pods?watch=true")) as watch,
    ):
        talks = {"exec": shell, "log": log, "watch": watch}
        for talk, sign in ((shell, b"v5.channel.k8s.io"), (log, b"workbench is up"), (watch, b"ADDED")):
            while sign not in talk.received:
                assert talk.more(), bytes(talk.received)
        world.tunnel.cut()
        for name, talk in talks.items():
            before = len(talk.received)
            talk.rest()
            assert talk.end is End.CUT, name
            assert not bytes(talk.received[before:]), name
            assert not talk.received.endswith(b"0\r\n\r\n"), name


def test_a_request_under_way_is_told_that_it_may_have_been_done(connected: FaultWorld) -> None:
    world = connected
    client = world.client()
    token = client.token()
    world.api.stall()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, client, token, f"{POD_PATH}/log")
        world.until(lambda: world.streams() == 1, "the request is under way")
        world.tunnel.cut()
        status, said = waiting.result(20)
    world.api.flow()
    assert status in (502, 503), said
    assert b"may have" in said, said
    recorded = world.until(
        lambda: [event for event in events(world, "log") if event["resp"]["status"] == status],  # type: ignore[index]
        "the call is recorded",
    )
    assert [event["resp"]["processed"] for event in recorded] == ["maybe"]  # type: ignore[index]


def test_calls_fail_at_once_until_the_next_tunnel_is_there(connected: FaultWorld) -> None:
    world = connected
    sessions = len(world.relay_says("is up, session"))
    client = world.client()
    token = client.token()
    world.tunnel.refuse()
    world.tunnel.cut()
    # Not by kubectl, whose own start takes a part of a second.
    began = time.monotonic()
    status, said = get(client, token, POD_PATH)
    took_s = time.monotonic() - began
    assert status == 503, said
    assert b"is offline" in said
    assert took_s < AT_ONCE_S
    world.tunnel.accept()
    world.until(lambda: world.connected() == ["relay-0"], "the relay has dialled anew", NEXT_DIAL_S)
    assert POD.encode() in world.run("get", "pods")
    # Another session, and no attempt to bring the first one back.
    assert len(world.relay_says("is up, session")) == sessions + 1
    assert world.relay_says("is back, session") == []
    assert world.relay_says("cannot go on") == []
