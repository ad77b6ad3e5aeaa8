"""What is taken back ends: real kubectl with everything open that it can have open, by both ways."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fakes.apiserver import Exchange
from tests.fakes.blackhole import swallow_all
from tests.system.chain import Chain
from tests.system.raw import V5, RawClient, parse
from tests.system.victims import ENDS_WITHIN_S, MAY_END_WELL, OPEN, Victim, ended_within, enrol_victim
from tests.system.waiting import wait_until
from tests.system.world import AGENT, NAMESPACE, POD, WAYS, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]


@pytest.fixture
def victim(world: World, request: pytest.FixtureRequest) -> Victim:
    return enrol_victim(world, f"victim-{abs(hash(request.node.name)) % 10**8}")


def check_record(victim: Victim, why: str, close_reason: str) -> None:
    """Each of what was open has one closing event, and it says why."""

    def recorded(kind: str = "") -> list[dict[str, Any]]:
        rows = victim.world.audit_rows("--agent", victim.name)
        return [row for row in rows if kind in {"", row["kind"]}]

    wait_until(lambda: len(recorded("session.killed")) >= len(OPEN))
    events = recorded()
    killed = [event for event in events if event["kind"] == "session.killed"]
    assert len(killed) == len(OPEN)
    assert len({event["eid"] for event in killed}) == len(OPEN)
    for event in killed:
        assert event["phase"] == "complete"
        assert why in event["resp"]["reason"]
        assert event["stream"]["close_reason"] == close_reason
    closed = [event["eid"] for event in events if event["phase"] == "complete"]
    assert len(closed) == len(set(closed))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["the agent", "its key"])
def test_what_is_revoked_ends_all_that_is_open_and_refuses_the_next(
    world: World, victim: Victim, way: str, what: str
) -> None:
    with victim.everything_open(way) as running:
        if what == "the agent":
            world.admin("agent", "lock", victim.name)
        else:
            world.admin("agent", "key", "revoke", victim.name, victim.key_id)
        codes = ended_within(running, ENDS_WITHIN_S)
    assert {kind for kind, code in codes.items() if code == 0} <= MAY_END_WELL, codes
    assert victim.sessions() == []

    again = run(victim.command(way, "get", "pods"), victim.environment)
    assert again.code == 1
    if what == "the agent":
        assert f"agent:{victim.name} is locked".encode() in again.err
    check_record(victim, "is locked" if what == "the agent" else "is revoked", "revoked")


def test_an_operator_ends_all_of_an_agent_with_a_reason(world: World, victim: Victim) -> None:
    with victim.everything_open("tunnel") as running:
        killed = json.loads(
            world.admin(
                *("session", "kill", "--agent", victim.name, "--reason", "incident 7", "--yes", "--json")
            )
        )
        ended_within(running, ENDS_WITHIN_S)
    assert len(killed["killed"]) == len(OPEN)
    # Nothing keeps it from coming back.
    assert run(victim.command("tunnel", "get", "pods"), victim.environment).code == 0
    check_record(victim, "killed by the operator local: incident 7", "killed")


# While hub and relay cannot hear each other: in direct mode TCP tells, in tunnel mode the session's own time
# to live, from the last byte. And a second or two to tell the API server.
UNHEARD_WITHIN_S = {"direct": 30.0, "tunnel": 62.0}


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_relay_that_the_hub_cannot_reach_ends_what_was_revoked_by_itself(chain: Chain, way: str) -> None:
    world, gone, began = chain.world, threading.Event(), threading.Event()

    def hold(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
        began.set()
        if exchange.wait_gone(90.0):
            gone.set()

    client = RawClient(world, way)
    path, _ = chain.path(hold, "?watch=1")
    with client.talk(client.head(path)) as talk:
        assert talk.answer(body=False).status == 200
        assert began.wait(10)
        assert world.hub is not None
        port = world.direct_port if way == "direct" else world.hub_port
        relay = world.relays[way].process.pid
        # Neither hears the other from here on. In tunnel mode the hub's port is the client's as well.
        assert swallow_all(relay, port) >= 1
        if way == "direct":
            assert swallow_all(world.hub.process.pid, port) >= 1
        lost_at = time.monotonic()
        world.admin("agent", "lock", AGENT)
        # The client hears of it at once: the hub is there.
        while talk.more(ENDS_WITHIN_S):
            pass
        assert not gone.is_set()
        assert gone.wait(UNHEARD_WITHIN_S[way] - (time.monotonic() - lost_at))
    world.admin("agent", "unlock", AGENT)
    [killed] = [e for e in world.hub_audit("--cluster", way) if e["kind"] == "session.killed"]
    assert "is locked" in killed["resp"]["reason"]
    world.wait_for_tunnel(90)


DENIES = '{id: nothing, effect: deny, verbs: ["*"], reason: the incident of today}'
BOUNDS = '{id: short, effect: allow, verbs: ["*"], resources: ["*", "*/*"], obligations: {maxDuration: 1s}}'


@pytest.mark.parametrize(
    ("way", "rule", "why", "close_reason"),
    [
        ("tunnel", DENIES, "for-victims/nothing denies it since bundle", "revoked"),
        ("direct", DENIES, "for-victims/nothing denies it since bundle", "revoked"),
        # The name of its policy stands before that of `granted`.
        ("tunnel", BOUNDS, "for-victims/short allows 1 s, and they are over", "deadline"),
    ],
)
def test_a_policy_ends_all_that_it_does_not_allow_any_more(
    world: World, victim: Victim, way: str, rule: str, why: str, close_reason: str
) -> None:
    file = world.folder / f"{victim.name}.yaml"
    file.write_text(
        "kind: Policy\nmetadata: {name: for-victims}\n"
        f"spec:\n  bind: {{agents: [{victim.name}]}}\n  rules:\n    - {rule}\n"
    )
    try:
        with victim.everything_open(way) as running:
            world.admin("policy", "apply", str(file))
            codes = ended_within(running, ENDS_WITHIN_S)
        assert {kind for kind, code in codes.items() if code == 0} <= MAY_END_WELL, codes
        again = run(victim.command(way, "get", "pods"), victim.environment)
        assert (again.code == 1) is (rule == DENIES)
    finally:
        world.admin("policy", "remove", "for-victims", "--yes")
    assert run(victim.command(way, "get", "pods"), victim.environment).code == 0
    check_record(victim, why, close_reason)


STREAMS = 200
# Of these, so many come after the lock, however long the command takes.
STREAMS_AFTER = 50
OPENED_WITHIN_S = 4.0


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_spares_no_stream_that_is_just_being_opened(world: World, victim: Victim, way: str) -> None:
    """Watches and execs of an agent that come before, at and after the moment in which it is locked."""
    client = RawClient(world, way, victim.api_key)
    watch = client.head(f"/api/v1/namespaces/{NAMESPACE}/pods?watch=1")
    target = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}/exec?command=cat&stdin=1&stdout=1"
    execs = client.upgrade(target, V5)
    began = time.monotonic()
    is_locked = threading.Event()

    def stream(number: int) -> tuple[int, float]:
        """The status of its answer (0 is none), and when it ended or was refused."""
        time.sleep(max(0.0, began + number * OPENED_WITHIN_S / STREAMS - time.monotonic()))
        if number >= STREAMS - STREAMS_AFTER:
            is_locked.wait()
        with client.talk(execs if number % 2 else watch) as talk:
            talk.more()
            status = parse(bytes(talk.received)).status if talk.received else 0
            while status != 403 and talk.more():
                pass
        return status, time.monotonic()

    def lock() -> float:
        time.sleep(OPENED_WITHIN_S / 4)
        try:
            world.admin("agent", "lock", victim.name)
        finally:
            is_locked.set()
        return time.monotonic()

    with ThreadPoolExecutor(STREAMS + 1) as pool:
        locking = pool.submit(lock)
        ended = [each.result() for each in [pool.submit(stream, number) for number in range(STREAMS)]]
        locked = locking.result()
    statuses = Counter(status for status, _ in ended)
    # No answer at all is what was cut between the request and its answer.
    assert set(statuses) - {0} == {101, 200, 403}, statuses
    assert max(at for status, at in ended if status != 403) - locked < ENDS_WITHIN_S, statuses
    assert victim.sessions() == []
