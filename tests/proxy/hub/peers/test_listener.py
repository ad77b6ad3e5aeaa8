"""Dials by TCP and TLS: which hub is let in, which one is trusted, and what a stranger can hold."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable

import attrs
import pytest
import trio

from auth.keys import SigningKey
from proxy.hub.membership.member import Member, MemberState
from proxy.hub.peers.dial import PEER_PATH
from proxy.hub.peers.hello import hub_party, issue_hub_hello
from proxy.hub.peers.identity import LinkIdentity, key_in, server_name, trust_in
from proxy.hub.peers.link import PeerLink
from proxy.listener.unauthenticated import UnauthenticatedLimits
from tests.proxy.hub.peers.dialled import Dialled, linked, listening, make_hub, serving
from tests.proxy.hub.peers.linked import member
from tunnel import Hello, Transport, TransportClosed
from tunnel.dialing.failure import DialFailed
from tunnel.handshake import say_hello
from tunnel.net.connect import HandshakeFailed, TLSStream, open_tcp, wrap_client
from tunnel.protocol import frames, greetings
from tunnel.websocket.upgrade import WebSocketRefused, dial_websocket

Pair = tuple[Dialled, Dialled]


@pytest.fixture
async def third() -> AsyncIterator[Dialled]:
    async with listening(await make_hub("cccccccc")) as (hub,):
        yield hub


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with listening(await make_hub("aaaaaaaa"), await make_hub("bbbbbbbb")) as (first, second):
        yield first, second


async def open_tls(hub: Dialled) -> TLSStream:
    """Connect to a hub's listener by TLS, as a client that knows its certificate and is no hub."""
    tcp = await open_tcp("127.0.0.1", int(hub.me.address.rpartition(":")[2]))
    context = trust_in(hub.identity.certificate)
    return await wrap_client(tcp, context, server_hostname=server_name(hub.me.boot))


async def dial_with(hub: Dialled, *authorization: str) -> str:
    """Dial with these headers; returns why it was refused."""
    headers = [(b"authorization", each.encode()) for each in authorization]
    with pytest.raises(WebSocketRefused) as caught:
        async with dial_websocket(await open_tls(hub), host="hub", target=PEER_PATH, headers=headers):
            pass
    warnings = [value.decode() for name, value in caught.value.headers if name.lower() == b"warning"]
    return f"{caught.value.status} {' '.join(warnings)}"


def hello(
    hub: Dialled, to: Member, *, key: SigningKey | None = None, jti: str = "j1", late: float = 0
) -> str:
    token = issue_hub_hello(
        key or hub.identity.key,
        sender=hub_party(hub.me.hub, hub.me.boot),
        reader=hub_party(to.hub, to.boot),
        jti=jti,
        now=time.time() - late,
    )
    return f"Bearer {token}"


async def test_two_hubs_are_linked_by_tls(pair: Pair) -> None:
    first, second = pair
    async with serving(*pair):
        for hub in pair:
            hub.members.read(first.me, second.me)
        await linked(first)
        await linked(second)

        async def answer(link: PeerLink, body: dict[str, object]) -> dict[str, object]:
            return {"heard": body["word"], "from": link.member.hub}

        for hub in pair:
            hub.mesh.answers["echo"] = answer
        word = "x" * 200_000
        for hub, other in (pair, pair[::-1]):
            (link,) = hub.mesh.links
            assert await link.ask("echo", {"word": word}) == {"heard": word, "from": hub.me.hub}
            assert link.member is hub.members.rows[other.me.boot]
        assert first.listener.unauthenticated.connections == 0
        assert second.listener.unauthenticated.connections == 0


async def test_a_link_goes_on_over_the_next_connection(pair: Pair) -> None:
    first, second = pair
    async with serving(*pair):
        for hub in pair:
            hub.members.read(first.me, second.me)
        await linked(first)
        await linked(second)
        (link,) = second.mesh.links
        await link.session._life.transport.aclose(1011, "as a network that cuts")
        with trio.fail_after(5):
            assert await first.mesh.links[0].session.wait_detached()
            while first.mesh.links[0].session.detached:  # noqa: ASYNC110 - the mesh has no event for it
                await trio.sleep(0.01)
        assert second.mesh.links == [link]
        assert link.session.detaches == 1


