"""Resumes that come to another hub: two hubs' dials and a link between them, in one process."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair

from auth.keys import SigningKey
from auth.tokens import HelloClaims, issue_hello
from proxy.exchange.server import ServerConnection
from proxy.hub import carried_resumes
from proxy.hub.authorize.events import Trail
from proxy.hub.carried_resumes import CarriedResumes, ResumeCarrier
from proxy.hub.membership.member import Member, MemberState
from proxy.hub.peers.link import RESUME, PeerLink
from proxy.hub.relay_dials import LATER_RETRY_AFTER_S, Found, RelayDials, Wanted
from proxy.hub.relays.accept_limit import CLUSTER_ARRIVALS_MAX, AcceptLimit
from proxy.hub.relays.endpoint import RelayEndpoint
from proxy.hub.relays.registry import Registry
from tests.proxy.hub.calls.sessions import session_pair
from tests.proxy.hub.relays.endpoint_bench import NOW, Bench, lost_relay, open_bench
from tests.tunnel.trio_stream import TrioStream
from tunnel import CloseCode, Hello, Rejected, Resume, Session, Stream, Transport
from tunnel.handshake import say_hello
from tunnel.net.loglimit import LogLimit
from tunnel.net.readiness import Readiness
from tunnel.websocket.upgrade import AT_HEADER, SESSION_HEADER, WebSocketRefused, dial_websocket

OWNER, OTHER = "0000000b", "0000000a"


def member(hub: str, boot: str) -> Member:
    return Member(
        hub=hub,
        boot=boot,
        epoch=1,
        software="hawse/test",
        state=MemberState.SERVING,
        applied=1,
        started_at=0.0,
        age_s=0.0,
        stale_s=10.0,
        stale_streams_s=60.0,
    )


@attrs.define(eq=False)
class Hubs:
    """The hub that a relay reaches, and the owner of its session."""

    bench: Bench
    """Of the owner."""
    claims: HelloClaims
    relay: Session
    session: Session
    """The owner's end of the relay's session."""
    carried: CarriedResumes
    dials: RelayDials
    """Of the hub that the relay reaches."""
    link: PeerLink
    key: SigningKey
    nursery: trio.Nursery
    linked: bool = True
    known: bool = True
    """Whether the hub that the relay reaches has read the row of the other one."""
    database: bool = True
    """Whether the rows can be read now."""
    me: Member = attrs.Factory(lambda: member(OTHER, "boot-a"))
    jtis: itertools.count[int] = attrs.Factory(itertools.count)
    connections: list[trio.abc.Stream] = attrs.Factory(list)

    def others(self) -> list[Member]:
        """See Membership."""
        return [self.link.member] if self.known else []

    def of_hub(self, hub: str) -> list[Member]:
        """See Membership."""
        return [each for each in (self.me, *self.others()) if each.hub == hub]

    async def read(self) -> None:
        """See Membership."""
        if not self.database:
            await trio.sleep_forever()
        self.known = True

    def link_to(self, boot: str) -> PeerLink | None:
        """See Links."""
        return self.link if self.linked and boot == self.link.member.boot else None

    @asynccontextmanager
    async def dial(self, session: str = "", at: str = OWNER, jti: str = "") -> AsyncIterator[Transport]:
        """A relay's dial to the first hub, up to the answer to its upgrade."""
        client, server = memory_stream_pair()
        self.connections.append(server)
        self.nursery.start_soon(self._serve, server)
        token = issue_hello(
            self.key,
            cluster_id=self.claims.cluster_id,
            hub_url="https://hub.example",
            instance=self.claims.instance,
            jti=jti or f"jti-{next(self.jtis)}",
            now=NOW,
        )
        headers = [
            (b"authorization", b"Bearer " + token.encode()),
            (SESSION_HEADER, (session or self.session.session_id).encode()),
        ]
        if at:
            headers.append((AT_HEADER, at.encode()))
        async with dial_websocket(
            client, host="hub.example", target="/v1/tunnel", headers=headers
        ) as transport:
            yield transport

    async def _serve(self, server: trio.abc.Stream) -> None:
        connection = ServerConnection(server)
        head = await connection.next_request()
        assert head is not None
        if not await self.dials.answer(connection, server, head, lambda: None, "192.0.2.7"):
            await connection.aclose()
        await trio.aclose_forcefully(server)

    async def resume(self, at: str = OWNER) -> None:
        """Resume the relay's session by way of the first hub, until the connection is lost."""
        async with self.dial(at=at) as transport:
            greeting = await say_hello(transport, self.relay.hello_again())
            await self.relay.resume(transport, greeting)

    async def wait_resumed(self) -> None:
        """Wait until both ends of the session go on."""
        while True:
            if not (self.session.detached or self.relay.detached):
                return
            await trio.lowlevel.checkpoint()

    async def cut(self) -> None:
        """Cut the relay's connection to the first hub."""
        for each in self.connections:
            await trio.aclose_forcefully(each)
        await self.session.wait_detached()


