"""What long and slow links do to a keystroke, a PING, a single stream and a first request.

What is bounded in time stands here twice. Among the fast tests its bound is one that a busy machine keeps,
and that waiting behind a whole queue, or for one round trip more, exceeds. The bound that is promised is for
where the test has the machine to itself (`alone`).
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs
import pytest

from tests.faults.bulk import downloading, endless_exec
from tests.faults.figures import note
from tests.faults.wire import Enrolment, wire_relay
from tests.faults.world import BY_HAND, CLUSTER, FaultWorld
from tests.system.load import get, timed
from tests.system.raw import Talk
from tests.system.world import NAMESPACE, POD, POD_PATH

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

SLOW_MBIT, SLOW_RTT_S = 10, 0.1
ECHO_S = 0.250
PONG_S = 0.250
# The router before the slow link has room for so much. Who fills it delays half of all by more than QUEUED_S,
# and a busy machine delays single ones.
BUFFER_S = 2.0
QUEUED_S = 0.5
LONG_MBIT, LONG_RTT_S = 100, 0.150
FULL = 0.8
NEAR_RTT_S = 0.020
# A second one of these is more than what a busy machine adds to the best of a few.
FAR_RTT_S = 0.400
# One round trip, and no second one.
ONCE = 1.5


@contextmanager
def typing(world: FaultWorld) -> Iterator[subprocess.Popen[bytes]]:
    """kubectl exec of something that says what it is told."""
    shell = world.popen(CLUSTER, "exec", "-i", POD, "--", "cat")
    try:
        echo(shell)
        yield shell
    finally:
        shell.kill()
        shell.communicate()


def echo(shell: subprocess.Popen[bytes]) -> None:
    """Type a key, and wait until it is back."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(b"k")
    shell.stdin.flush()
    assert shell.stdout.read(1) == b"k"


@attrs.define
class Beside:
    """What took how long beside something that fills the link."""

    alone_s: list[float]
    beside_s: list[float]
    mbit: float
    """What filled it carried meanwhile."""


def keystrokes_beside_a_download(world: FaultWorld, keys: int) -> Beside:
    """On a slow link; each is typed when the one before is back."""
    world.shape_tunnel(delay_s=SLOW_RTT_S / 2, mbit=SLOW_MBIT, buffer_s=BUFFER_S)
    with typing(world) as shell:
        alone_s = [timed(lambda: echo(shell)) for _ in range(10)]
        with downloading(endless_exec(world)) as download:
            world.until(lambda: download.received > 2_000_000, "it is well under way")
            beside_s: list[float] = []

            def type_on() -> None:
                beside_s.extend(timed(lambda: echo(shell)) for _ in range(keys))

            mbit = download.mbit_per_s(type_on)
    return Beside(alone_s, beside_s, mbit)


def test_a_keystroke_passes_a_download_on_a_slow_link(world: FaultWorld) -> None:
    """Behind whatever the buffers before that link hold it would wait for seconds."""
    found = keystrokes_beside_a_download(world, 20)
    assert found.mbit > SLOW_MBIT / 2, "there was nothing to pass"
    assert statistics.median(found.beside_s) < QUEUED_S


@pytest.mark.long
@pytest.mark.alone
def test_no_keystroke_beside_a_download_takes_longer_than_is_promised(world: FaultWorld) -> None:
    found = keystrokes_beside_a_download(world, 40)
    note(
        "keystroke of kubectl exec beside a download on 10 Mbit/s, 100 ms",
        p50_ms_alone=round(statistics.median(found.alone_s) * 1000, 1),
        p50_ms_beside=round(statistics.median(found.beside_s) * 1000, 1),
        worst_ms_beside=round(max(found.beside_s) * 1000, 1),
        download_mbit_per_s=round(found.mbit, 1),
    )
    assert found.mbit > FULL * SLOW_MBIT, "there was nothing to pass"
    assert max(found.beside_s) < ECHO_S


