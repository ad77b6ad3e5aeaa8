"""A relay's dialer brings a session back that has lost its connection, or lets it go."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import MemorySendStream, MockClock, wait_all_tasks_blocked

from tests.tunnel.dialing.dialer_bench import (
    DATED_TOKENS,
    TOKEN_BY_OUR_CLOCK,
    Network,
    Unreachable,
    config,
    hub_time_at,
    over_tls,
    read_head,
    refuses_with_hub_time,
    token_dated_by,
    tokens_in,
)
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import (
    CloseCode,
    Hello,
    Rejected,
    RemoteProtocolError,
    Role,
    Session,
    SessionClosed,
    StreamCode,
    StreamReset,
    Welcome,
    hear_hello,
    open_session,
    read_hello,
)
from tunnel.dialing.dialer import run_dialer
from tunnel.websocket.upgrade import accept_websocket

RESUMING = ("resume",)


class Hub:
    """A hub that lets a relay come back to its session, as long as it has not `forgotten` it."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.forgotten = False
        self.heads: list[bytes] = []
        self.hellos: list[Hello] = []
        self.streams: list[trio.abc.Stream] = []

    async def __call__(self, stream: trio.abc.Stream) -> None:
        self.streams.append(stream)
        await over_tls(stream, self.upgrade)

    async def cut(self) -> None:
        await trio.aclose_forcefully(self.streams[-1])
        await wait_all_tasks_blocked()

    def welcome(self, hello: Hello) -> Welcome:
        if hello.resume is not None:
            raise Rejected(CloseCode.RESUME_UNKNOWN, "never heard of it")
        return Welcome(session_id=f"s{len(self.hellos)}", features=RESUMING, resume_ttl_s=60)

    async def upgrade(self, tls: trio.abc.Stream) -> None:
        head = await read_head(tls)
        self.heads.append(head)
        with suppress(Rejected, SessionClosed, RemoteProtocolError):
            async with accept_websocket(tls, request_head=head) as transport:
                greeting = await hear_hello(transport)
                hello = read_hello(greeting)
                self.hellos.append(hello)
                session = self.session
                if hello.resume is not None and session is not None and not self.forgotten:
                    assert session.may_resume(hello.resume)
                    await session.resume(transport, greeting)
                    return
                async with open_session(
                    transport, Role.LISTENER, answer_hello=self.welcome, greeting=greeting
                ) as self.session:
                    await self.session.wait_closed()