async def echo(stream: TrioStream, data: bytes) -> None:
    """Have bytes go from the owner to the relay and back."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        received = b""
        while len(received) < len(data):
            received += await stream.receive_some()
    assert received == data


@pytest.fixture
async def hubs(tmp_path: Path) -> AsyncIterator[Hubs]:
    key = SigningKey.generate()
    async with (
        open_bench(tmp_path, key) as bench,
        lost_relay(bench) as (session, claims, relay),
        session_pair() as (link, far),
        trio.open_nursery() as nursery,
    ):
        owner = bench.endpoint
        first = attrs.evolve(owner, registry=Registry(), boot="boot-a", hub=OTHER)

        def dials_of(relays: RelayEndpoint) -> RelayDials:
            auth = attrs.evolve(bench.auth, registry=relays.registry, limit=AcceptLimit())
            return RelayDials(
                auth, relays, bench.directory, bench.recorder, Trail("acme"), lambda: NOW, Readiness(),
                LogLimit(logging.getLogger("hawse.test")),
            )  # fmt: skip

        carried = CarriedResumes(owner.registry, dials_of(owner), nursery)
        far_link = PeerLink(member(OTHER, "boot-a"), far)
        far.on_stream(lambda stream: carried.accept(far_link, stream))
        dials = dials_of(first)
        near_link = PeerLink(member(OWNER, "boot-b"), link)
        hubs = Hubs(bench, claims, relay, session, carried, dials, near_link, key, nursery)
        dials.carrier = ResumeCarrier(hubs, hubs)

        async def send_back(raw: Stream) -> None:
            async with TrioStream(raw) as stream:
                stream.send_answer_nowait(b"head")
                async for data in stream:
                    await stream.send_all(data)

        relay.on_stream(lambda raw: nursery.start_soon(send_back, raw))
        with trio.fail_after(10):
            yield hubs
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("at", [OWNER, ""])
async def test_a_relay_resumes_its_session_again_and_again_by_another_hub(hubs: Hubs, at: str) -> None:
    """Named or not: a relay of an earlier version does not name the hub."""
    hubs.nursery.start_soon(hubs.resume, at)
    await hubs.wait_resumed()
    context = hubs.session.add_context(1, b"agent")
    async with TrioStream(hubs.session.open_stream(b"head", context=context)) as stream:
        # The second one is more than the window of a stream, in both directions.
        for size in (1, 300_000, 1):
            await echo(stream, b"%d" % (size % 10) * size)
            await hubs.cut()
            hubs.nursery.start_soon(hubs.resume, at)
        await echo(stream, b"whole")
    [relay] = hubs.bench.endpoint.registry.relays()
    assert relay.address == "192.0.2.7"
    assert hubs.session.interruptions.detaches == 4


@pytest.mark.parametrize(("session", "at"), [("another", OWNER), ("another", ""), ("", "00000000")])
async def test_a_session_that_no_hub_has_is_unknown(hubs: Hubs, session: str, at: str) -> None:
    """A relay believes that of the hub alone that it has named, so the other one answers in its name."""
    async with hubs.dial(session, at) as transport:
        assert dict(transport.answer_headers)[AT_HEADER].decode() == (at or OTHER)
        with pytest.raises(Rejected) as caught:
            await say_hello(transport, hubs.relay.hello_again())
    assert caught.value.close_code == CloseCode.RESUME_UNKNOWN


@pytest.mark.parametrize("at", [OWNER, ""])
async def test_a_session_of_a_hub_that_has_just_started_is_carried_to_it(hubs: Hubs, at: str) -> None:
    hubs.known = False
    hubs.nursery.start_soon(hubs.resume, at)
    await hubs.wait_resumed()


async def refused(hubs: Hubs, session: str = "", jti: str = "") -> WebSocketRefused:
    with pytest.raises(WebSocketRefused) as caught:
        async with hubs.dial(session, jti=jti):
            pass
    return caught.value


@pytest.mark.parametrize("why", ["no link", "the link is lost", "full", "no answer", "no database"])
async def test_a_relay_asks_again_while_the_hub_of_its_session_cannot_be_asked(
    hubs: Hubs, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    match why:
        case "no link":
            hubs.linked = False
        case "the link is lost":
            hubs.link.session.end(None, "lost")
        case "no database":
            monkeypatch.setattr(carried_resumes, "ANSWER_S", 0.01)
            hubs.known = hubs.database = False
        case "full":
            monkeypatch.setattr(carried_resumes, "CARRIED_PER_LINK_MAX", 0)
        case "no answer":
            monkeypatch.setattr(carried_resumes, "ANSWER_S", 0.01)
            monkeypatch.setattr(CarriedResumes, "accept", lambda *_: None)
    answer = await refused(hubs)
    assert answer.status == 503
    assert (b"retry-after", b"%d" % LATER_RETRY_AFTER_S) in answer.headers
    assert hubs.session.detached


async def test_the_owner_records_the_use_of_the_token_and_its_refusal_arrives(hubs: Hubs) -> None:
    async with hubs.dial(jti="once"):
        pass
    answer = await refused(hubs, jti="once")
    assert answer.status == 401
    assert dict(answer.headers)[b"warning"] == b'299 - "the relay\'s token was used before"'


@attrs.frozen
class Asks:
    """A Carrier that notes which hubs it is asked for."""

    found: Found | None = None
    hubs: list[str] = attrs.Factory(list)

    async def find(self, hub: str, wanted: Wanted) -> Found | None:
        self.hubs.append(hub)
        return self.found


async def test_a_relay_with_an_invalid_token_reaches_no_other_hub(hubs: Hubs) -> None:
    hubs.dials.carrier = asks = Asks()
    hubs.key = SigningKey.generate()
    answer = await refused(hubs)
    assert answer.status == 401
    assert asks.hubs == []


async def test_a_cluster_that_resumes_without_end_reaches_no_other_hub(hubs: Hubs) -> None:
    hubs.dials.carrier = asks = Asks()
    limit, cluster = hubs.dials.auth.limit, hubs.claims.cluster_id
    for _ in range(CLUSTER_ARRIVALS_MAX):
        limit.admit_cluster(limit.arrive(), cluster, "prod", trio.current_time())
    answer = await refused(hubs)
    assert answer.status == 503
    assert asks.hubs == []
    assert limit.arrivals_of[cluster] == CLUSTER_ARRIVALS_MAX


async def test_a_dial_counts_for_its_cluster_once(hubs: Hubs) -> None:
    async with hubs.dial("another"):
        assert hubs.dials.auth.limit.arrivals_of[hubs.claims.cluster_id] == 1


async def test_a_connection_that_is_carried_begins_no_session(hubs: Hubs) -> None:
    async with hubs.dial() as transport:
        with pytest.raises(Rejected, match="this dial resumes a session, and begins none"):
            await say_hello(transport, Hello(cluster=hubs.claims.cluster_id, instance=hubs.claims.instance))
    assert hubs.session.detached


async def test_a_connection_is_carried_once_only(hubs: Hubs) -> None:
    """The owner serves what is carried to it, also if it has links to hubs that may have the session."""
    hubs.carried.dials.carrier = asks = Asks()
    named = Wanted(hubs.session.session_id, hubs.claims.cluster_id, "192.0.2.7")
    assert hubs.dials.carrier is not None
    hubs.dials.carrier = Asks(await hubs.dials.carrier.find(OWNER, named))
    # The line names the session, and the dial behind it another one.
    async with hubs.dial("another") as transport:
        with pytest.raises(Rejected, match="this hub does not have that session"):
            await say_hello(
                transport, attrs.evolve(hubs.relay.hello_again(), resume=Resume("another", 0, 0, 0, 1))
            )
    assert asks.hubs == []


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}\n", b"[]\n", b"{\n", b'{"session":1,"cluster":"c","address":"a"}\n', b"x" * 2000,
        b'{"session":"s","cluster":"c","address":"\\ud800"}\n',
    ],
)  # fmt: skip
async def test_a_line_that_names_no_session_is_refused(hubs: Hubs, line: bytes) -> None:
    async with TrioStream(hubs.link.open(RESUME)) as stream:
        await stream.send_all(line)
        if not line:
            await stream.send_eof()
        with pytest.raises(trio.BrokenResourceError, match="no line names a session"):
            await stream.receive_head()


async def test_a_fault_of_ours_ends_one_carried_connection_alone(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(CarriedResumes, "_serve_stream", fail)
        assert (await refused(hubs)).status == 503
    assert "a bug" in caplog.text
    hubs.nursery.start_soon(hubs.resume)
    await hubs.wait_resumed()


async def test_when_the_link_ends_the_relay_has_lost_its_connection(hubs: Hubs) -> None:
    resumed = trio.Event()

    async def resume() -> None:
        await hubs.resume()
        resumed.set()

    hubs.nursery.start_soon(resume)
    await hubs.wait_resumed()
    hubs.link.session.end(None, "lost")
    await resumed.wait()
    assert hubs.session.detached
    assert hubs.relay.detached
