from __future__ import annotations

import gc
import ssl
import weakref

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair

from tests.tunnel.certificates import ca_pem, contexts
from tunnel.net import tls_sessions as module
from tunnel.net.connect import client_context, wrap_client, wrap_server
from tunnel.net.tls import HandshakeFailed, TLSStream
from tunnel.net.tls_sessions import FRESH_S, VERIFIED_S, ClientContext


async def dial(
    client_side: ssl.SSLContext, server_side: ssl.SSLContext, name: str = "hub.test", *, answer: bool = True
) -> tuple[TLSStream, TLSStream]:
    """A connection; the server's first data, with its tickets, has come if it is to `answer`."""
    near, far = memory_stream_pair()
    server = wrap_server(far, server_side)
    clients = []

    async def connect() -> None:
        clients.append(await wrap_client(near, client_side, server_hostname=name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await server.do_handshake()
    if answer:
        await server.send_all(b"x")
        assert await clients[0].receive_some() == b"x"
    return clients[0], server


async def close(*streams: TLSStream) -> None:
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_connection_resumes_the_session_of_the_last_one(version: ssl.TLSVersion) -> None:
    sides = contexts(version)
    for resumed in (False, True, True):
        ends = await dial(*sides)
        assert ends[0].ssl_object.session_reused is resumed
        await close(*ends)


async def test_a_connection_resumes_the_session_of_one_that_is_still_open() -> None:
    sides = contexts()
    first, second = await dial(*sides), await dial(*sides)
    assert second[0].ssl_object.session_reused
    await close(*first, *second)


async def test_a_connection_resumes_the_session_of_one_that_was_cut() -> None:
    sides = contexts()
    client, server = await dial(*sides)
    await trio.aclose_forcefully(server.transport_stream)
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await close(client, server)
    ends = await dial(*sides)
    assert ends[0].ssl_object.session_reused
    await close(*ends)


async def test_a_connection_resumes_the_session_of_one_that_we_have_cut() -> None:
    sides = contexts()
    client, server = await dial(*sides)
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)
    ends = await dial(*sides)
    assert ends[0].ssl_object.session_reused
    await close(*ends)


@attrs.define
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


async def test_without_a_ticket_there_is_nothing_to_resume_and_the_last_session_stays() -> None:
    clock = Clock()
    sides = contexts(ssl.TLSVersion.TLSv1_3)
    sides[0].resumption("hub.test").clock = clock
    for answer, resumed in ((False, False), (True, False), (False, True), (True, True)):
        ends = await dial(*sides, answer=answer)
        assert ends[0].ssl_object.session_reused is resumed
        # So that another one may take its place.
        clock.now += FRESH_S
        await close(*ends)


async def test_a_ticket_serves_for_a_minute_and_then_a_newer_one_does() -> None:
    clock = Clock()
    sides = contexts()
    kept = sides[0].resumption("hub.test")
    kept.clock = clock
    sessions = []
    for now in (1.0, FRESH_S + 0.9, FRESH_S + 1, 2 * FRESH_S + 0.9, 2 * FRESH_S + 1):
        clock.now = now
        await close(*await dial(*sides))
        sessions.append(kept._session)
    first, same, second, as_that, third = map(id, sessions)
    assert first == same
    assert second == as_that
    assert len({first, second, third}) == 3


async def test_another_name_and_another_context_know_nothing_of_it() -> None:
    client_side, server_side = contexts()
    await close(*await dial(client_side, server_side))
    for context, name in ((client_side, "localhost"), (client_context(ca_pem()), "hub.test")):
        ends = await dial(context, server_side, name)
        assert not ends[0].ssl_object.session_reused
        await close(*ends)


async def test_a_name_that_the_certificate_lacks_is_refused_for_all_that() -> None:
    client_side, server_side = contexts()
    await close(*await dial(client_side, server_side))
    near, far = memory_stream_pair()
    server = wrap_server(far, server_side)

    async def answer() -> None:
        with pytest.raises(HandshakeFailed):
            await server.do_handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with pytest.raises(HandshakeFailed, match="Hostname mismatch"):
            await wrap_client(near, client_side, server_hostname="other.test")
    await close(server)


async def test_another_server_of_the_name_is_verified_again() -> None:
    client_side, server_side = contexts()
    await close(*await dial(client_side, server_side))
    ends = await dial(client_side, contexts()[1])
    assert not ends[0].ssl_object.session_reused
    await close(*ends)


async def test_the_certificate_is_asked_for_again_after_a_while() -> None:
    clock = Clock()
    client_side, server_side = contexts()
    client_side.resumption("hub.test").clock = clock
    # However many tickets have followed from one another meanwhile.
    for now, resumed in ((1.0, False), (VERIFIED_S / 2, True), (VERIFIED_S, True), (VERIFIED_S + 1, False)):
        clock.now = now
        ends = await dial(client_side, server_side)
        assert ends[0].ssl_object.session_reused is resumed, now
        await close(*ends)


async def test_a_connection_is_not_dated_by_what_was_verified_while_it_was_dialled() -> None:
    """It proves no more than the session that it resumes does."""
    clock = Clock(1.0)
    client_side, server_side = contexts()
    client_side.resumption("hub.test").clock = clock
    await close(*await dial(client_side, server_side))
    clock.now = VERIFIED_S
    near, far = memory_stream_pair()
    server = wrap_server(far, server_side)
    dialled: list[TLSStream] = []

    async def connect() -> None:
        dialled.append(await wrap_client(near, client_side, server_hostname="hub.test"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        # It offers the old session, and now another one is there, by the certificate of another server.
        await close(*await dial(client_side, contexts()[1]))
        await server.do_handshake()
    assert dialled[0].ssl_object.session_reused
    clock.now = VERIFIED_S + FRESH_S
    await server.send_all(b"x")
    assert await dialled[0].receive_some() == b"x"
    await close(dialled[0], server)
    ends = await dial(client_side, server_side)
    assert not ends[0].ssl_object.session_reused
    await close(*ends)


async def test_a_connection_that_was_there_before_the_newest_one_is_not_what_is_resumed() -> None:
    """Nor dated by it."""
    client_side, server_side = contexts()
    old = await dial(client_side, server_side)
    newest = await dial(client_side, contexts()[1], answer=False)
    await close(*old)
    ends = await dial(client_side, server_side)
    assert not ends[0].ssl_object.session_reused
    await close(*newest, *ends)


@pytest.mark.parametrize("answer", [True, False])
async def test_a_dial_after_all_connections_are_gone(answer: bool) -> None:
    clock = Clock(1.0)
    client_side, server_side = contexts()
    client_side.resumption("hub.test").clock = clock
    await close(*await dial(client_side, server_side, answer=answer))
    # Until its next step a task may hold what it has last called with (Python 3.13).
    await trio.lowlevel.checkpoint()
    gc.collect()
    clock.now += FRESH_S
    ends = await dial(client_side, server_side)
    assert ends[0].ssl_object.session_reused is answer
    await close(*ends)


async def test_a_server_that_has_forgotten_is_asked_for_a_new_ticket() -> None:
    client_side, server_side = contexts()
    await close(*await dial(client_side, server_side))
    another = contexts()[1]
    for resumed in (False, True):
        ends = await dial(client_side, another)
        assert ends[0].ssl_object.session_reused is resumed
        await close(*ends)


async def test_a_context_goes_with_all_that_it_keeps() -> None:
    sides = contexts()
    await close(*await dial(*sides))
    # Until its next step a task may hold what it has last called with (Python 3.13).
    await trio.lowlevel.checkpoint()
    gone = weakref.ref(sides[0])
    del sides
    gc.collect()
    assert gone() is None


def test_no_more_servers_are_kept_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVERS_MAX", 2)
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    first, second, third = (context.resumption(name) for name in ("a", "b", "c"))
    assert context.resumption("c") is third
    assert context.resumption("b") is second
    assert context.resumption("a") is not first
