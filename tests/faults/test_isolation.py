"""What one stream does or suffers is nobody else's affair."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack

import pytest

from tests.faults.clients import ExecBulk, ExecEcho, Verdict, report
from tests.faults.requests import asking
from tests.faults.wire import DATA, FIN, INITIAL_CREDIT, Enrolment, frame, head, wire_relay
from tests.faults.world import CLUSTER, FaultWorld
from tests.system.world import POD

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

# A stream that waits for another one waits for seconds; a machine that runs other tests, for less than this.
AT_ONCE_S = 3.0
FLOW_CONTROL = 8


def test_both_directions_full_through_small_buffers_do_not_lock_up(world: FaultWorld) -> None:
    """A reader that waits for its own writer is a deadlock as soon as no buffer hides it."""
    works = [ExecBulk(world, number, pause_s=0) for number in range(3)]
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        for work in works:
            world.until(lambda work=work: len(work.sent) >= work.bytes_max, "all of it is sent")  # type: ignore[misc]
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)


def test_a_request_that_hangs_in_its_dial_holds_up_no_other(world: FaultWorld) -> None:
    """The API server's address may swallow a connection for minutes."""
    with ExitStack() as stack:
        going_on = stack.enter_context(ExecEcho(world, 1))
        world.api.stall(present=False)
        # More than the connections that the relay keeps: some have to dial.
        execs = [
            world.popen(CLUSTER, "exec", POD, "--", "echo", "at last", stdin=subprocess.DEVNULL)
            for _ in range(4)
        ]
        try:
            world.until(lambda: world.streams() > 1, "an exec is under way")
            for _ in range(20):
                echoed = len(going_on.out)
                began = time.monotonic()
                world.until(lambda echoed=echoed: len(going_on.out) > echoed, "an echo")  # type: ignore[misc]
                assert time.monotonic() - began < AT_ONCE_S
            assert [each.poll() for each in execs].count(None) > 0
            world.api.flow()
            assert [each.communicate(timeout=30) for each in execs] == [(b"at last\n", b"")] * len(execs)
        finally:
            world.api.flow()
            for each in execs:
                each.kill()
                each.communicate()
    assert going_on.judgement.verdict is Verdict.WHOLE, report([going_on.judgement])


def test_a_relay_that_ignores_credit_loses_that_stream_alone(world: FaultWorld, by_hand: Enrolment) -> None:
    """Dropping what is too much would corrupt it, and ending the session would punish the others."""
    with wire_relay(by_hand, world.tunnel.port) as relay, asking(world) as greedy:
        # Of two that are asked at once, either may be opened first.
        first = relay.next_open().stream
        with asking(world) as modest:
            second = relay.next_open().stream
            relay.send(head(first), *(frame(DATA, first, bytes(INITIAL_CREDIT)) for _ in range(2)))
            relay.wait(lambda: relay.resets(first), "the RESET")
            assert [code for code, _ in relay.resets(first)] == [FLOW_CONTROL]
            greedy.rest()
            assert b"0\r\n\r\n" not in bytes(greedy.received)[-7:], "a cut answer looks complete"

            relay.send(head(second), frame(DATA, second, b"fine", FIN))
            answer = modest.rest()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"4\r\nfine\r\n0\r\n\r\n")
            assert relay.resets(second) == []
            assert relay.closed_with is None


def test_what_abandoned_streams_held_is_released(world: FaultWorld, by_hand: Enrolment) -> None:
    """Bytes that arrived and that nobody will read any more are charged to nobody."""
    streams = 20
    with wire_relay(by_hand, world.tunnel.port) as relay:
        # With the identity's context, which stays.
        with asking(world) as first:
            stream = relay.next_open().stream
            relay.send(head(stream), frame(DATA, stream, b"{}", FIN))
            first.rest()
        before = world.living(world.hub)
        with ExitStack() as stack:
            for _ in range(streams):
                talk = stack.enter_context(asking(world))
                talk.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            opened = [relay.next_open().stream for _ in range(streams)]
            sent = dict.fromkeys(opened, 0)
            for stream in opened:
                relay.send(head(stream))
            # First the kernel's buffers fill up, on whose account the hub asks for more.
            while world.living(world.hub).held_bytes < before.held_bytes + streams * INITIAL_CREDIT:
                for stream in opened:
                    while sent[stream] < relay.credit(stream):
                        relay.send(frame(DATA, stream, bytes(INITIAL_CREDIT // 2)))
                        sent[stream] += INITIAL_CREDIT // 2
        for stream in opened:
            relay.wait(lambda stream=stream: relay.resets(stream), "the RESET of an abandoned stream")  # type: ignore[misc]
        world.until(
            lambda: world.living(world.hub).held_bytes <= before.held_bytes, "nothing is held", every_s=0.3
        )
        # The clients' connections are closed in the hub's own time.
        world.until(
            lambda: not world.living(world.hub).grown(before, slack=20),
            "nothing is left of them",
            every_s=0.3,
        )
