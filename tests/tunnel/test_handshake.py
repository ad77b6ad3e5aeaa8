"""How a session begins and fails to begin; test_resume.py tests the handshake before a resumption."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import Unplugged, receive_frames_to_the_end
from tunnel import (
    Hello,
    Rejected,
    RemoteProtocolError,
    Role,
    SessionClosed,
    Settings,
    Transport,
    Welcome,
    hear_hello,
    memory_transport_pair,
    open_session,
)
from tunnel.handshake import read_hello, read_welcome, say_hello
from tunnel.protocol import frames, greetings
from tunnel.protocol.greetings import Resume
from tunnel.refusals import FAREWELL_S

HELLO = greetings.hello(Hello())


async def farewell(transport: Transport) -> tuple[int | None, str]:
    """Code and reason of the end, which one GOAWAY must have said before the close frame does."""
    ((frame_type, _, _, payload),), closed = await receive_frames_to_the_end(transport)
    assert frame_type == frames.GOAWAY
    last_id, code, drain_ms, retry_after_ms, reason = frames.decode_goaway(payload)
    assert (code, reason) == (closed.code, closed.reason)
    # There was no session, and the dialer may come back at once.
    assert (last_id, drain_ms, retry_after_ms) == (0, 0, 0)
    return code, reason


async def in_a_session(transport: Transport) -> None:
    async with open_session(transport, Role.DIALER):
        raise AssertionError("no session")


async def test_both_sides_get_the_others_hello(autojump_clock: trio.testing.MockClock) -> None:
    here, there = memory_transport_pair()

    async def listen() -> None:
        def answer(hello: Hello) -> Welcome:
            assert hello.cluster == "prod"
            return Welcome(replica="hub-1")

        settings = Settings(max_streams=9)
        async with open_session(here, Role.LISTENER, answer_hello=answer, settings=settings) as session:
            assert isinstance(session.peer, Hello)
            assert session.peer.instance == "relay-a"
            assert session.peer.max_streams == 7
            await session.wait_closed()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        hello = Hello(cluster="prod", instance="relay-a")
        settings = Settings(max_streams=7)
        async with open_session(there, Role.DIALER, hello=hello, settings=settings) as session:
            assert isinstance(session.peer, Welcome)
            assert isinstance(session.local, Hello)
            assert session.peer.replica == "hub-1"
            assert session.session_id == session.peer.session_id != ""
            assert session.local.max_streams == 7
            assert session.peer.max_streams == 9
            assert session.peer.server_time_ms / 1000 == pytest.approx(time.time(), abs=5)


async def test_a_dialer_that_says_nothing_is_closed_after_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_transport_pair()
    started = trio.current_time()
    with pytest.raises(SessionClosed, match="no greeting within 10 s") as caught:
        async with open_session(here, Role.LISTENER):
            raise AssertionError("no session")
    assert caught.value.code == 4408
    assert trio.current_time() - started == pytest.approx(10)
    assert await farewell(there) == (4408, "no greeting within 10 s")
    await there.aclose()


async def test_a_listener_that_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    _, there = memory_transport_pair()
    with pytest.raises(SessionClosed, match="no greeting within 10 s"):
        async with open_session(there, Role.DIALER):
            raise AssertionError("no session")


async def test_a_refused_dialer_hears_code_and_reason_and_when_to_come_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_transport_pair()

    def refuse(hello: Hello) -> Welcome:
        raise Rejected(4403, "unknown cluster", retry_after_ms=3000)

    async def listen() -> None:
        with pytest.raises(Rejected):
            async with open_session(here, Role.LISTENER, answer_hello=refuse):
                raise AssertionError("no session")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        with pytest.raises(Rejected) as caught:
            async with open_session(there, Role.DIALER):
                raise AssertionError("no session")
    assert (caught.value.close_code, caught.value.reason, caught.value.retry_after_ms) == (
        4403,
        "unknown cluster",
        3000,
    )


async def test_a_dialer_that_is_refused_and_takes_nothing_is_closed_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_transport_pair()
    await there.send(greetings.hello(Hello()))
    wire = Unplugged(here)
    wire.stuck = True

    def refuse(hello: Hello) -> Welcome:
        raise Rejected(4403, "no")

    with pytest.raises(Rejected):
        async with open_session(wire, Role.LISTENER, answer_hello=refuse):
            raise AssertionError("no session")
    assert wire.closed_with == (4403, "no")
    await there.aclose()


async def test_a_dialer_that_is_refused_and_is_gone_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_transport_pair()
    await there.send(greetings.hello(Hello()))
    await there.aclose()

    def refuse(hello: Hello) -> Welcome:
        raise Rejected(4403, "no such cluster")

    with pytest.raises(Rejected, match="no such cluster"):
        async with open_session(here, Role.LISTENER, answer_hello=refuse):
            pass


async def test_rubbish_instead_of_a_greeting(autojump_clock: trio.testing.MockClock) -> None:
    here, there = memory_transport_pair()
    await there.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(RemoteProtocolError):
        async with open_session(here, Role.LISTENER):
            raise AssertionError("no session")
    assert await farewell(there) == (4400, "a frame of 1414541105 bytes exceeds 131072")
    await there.aclose()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"nonsense", "8 bytes are no frame"),
        (frames.ping(1, 0, 0, answer=False), "frame type 19 before the greeting"),
        (HELLO + frames.ping(1, 0, 0, answer=False), "a HELLO is not alone in its message"),
        (HELLO[:-1], f"a frame of {len(HELLO) - 12} bytes is cut at {len(HELLO) - 13}"),
        (
            frames.header(frames.HELLO, 0, 0, 16 * 1024 + 1) + b"{}".ljust(16 * 1024 + 1),
            "a greeting of 16385 bytes exceeds 16384",
        ),
        (HELLO[:3] + b"\x01" + HELLO[4:], "the reserved bytes of a header are 1"),
        (HELLO[:7] + b"\x05" + HELLO[8:], "frame type 16 on stream 5 before the greeting"),
        (
            greetings.hello(Hello(max_frame=1)),
            "the greeting's max_frame is not a number from 16384 to 1048576",
        ),
        (
            greetings.hello(Hello(resume=Resume("s", last_rx=-1))),
            f"the greeting's last_rx is not a number from 0 to {2**63}",
        ),
        (None, "no greeting within 10 s"),
    ],
)
async def test_a_dialer_that_sends_no_hello_gets_a_close_with_the_reason(
    said: bytes | None, why: str, autojump_clock: trio.testing.MockClock
) -> None:
    here, there = memory_transport_pair()
    if said is not None:
        await there.send(said)
    with pytest.raises((RemoteProtocolError, SessionClosed)):
        await hear_hello(here)
    assert await farewell(there) == (4408 if said is None else 4400, why)
    await there.aclose()


async def test_a_listener_that_sends_no_welcome_gets_a_close_with_the_reason() -> None:
    here, there = memory_transport_pair()
    await here.send(greetings.welcome(Welcome(initial_window=0)))
    with pytest.raises(RemoteProtocolError):
        await say_hello(there, Hello())
    assert (await here.receive())[0] == frames.HELLO
    assert await farewell(here) == (4400, "the greeting's initial_window is not a number from 1 to 4194304")
    await here.aclose()


class Wedged(Unplugged):
    """Takes nothing more once it is stuck, and then does not come to its end either."""

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await super().aclose(code, reason)
        if self.stuck:
            await trio.sleep_forever()


@pytest.mark.parametrize("greet", [hear_hello, lambda transport: say_hello(transport, Hello())])
async def test_a_peer_that_breaks_the_handshake_gets_a_close_even_if_we_are_cancelled(
    greet: Callable[[Transport], Awaitable[bytes]], autojump_clock: trio.testing.MockClock
) -> None:
    here, there = memory_transport_pair()
    wire = Wedged(here)

    async def begin() -> None:
        with pytest.raises(RemoteProtocolError):
            await greet(wire)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        await wait_all_tasks_blocked()
        wire.stuck = True
        await there.send(frames.ping(1, 0, 0, answer=False))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        cancelled_at = trio.current_time()
    assert trio.current_time() - cancelled_at <= 2 * FAREWELL_S
    assert wire.closed_with == (4400, "frame type 19 before the greeting")
    await there.aclose()


async def test_a_refusal_counts_with_any_frames_behind_it() -> None:
    here, there = memory_transport_pair()
    await there.send(frames.goaway(0, 4403, 0, 0, "not you") + greetings.welcome(Welcome()))
    with pytest.raises(Rejected, match=r"not you \(4403\)"):
        async with open_session(here, Role.DIALER):
            raise AssertionError("no session")
    await there.aclose()


@pytest.mark.parametrize(
    ("role", "greeting"), [(Role.DIALER, greetings.welcome(Welcome())), (Role.LISTENER, HELLO)]
)
@pytest.mark.parametrize("before", [True, False])
async def test_a_fault_behind_a_greeting_in_its_message_ends_the_session(
    role: Role, greeting: bytes, before: bool, autojump_clock: trio.testing.MockClock
) -> None:
    here, there = memory_transport_pair()
    message = greeting * 2
    if not before:
        await there.send(message)
    with pytest.raises(RemoteProtocolError, match="a second greeting"):
        async with open_session(here, role, greeting=message if before else None):
            raise AssertionError("no session")
    if role is Role.DIALER and not before:
        assert (await there.receive())[0] == frames.HELLO
    assert await farewell(there) == (4400, "a second greeting")
    await there.aclose()


@pytest.mark.parametrize("before", [True, False], ids=["before we speak", "when we wait"])
@pytest.mark.parametrize("greet", [in_a_session, hear_hello, lambda transport: say_hello(transport, Hello())])
async def test_a_transport_that_ends_in_the_greeting(
    greet: Callable[[Transport], Awaitable[object]], before: bool, autojump_clock: trio.testing.MockClock
) -> None:
    here, there = memory_transport_pair()

    async def end() -> None:
        if not before:
            await wait_all_tasks_blocked()
        await here.aclose(4401, "who are you")

    async with trio.open_nursery() as nursery:
        if before:
            await end()
        else:
            nursery.start_soon(end)
        with pytest.raises(SessionClosed, match="ended in the greeting: who are you") as caught:
            await greet(there)
    assert caught.value.code == 4401


async def test_an_empty_message_is_no_greeting_and_no_fault(autojump_clock: trio.testing.MockClock) -> None:
    for role, greeting in ((Role.DIALER, greetings.welcome(Welcome())), (Role.LISTENER, HELLO)):
        here, there = memory_transport_pair()
        await there.send(b"")
        await there.send(greeting)
        async with open_session(here, role) as session:
            assert not session.closed
        await there.aclose()


def test_a_greeting_may_be_as_long_as_it_may_be() -> None:
    text = b"{}".ljust(16 * 1024)
    assert read_hello(frames.header(frames.HELLO, 0, 0, len(text)) + text) == Hello()
    assert read_welcome(frames.header(frames.WELCOME, 0, 0, len(text)) + text) == Welcome()


@pytest.mark.parametrize("role", Role)
async def test_cancelling_the_greeting_closes_the_transport(
    role: Role, autojump_clock: trio.testing.MockClock
) -> None:
    here, there = memory_transport_pair()
    with trio.move_on_after(1):
        async with open_session(here, role):
            raise AssertionError("no session")
    _, closed = await receive_frames_to_the_end(there)
    assert closed.code is not None
    await there.aclose()