@pytest.mark.parametrize(
    ("row", "reason", "forgotten"),
    [
        (lambda row, other: attrs.evolve(row, address=other.address), "another process", True),
        (lambda row, other: attrs.evolve(row, certificate=other.certificate), "another process", True),
        (lambda row, other: attrs.evolve(row, boot=other.boot), "another process", True),
        (lambda row, other: attrs.evolve(row, certificate="no certificate"), "its row cannot be used", False),
        (lambda row, other: attrs.evolve(row, address="nowhere"), "its row cannot be used", False),
        (lambda row, other: attrs.evolve(row, address="127.0.0.1:1"), "Connection refused", False),
        (lambda row, other: row, "the token is signed with a key that is unknown here", False),
    ],
    ids=["other hub's address", "certificate", "boot", "no PEM", "no address", "nothing there", "unknown"],
)
async def test_a_stale_or_wrong_row_leads_to_no_link(
    pair: Pair,
    third: Dialled,
    row: Callable[[Member, Member], Member],
    reason: str,
    forgotten: bool,
) -> None:
    first, second = pair
    async with serving(first, second, third):
        with pytest.raises(DialFailed, match=reason) as caught:
            async with first.dialer.connect(row(second.me, third.me), ""):
                pass
        assert caught.value.forgotten is forgotten


async def test_a_hello_counts_once_for_one_boot_and_by_the_key_in_the_senders_row(
    pair: Pair, third: Dialled
) -> None:
    first, second = pair
    async with serving(second), listening(await make_hub("dddddddd")) as (gone,):
        bare = member("eeeeeeee", certificate="", address="")
        second.members.read(
            first.me, second.me, third.me, bare, attrs.evolve(gone.me, state=MemberState.GONE)
        )
        me = second.me
        for authorization, reason in (
            (hello(first, third.me), "the token is for another audience"),
            (hello(first, attrs.evolve(me, boot="before")), "the token is for another audience"),
            (hello(first, me, key=third.identity.key), "the token is from another issuer"),
            (hello(first, me, key=SigningKey.generate()), "signed with a key that is unknown here"),
            (hello(gone, me), "signed with a key that is unknown here"),
            (hello(second, me), "signed with a key that is unknown here"),
            (hello(first, me, late=200), "the token expired"),
            (hello(first, me, late=-200), "s in the future"),
            ("Bearer x", "not a signed token"),
            ("Basic x", "a hub authenticates by one bearer token"),
        ):
            refusal = await dial_with(second, authorization)
            assert refusal.startswith("401 ")
            assert reason in refusal
        assert "by one bearer token" in await dial_with(second)
        assert "by one bearer token" in await dial_with(second, hello(first, me), hello(first, me))
        assert second.mesh.links == []
        once = hello(first, me)
        headers = [(b"authorization", once.encode())]
        async with dial_websocket(await open_tls(second), host="hub", target=PEER_PATH, headers=headers):
            assert "the hub's hello was used before" in await dial_with(second, once)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /readyz HTTP/1.1", b"404"),
        (b"GET /v1/tunnel HTTP/1.1", b"404"),
        (b"POST /v1/peer HTTP/1.1", b"400"),
        (b"GET /v1/peer HTTP/1.1", b"400"),
        (b"hello", b"400"),
    ],
)
async def test_what_is_no_dial_of_a_hub_is_refused(pair: Pair, request_line: bytes, status: bytes) -> None:
    _, second = pair
    async with serving(second), await open_tls(second) as tls:
        await tls.send_all(request_line + b"\r\nhost: hub\r\n\r\n")
        answer = b""
        with trio.fail_after(5):
            while b"\r\n\r\n" not in answer:
                answer += await tls.receive_some()
        assert answer.split()[1] == status
        assert b"connection: close" in answer.lower()


