"""One agent floods the hub with watches: it is bounded, gets an explanation, and blocks no other agent."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.system.raw import Answer, RawClient, Talk
from tests.system.victims import Victim, enrol_victim
from tests.system.world import NAMESPACE, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

WATCHES = 1000
# Fewer than a slow machine begins in the minute that a token lives.
WATCHES_PER_TOKEN = 50
AT_ONCE = 10
CLOSED_WITHIN_S = 10.0
# The defaults of the configuration.
STREAMS_MAX = 256
IDLE_CONNECTIONS_MAX = 256


@pytest.fixture
def flooder(world: World) -> Victim:
    return enrol_victim(world, "flooder")


def ask(client: RawClient, request: bytes) -> tuple[Talk, Answer]:
    """Send a request on a connection of its own, which stays open."""
    talk = Talk(client.connect())
    talk.send(request)
    return talk, talk.answer()


def is_open(talk: Talk) -> bool:
    """Whether the hub has left a connection open on which nothing is expected."""
    talk.connection.settimeout(0.001)
    try:
        return bool(talk.connection.recv(1))
    except TimeoutError:
        return True
    except (ConnectionError, ssl.SSLError):
        return False


def test_a_flood_of_watches_is_refused_and_counted_and_hurts_nobody_else(
    world: World, flooder: Victim
) -> None:
    client = RawClient(world, "tunnel", flooder.api_key)
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps?watch=1"
    flood_began = time.monotonic()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        talks: list[Talk] = []
        answers: list[Answer] = []
        for _ in range(0, WATCHES, WATCHES_PER_TOKEN):
            watch = client.head(path, connection="keep-alive")
            for talk, answer in pool.map(partial(ask, client), [watch] * WATCHES_PER_TOKEN):
                stack.enter_context(talk.connection)
                talks.append(talk)
                answers.append(answer)
        statuses = [answer.status for answer in answers]
        refusals = [answer for answer in answers if answer.status == 429]
        assert not any("retry-after" in answer.headers for answer in refusals)
        messages = {json.loads(answer.body)["message"] for answer in refusals}

        assert statuses.count(200) == STREAMS_MAX
        assert statuses.count(429) == WATCHES - STREAMS_MAX
        assert messages == {
            f"agent:flooder has {STREAMS_MAX} calls under way, the limit (limits.streams_per_agent): "
            "end one first, as a watch, a `logs -f` or an exec"
        }
        # Another agent is served as ever.
        assert world.kubectl("tunnel", "get", "pods").code == 0
        # kubectl does not ask again for what was refused so.
        began = time.monotonic()
        refused = run(flooder.command("tunnel", "get", "--raw", "/api/v1/nodes"), flooder.environment)
        assert refused.code == 1
        assert b"limits.streams_per_agent" in refused.err
        assert time.monotonic() - began < 5.0

        # What was refused leaves a connection that idles; the longest idle were closed.
        idle = [talk for talk, status in zip(talks, statuses, strict=True) if status == 429]
        deadline = time.monotonic() + CLOSED_WITHIN_S
        while len(left := [talk for talk in idle if is_open(talk)]) > IDLE_CONNECTIONS_MAX + AT_ONCE:
            assert time.monotonic() < deadline, f"{len(left)} connections idle"
            time.sleep(0.1)
        assert len(left) >= IDLE_CONNECTIONS_MAX - AT_ONCE
        assert len(flooder.sessions()) == STREAMS_MAX

    # In each window of ten seconds ten examples, and the others by their number once it is over.
    windows = (time.monotonic() - flood_began) / 10 + 2
    deadline = time.monotonic() + 30
    counted = 0
    while counted < WATCHES - STREAMS_MAX:
        assert time.monotonic() < deadline, f"{counted} refusals are in the trail"
        time.sleep(0.5)
        events = world.audit_rows("--agent", "flooder")
        denied = [event for event in events if event.get("decision", {}).get("effect") == "deny"]
        counted = sum(int(str(event.get("count", 1))) for event in denied)
    assert len(denied) <= 11 * windows
    assert {event["decision"]["rule"] for event in denied} == {"limits.streams_per_agent"}