class Served:
    """What the dialer's user sees."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    async def __call__(self, session: Session) -> None:
        self.sessions.append(session)
        await session.wait_closed()


async def run(nursery: trio.Nursery, network: Network, served: Served) -> None:
    hello = Hello(cluster="c1", features=RESUMING)
    settings = config(network, hello=lambda: hello, chance=lambda: 0.5, **DATED_TOKENS)
    nursery.start_soon(run_dialer, settings, served)
    await trio.sleep(0.1)


async def test_a_session_goes_on_over_the_next_connection(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub, open_max=2)
        await run(nursery, network, served)
        for number in range(1, 4):
            await hub.cut()
            await trio.sleep(1)
            assert len(hub.heads) == number + 1
            assert not served.sessions[0].detached
        assert [round(wait, 2) for wait in network.waits] == [0.6, 1.0, 1.0]
        assert len(served.sessions) == 1
        assert b"hawse-session" not in hub.heads[0]
        assert b"hawse-session: s1\r\n" in hub.heads[1].lower()
        assert [hello.resume is not None for hello in hub.hellos] == [False, True, True, True]
        # As if it had been here all the time.
        assert hub.session is not None
        stream = TrioStream(hub.session.open_stream(b"head", context=hub.session.add_context(1, b"x")))
        assert (await accept(served.sessions[0])).head == b"head"
        stream.close_nowait()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_falls_silent_is_followed_as_soon_as_its_silence_is_noticed(
    autojump_clock: MockClock,
) -> None:
    """However often: a dial does not wait for the farewell of the one before."""
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub, open_max=2)
        await run(nursery, network, served)
        (session,) = served.sessions
        assert hub.session is not None
        hub.session.open_stream(b"head", context=hub.session.add_context(1, b"x"))
        for _ in range(3):
            await trio.sleep(10)
            silenced = hub.streams[-1]
            assert isinstance(silenced, trio.StapledStream)
            assert isinstance(silenced.send_stream, MemorySendStream)
            silenced.send_stream.send_all_hook = silenced.send_stream.close_hook = None
            assert await session.wait_detached()
            noticed_at = trio.current_time() - network.began_at
            await trio.sleep(3)
            assert network.dialled_at[-1] - noticed_at == pytest.approx(0.5)
            assert not session.detached
        nursery.cancel_scope.cancel()


async def test_a_session_without_streams_outlives_a_clock_that_was_set(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub, open_max=2)
        await run(nursery, network, served)
        network.handlers[:] = [refuses_with_hub_time(-310), hub]
        await hub.cut()
        await trio.sleep(1)
        assert [round(wait, 2) for wait in network.waits] == [0.6, 0]
        assert not served.sessions[0].detached
        assert tokens_in(hub.heads) == [TOKEN_BY_OUR_CLOCK, token_dated_by(hub_time_at(-310).decode())]
        # Once, and then it is given up like any other without streams.
        network.handlers[:] = [refuses_with_hub_time(-310)]
        await hub.cut()
        await served.sessions[0].wait_closed()
        assert [round(wait, 2) for wait in network.waits][2:] == [1.0, 0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [None, ConnectionRefusedError()], ids=["silent", "refused"])
async def test_while_streams_wait_it_is_dialled_until_it_has_been_away_for_too_long(
    error: OSError | None, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub)
        await run(nursery, network, served)
        assert hub.session is not None
        context = hub.session.add_context(1, b"x")
        opened = TrioStream(hub.session.open_stream(b"head", context=context))
        accepted = await accept(served.sessions[0])
        network.handlers[:] = [Unreachable(error)]
        await hub.cut()
        with pytest.raises(StreamReset) as caught:
            await accepted.receive_some()
        assert caught.value.code is StreamCode.DETACH_EXPIRED
        waits = network.waits
        # Of each dial that hears nothing 5 s, and then 1.5 s; then as for any session that is lost.
        assert {round(wait, 1) for wait in waits[1:]} == {6.5 if error is None else 1.5}
        assert len(waits) > 8
        network.handlers[:] = [hub]
        hub.session = None
        await trio.sleep(30)
        assert len(served.sessions) == 2
        with suppress(StreamReset):
            await opened.receive_some()
        nursery.cancel_scope.cancel()


def test_a_process_that_stood_still_until_all_was_over_dials_a_new_session() -> None:
    """Both the wait for the next dial and the session's time end in one pass, in either order."""

    async def stand_still(clock: MockClock) -> int:
        async with trio.open_nursery() as nursery:
            hub, served = Hub(), Served()
            network = Network(nursery, hub, open_max=2)
            await run(nursery, network, served)
            assert hub.session is not None
            hub.session.open_stream(b"head", context=hub.session.add_context(1, b"x"))
            await accept(served.sessions[0])
            network.handlers[:] = [Unreachable(ConnectionRefusedError())]
            await hub.cut()
            await trio.sleep(0.6)
            await wait_all_tasks_blocked()
            network.handlers[:] = [hub]
            hub.session = None
            clock.jump(90)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
        return len(served.sessions)

    for _ in range(10):
        clock = MockClock(autojump_threshold=0)
        assert trio.run(stand_still, clock, clock=clock) == 2


async def test_a_session_without_streams_is_dialled_for_once_and_then_a_new_one_each_second(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub)
        await run(nursery, network, served)
        network.handlers[:] = [Unreachable(ConnectionRefusedError())]
        await hub.cut()
        await trio.sleep(0.9)
        assert served.sessions[0].closed
        assert len(network.dialled_at) == 2
        await trio.sleep(40)
        # The budget of 20 has gained one when it is empty.
        assert network.waits[1:23] == pytest.approx([0.5, *[1.0] * 21])
        assert min(network.waits[23:]) >= 5
        nursery.cancel_scope.cancel()


async def test_a_hub_that_has_forgotten_the_session_is_dialled_for_a_new_one_at_once(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub, open_max=2)
        await run(nursery, network, served)
        assert hub.session is not None
        hub.session.open_stream(b"head", context=hub.session.add_context(1, b"x"))
        accepted = await accept(served.sessions[0])
        hub.forgotten = True
        await hub.cut()
        with pytest.raises(StreamReset, match="does not know this session any more"):
            await accepted.receive_some()
        await trio.sleep(1)
        assert [hello.resume is not None for hello in hub.hellos] == [False, True, False]
        # A hub that has crashed is here again, and was dialled at a time that was drawn.
        assert network.waits[1] == pytest.approx(0, abs=0.05)
        assert len(served.sessions) == 2
        assert not served.sessions[1].closed
        nursery.cancel_scope.cancel()


async def test_a_session_that_ends_on_a_later_connection_is_followed_by_another(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        hub, served = Hub(), Served()
        network = Network(nursery, hub, open_max=2)
        await run(nursery, network, served)
        await hub.cut()
        await trio.sleep(1)
        assert hub.session is not None
        hub.session.abandon("enough")
        await trio.sleep(20)
        assert len(served.sessions) == 2
        nursery.cancel_scope.cancel()