async def test_a_client_that_trusts_another_certificate_gets_no_connection(
    pair: Pair,
) -> None:
    first, second = pair
    async with serving(second):
        tcp = await open_tcp("127.0.0.1", int(second.me.address.rpartition(":")[2]))
        with pytest.raises(HandshakeFailed) as caught:
            await wrap_client(
                tcp, trust_in(first.me.certificate), server_hostname=server_name(second.me.boot)
            )
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_silent_connections_are_bounded_and_keep_no_hub_out(pair: Pair) -> None:
    first, second = pair
    second.listener.unauthenticated.connections_max = 8
    per_network = UnauthenticatedLimits(connections_max=8).per_network_max
    async with serving(*pair):
        silent = [await open_tcp("127.0.0.1", int(second.me.address.rpartition(":")[2])) for _ in range(12)]
        await trio.sleep(0.05)
        assert second.listener.unauthenticated.connections == per_network
        for hub in pair:
            hub.members.read(first.me, second.me)
        await linked(second)
        assert second.listener.unauthenticated.evicted >= 1
        for each in silent:
            await each.aclose()


async def say(transport: Transport, message: bytes) -> TransportClosed:
    """Send a message, and return how the hub ends the connection."""
    await transport.send(message)
    with trio.fail_after(5):
        while True:
            try:
                await transport.receive()
            except TransportClosed as closed:
                return closed


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00" * 12,
        b"\xff" * 5_000,
        frames.ping(1, 0, 0, answer=False),
        greetings.hello(Hello()) + frames.ping(1, 0, 0, answer=False),
        greetings.hello(Hello(versions=(9,))),
    ],
    ids=["empty", "zeros", "ones", "ping", "more than a hello", "version"],
)
async def test_a_hub_that_says_garbage_gets_no_link(
    pair: Pair, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pair
    async with serving(second):
        second.members.read(first.me, second.me)
        async with first.dialer.connect(second.me, "") as transport:
            closed = await say(transport, message)
            assert closed.code == 4400
        await trio.sleep(0.01)
        assert second.mesh.links == []
        assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_garbage_in_a_link_ends_that_link_alone(pair: Pair) -> None:
    first, second = pair
    async with serving(second):
        second.members.read(first.me, second.me)
        async with first.dialer.connect(second.me, "") as good, first.dialer.connect(second.me, "") as bad:
            for transport in (good, bad):
                await say_hello(transport, Hello())
            await trio.sleep(0.01)
            assert len(second.mesh.links) == 2
            assert (await say(bad, b"\xff" * 5_000)).code == 4400
            await trio.sleep(0.01)
            assert len(second.mesh.links) == 1
            assert second.mesh.links[0].up


async def test_a_session_of_another_hub_is_not_resumed(pair: Pair, third: Dialled) -> None:
    first, second = pair
    async with serving(second):
        second.members.read(first.me, second.me, third.me)
        async with first.dialer.connect(second.me, "") as transport:
            await say_hello(transport, Hello(features=("resume",)))
            await trio.sleep(0.01)
            (link,) = second.mesh.links
            # Another hub names the session of this one.
            theft = greetings.hello(
                Hello(features=("resume",), resume=greetings.Resume(link.session.session_id, 0, 0, 9, 1))
            )
            async with third.dialer.connect(second.me, link.session.session_id) as thief:
                assert (await say(thief, theft)).code == 4410
            assert link.up


def test_a_certificate_states_the_key_and_the_boot() -> None:
    identity = LinkIdentity.make("0BOOT")
    assert key_in(identity.certificate).kid == identity.key.kid
    assert server_name("0BOOT") == "0boot.hub.hawse.internal"
    assert "PRIVATE" not in repr(identity)
    for text in ("", "x", identity.certificate.replace("M", "N", 3)):
        with pytest.raises(ValueError):
            key_in(text)
