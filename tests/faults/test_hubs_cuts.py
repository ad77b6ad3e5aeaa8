"""Relays lose their TCP connections behind a balancer, which leads each new one to any hub."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.balancer.backends import Policy
from tests.faults.figures import note
from tests.faults.hubs import settled
from tests.faults.postgres import faulty_postgres
from tests.system.callers import Shell, shells
from tests.system.hubs import CLUSTER, RELAYS, HubsWorld, running_hubs

pytestmark = [pytest.mark.kubectl, pytest.mark.long, pytest.mark.timeout(1200)]

CUTS = 200
# Of those, while a hub drains that has shells open.
DRAINING_CUTS = 20
SHELLS = 6
DRAINS_MAX_S = 900
SETTINGS = f"[stop]\ngrace_s = {DRAINS_MAX_S}\nlb_s = 1\n"
# A session with streams is dialled again within seconds.
ANSWERS_WITHIN_S = 15.0


def cut_and_speak(world: HubsWorld, opened: list[Shell], chosen: random.Random, number: int) -> float:
    """Cut one relay's connections, or both relays', and have each shell answer; the longest wait."""
    relays = chosen.choice([*((name,) for name in RELAYS), RELAYS])
    assert world.cut_relays(*relays)
    longest_s = 0.0
    for shell in opened:
        began = time.monotonic()
        line = b"cut %d" % number
        assert shell.say(line) == b"got %s\n" % line
        longest_s = max(longest_s, time.monotonic() - began)
    # Sessions are up again before the next cut, in most cases.
    time.sleep(chosen.uniform(0.0, 1.0))
    return longest_s


@pytest.mark.parametrize("policy", Policy)
def test_cuts_of_the_relays_tcp_cut_no_stream(tmp_path: Path, policy: Policy) -> None:
    chosen = random.Random(policy.value)
    waits_s: list[float] = []
    with (
        faulty_postgres() as server,
        running_hubs(tmp_path, server.url, policy=policy, settings=SETTINGS) as world,
        ExitStack() as stack,
    ):
        world.until(lambda: settled(world), "the hubs are settled", 60.0)
        opened = stack.enter_context(shells(world, SHELLS, CLUSTER))
        for number in range(CUTS - DRAINING_CUTS):
            waits_s.append(cut_and_speak(world, opened, chosen, number))
        # The balancer gives it no connection any more: each relay comes to another hub.
        draining = max(world.members, key=lambda member: calls_of(world, member.port))
        draining.signal(signal.SIGTERM)
        world.until(lambda: not world.behind.in_service(draining), "it is out of service")
        for number in range(DRAINING_CUTS):
            waits_s.append(cut_and_speak(world, opened, chosen, CUTS + number))
        assert draining.running
        for shell in opened:
            assert shell.leave() == (0, b"bye\n", b"")
        assert draining.wait(60.0) == 0
    waits_s.sort()
    note(
        "cuts of relays' TCP behind a balancer under exec",
        policy.value,
        cuts=len(waits_s),
        while_draining=DRAINING_CUTS,
        broken_streams=0,
        p50_s=round(waits_s[len(waits_s) // 2], 2),
        longest_s=round(waits_s[-1], 2),
    )
    assert waits_s[-1] < ANSWERS_WITHIN_S


def calls_of(world: HubsWorld, port: int) -> int:
    """How many connections the balancer has to a hub: with the relays', those of the shells."""
    [backend] = [each for each in world.balancer.backends() if each["port"] == port]
    return int(backend["connections"])
