"""What a thousand streams hold that nobody reads, in the hub and in the relay."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.bulk import STALLED_BUFFER_BYTES, endless_log
from tests.faults.figures import note
from tests.faults.flood import flooding
from tests.faults.world import FaultWorld, Living, running_faults
from tests.system.load import get, timed

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(600)]

MIB = 1024 * 1024
LIMITS = (
    "[limits]\nstreams_per_agent = 2000\nrequests_per_second = 0\nidle_connections = 0\nbytes_per_minute = 0"
)
# The first ones are less than makes the relay refuse more; all of them are more than it takes.
FIRST, LATER = 400, 600
AT_ONCE = 16
# PROTOCOL.md, "Memory".
RELAY_LIMIT = 128 * MIB
WINDOW = 64 * 1024
MESSAGES = 5 * MIB // 4
IN_HAND = 256 * 1024
TOLD_S = 3.0


@pytest.mark.long
def test_a_thousand_stalled_streams_hold_what_is_said(tmp_path: Path) -> None:
    with (
        flooding(tmp_path / "api") as (flood, port, kubeconfig),
        running_faults(tmp_path, api_port=port, relay_kubeconfig=kubeconfig, settings=LIMITS) as world,
        ExitStack() as stack,
    ):
        begin_many(world, stack, 1, FIRST)
        begin_many(world, stack, 2, LATER)
        hub_idle, relay_idle = living(world)
        for _ in range(2):
            flood.process.send_signal(signal.SIGUSR1)
            settle(world)
        hub, relay = living(world)
        gone = FIRST + LATER - world.streams()
        hub_grown, relay_grown = grown(hub, hub_idle), grown(relay, relay_idle)
        assert relay.held_bytes < RELAY_LIMIT
        assert relay_grown < RELAY_LIMIT + MESSAGES + (FIRST + LATER) * IN_HAND
        assert hub_grown < (FIRST + LATER) * (WINDOW + IN_HAND) + MESSAGES

        client = world.client()
        token = client.token()
        answers: list[int] = []
        assert timed(lambda: answers.append(get(client, token, "/api/v1/pods")[0])) < TOLD_S
        assert answers[0] in (200, 503)

        note(
            "1,000 stalled streams",
            reset=gone,
            relay_counted_mib=relay.held_bytes // MIB,
            relay_grown_mib=relay_grown // MIB,
            hub_counted_mib=hub.held_bytes // MIB,
            hub_grown_mib=hub_grown // MIB,
        )
        assert gone, "the limit was not met"
        stack.close()
        world.until(lambda: get(client, client.token(), "/api/v1/pods")[0] == 200, "there is room again")


def begin_many(world: FaultWorld, stack: ExitStack, turn: int, count: int) -> list[ssl.SSLSocket]:
    """Begin logs of which nothing comes before their turn, and nobody reads what does."""
    token = world.client().token()

    def begin(_: int) -> ssl.SSLSocket:
        return endless_log(world, token, turn=turn, buffer_bytes=STALLED_BUFFER_BYTES)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [stack.enter_context(each) for each in pool.map(begin, range(count))]


def living(world: FaultWorld) -> tuple[Living, Living]:
    return world.living(world.hub), world.living(world.relays["relay-0"])


def grown(now: Living, before: Living) -> int:
    return (now.resident_kib - before.resident_kib) * 1024


def settle(world: FaultWorld) -> None:
    """Wait until nothing moves any more."""

    def still() -> Callable[[], bool]:
        last: list[tuple[int, ...]] = [()]

        def same() -> bool:
            now = (*(each.held_bytes for each in living(world)), world.streams())
            before, last[0] = last[0], now
            return now == before

        return same

    world.until(still(), "all of them have stalled", 120, every_s=2.0)