def pings_beside_an_upload(world: FaultWorld, by_hand: Enrolment) -> Beside:
    """The hub's PONG goes the way that its DATA fills."""
    world.tunnel.shape(delay_s=SLOW_RTT_S / 2, mbit=SLOW_MBIT, buffer_s=BUFFER_S)
    client = world.client(BY_HAND)
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/large"
    request = client.head(path, f"Content-Length: {2**30}", "Content-Type: text/plain", method="PUT")
    window: dict[str, object] = {"initial_window": 2**20}
    with wire_relay(by_hand, world.tunnel.port, hello=window) as relay, client.talk(request) as talk:
        relay.grants = True
        stream = relay.next_open().stream
        sender = threading.Thread(target=send_without_end, args=(talk,))
        sender.start()
        try:
            relay.wait(lambda: relay.received.get(stream, 0) > 2_000_000, "it is well under way")
            before, began = relay.received[stream], time.monotonic()
            pongs_s = [relay.ping(number) for number in range(10)]
            mbit = (relay.received[stream] - before) * 8 / 1e6 / (time.monotonic() - began)
        finally:
            with suppress(OSError):
                talk.connection.close()
            sender.join()
    return Beside([], pongs_s, mbit)


def test_a_ping_passes_an_upload_on_a_slow_link(world: FaultWorld, by_hand: Enrolment) -> None:
    found = pings_beside_an_upload(world, by_hand)
    assert found.mbit > SLOW_MBIT / 2, "there was nothing to pass"
    assert statistics.median(found.beside_s) < QUEUED_S


@pytest.mark.long
@pytest.mark.alone
def test_no_ping_beside_an_upload_takes_longer_than_is_promised(
    world: FaultWorld, by_hand: Enrolment
) -> None:
    found = pings_beside_an_upload(world, by_hand)
    note(
        "PING beside an upload on 10 Mbit/s, 100 ms",
        p50_ms=round(statistics.median(found.beside_s) * 1000, 1),
        worst_ms=round(max(found.beside_s) * 1000, 1),
        upload_mbit_per_s=round(found.mbit, 1),
    )
    assert found.mbit > FULL * SLOW_MBIT, "there was nothing to pass"
    assert max(found.beside_s) < PONG_S


def send_without_end(talk: Talk) -> None:
    """The thread that uploads, until its connection is closed."""
    block = bytes(64 * 1024)
    with suppress(OSError, ValueError):
        while True:
            talk.send(block)


@pytest.mark.long
@pytest.mark.alone
def test_one_stream_fills_a_long_fast_link(world: FaultWorld) -> None:
    """Windows of a fixed size cut such links to a tenth."""
    world.shape_tunnel(delay_s=LONG_RTT_S / 2, mbit=LONG_MBIT)
    with downloading(endless_exec(world)) as download:
        time.sleep(8)
        mbit = download.mbit_per_s(lambda: time.sleep(8))
    note("one stream on 100 Mbit/s, 150 ms", mbit_per_s=round(mbit, 1))
    assert mbit >= FULL * LONG_MBIT


def least_s_without_and_with_a_link(world: FaultWorld, rtt_s: float, requests: int) -> tuple[float, float]:
    """What a request on a new connection takes at the least, without such a link and with it."""
    client = world.client()
    token = client.token()

    def least_s() -> float:
        # What a busy machine adds is not always there; a second round trip would be.
        return min(timed(lambda: get(client, token, POD_PATH)) for _ in range(requests))

    without_s = least_s()
    world.shape_tunnel(delay_s=rtt_s / 2)
    return without_s, least_s()


def test_a_new_connections_request_takes_one_round_trip(world: FaultWorld) -> None:
    """A stream begins with its request, and asks nobody for leave."""
    without_s, whole_s = least_s_without_and_with_a_link(world, FAR_RTT_S, 5)
    assert whole_s > FAR_RTT_S, "the link is not in the way"
    assert whole_s - without_s < ONCE * FAR_RTT_S


@pytest.mark.long
@pytest.mark.alone
def test_a_new_connections_request_takes_little_more_than_a_short_round_trip(world: FaultWorld) -> None:
    without_s, whole_s = least_s_without_and_with_a_link(world, NEAR_RTT_S, 25)
    note(
        "a request on a new connection, 20 ms round trip",
        whole_ms=round(whole_s * 1000, 1),
        tunnel_ms=round((whole_s - without_s) * 1000, 1),
        round_trips=round((whole_s - without_s) / NEAR_RTT_S, 2),
    )
    assert whole_s > NEAR_RTT_S, "the link is not in the way"
    assert whole_s - without_s < ONCE * NEAR_RTT_S
