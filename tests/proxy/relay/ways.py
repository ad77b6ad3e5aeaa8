"""The hub's part in the relay's tests, in both modes: it sends inner heads under tokens of its own making.

Both are the real thing but for the network between: a session over the in-memory transport, and TLS over
loopback. So every test of the exchange runs the same request by both.
"""

from __future__ import annotations

import base64
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import trio
import trio.testing
import trustme

from auth import tokens
from auth.hubclock import HubClocks, issue_time
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.principal import Principal
from auth.tokens import issue_inquiry
from proxy.exchange.groups import HUB_GROUP
from proxy.exchange.inflight_memory import HeldUp
from proxy.kubernetes.statement import STATEMENT_TARGET, Statement
from proxy.message.failure import Failure, OutboundBroken
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.relay_marks import failure_of
from proxy.message.rewrite import direct_request_head
from proxy.process.files import watch_certificate
from proxy.relay.config import CLOCK_BOUND_S
from proxy.relay.direct import DirectServer
from proxy.relay.exchange import Underway, Upstream
from proxy.relay.guarding import run_guardrails
from proxy.relay.guardrails import Guardrails
from proxy.relay.pool import Pool, open_pool
from proxy.relay.service_account import ClusterAccess
from proxy.relay.tunnelled import serve_session
from proxy.relay.verify import Verifier
from tests.proxy.exchange.clients import HTTPClient, RawBytes, TunnelClient
from tests.proxy.relay.apiserver import headers
from tests.tunnel.trio_stream import TrioStream
from tunnel import Hello, Memory, Role, Session, Welcome, memory_transport_pair, open_session
from tunnel.net.connect import client_context, open_tls
from tunnel.net.tcp import TCPListener

HUB = "https://hub.example"
CLUSTER_ID = "0193-c1"
KEY = SigningKey.generate()
NONCE = "0123456789abcdef" * 2
PROBE = Principal(agent_id="0193-a1", name="probe", org="acme", teams=("platform", "sre"))


def trusting() -> TrustedKeys:
    """What a relay trusts that was given the hub's one key."""
    return TrustedKeys(KeySet([KEY.public]), HUB)


def hubs(keys: TrustedKeys | None = None, bound_s: float = CLOCK_BOUND_S) -> HubClocks:
    """What such a relay knows of the hub's clock."""
    return HubClocks(keys or trusting(), HUB, CLUSTER_ID, bound_s)


def tell_time(
    session: Session,
    *,
    key: SigningKey = KEY,
    issuer: str = HUB,
    now: float | None = None,
    hub: str = "hub-1",
    nonce: str | None = None,
) -> None:
    """Sign the hub's time for the relay at the other end of the session, as a hub does at first."""
    hello = session.peer
    assert isinstance(hello, Hello)
    statement = issue_time(
        key,
        issuer=issuer,
        cluster_id=CLUSTER_ID,
        nonce=hello.nonce if nonce is None else nonce,
        hub=hub,
        now=time.time() if now is None else now,
    )
    session.add_context(HUB_GROUP, statement.encode())


class Token(str):
    """A relay token as it is in direct mode."""

    __slots__ = ("in_tunnel",)
    in_tunnel: str
    """The same for the session of NONCE."""


def token(
    *,
    principal: Principal = PROBE,
    cluster_id: str = CLUSTER_ID,
    age_s: float = 0.0,
    key: SigningKey = KEY,
) -> Token:
    def issued(nonce: str) -> str:
        return tokens.issue_relay(
            key,
            issuer=HUB,
            cluster_id=cluster_id,
            principal=principal,
            session="s1",
            jti="j1",
            now=time.time() - age_s,
            nonce=nonce,
        )

    made = Token(issued(""))
    made.in_tunnel = issued(NONCE)
    return made


def forged(**changes: object) -> Token:
    """A token that is in order but for the changed claims, under the hub's own signature."""
    valid = token()
    made = Token(_changed(valid, changes))
    made.in_tunnel = _changed(valid.in_tunnel, changes)
    return made


def _changed(token: str, changes: Mapping[str, object]) -> str:
    header, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not ...}
    encoded = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    signature = KEY.key.sign(f"{header}.{encoded}".encode())
    return f"{header}.{encoded}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def inner(
    target: bytes = b"/api/v1/pods", *headers: tuple[bytes, bytes], method: bytes = b"GET"
) -> RequestHead:
    """A head as the hub makes it."""
    own = ((b"audit-id", b"eid-1"), (b"x-forwarded-for", b"203.0.113.7"))
    return RequestHead.of(method, target, own + headers)


@attrs.frozen
class Answer:
    """What came back: a head and a body, and the failure that ended it, if one did."""

    head: ResponseHead | None
    body: bytes
    failure: Failure | None

    @property
    def status(self) -> int:
        assert self.head is not None, self.failure
        return self.head.status


class Way(ABC):
    """One mode."""

    upstream: Upstream | None
    """Where the relay is in this process."""

    @property
    def pool(self) -> Pool:
        """The relay's connections to the API server."""
        assert self.upstream is not None
        return self.upstream.pool

    @property
    def underway(self) -> Underway:
        """The relay's open calls."""
        assert self.upstream is not None
        return self.upstream.underway

    async def at_rest(self) -> None:
        """Wait until no call is open, which has to come soon."""
        assert await self.underway.wait_drained(5)

    @abstractmethod
    def exchange(
        self, head: RequestHead, token: str, *, eof: bool
    ) -> AbstractAsyncContextManager[TunnelClient | HTTPClient]:
        """Send a head under a token, with the request's end behind it if `eof`."""

    @abstractmethod
    def announce(self, statement: str) -> None:
        """Tell the relay of a change of the hub's key, before whatever is asked next."""

    async def ask(
        self,
        head: RequestHead,
        body: bytes = b"",
        *,
        token: str | None = None,
        begun: trio.Event | None = None,
    ) -> Answer:
        """Send a request and collect its answer; sets `begun` when its head is here."""
        eof = not body and head.upgrade is None
        async with self.exchange(head, fresh() if token is None else token, eof=eof) as client:
            return await collect(client, body, begun)

    @asynccontextmanager
    async def upgrade(self, head: RequestHead) -> AsyncIterator[RawBytes]:
        """What follows the 101."""
        async with self.exchange(head, fresh(), eof=False) as client:
            assert (await client.receive_head()).status == 101
            yield client.upgraded()


async def collect(client: TunnelClient | HTTPClient, body: bytes, begun: trio.Event | None = None) -> Answer:
    head = None
    received = b""
    try:
        if body:
            await client.send_body(body)
            await client.end_body()
        head = await client.receive_head()
        if begun is not None:
            begun.set()
        failure = failure_of(head)
        while data := await client.receive_body():
            received += data
    except OutboundBroken as broken:
        failure = broken.failure
    return Answer(head, received, failure)


def fresh() -> Token:
    return token()


@attrs.define
class TunnelWay(Way):
    session: Session
    upstream: Upstream | None = None
    _contexts: dict[str, int] = attrs.field(factory=dict)

    def announce(self, statement: str) -> None:
        self.session.add_context(HUB_GROUP, statement.encode())

    def open(self, head: RequestHead, token: str, *, eof: bool) -> TunnelClient:
        """An exchange that the caller closes."""
        token = getattr(token, "in_tunnel", token)
        if token not in self._contexts:
            self._contexts[token] = self.session.add_context(1, token.encode())
        stream = TrioStream(self.session.open_stream(head.encode(), context=self._contexts[token], eof=eof))
        return TunnelClient(stream)

    @asynccontextmanager
    async def exchange(self, head: RequestHead, token: str, *, eof: bool) -> AsyncIterator[TunnelClient]:
        client = self.open(head, token, eof=eof)
        try:
            yield client
        finally:
            await client.aclose()


@attrs.define
class DirectWay(Way):
    port: int
    ca_pem: str
    verifier: Verifier | None = None
    """Where the relay is in this process."""
    upstream: Upstream | None = None
    succession: list[str] = attrs.field(factory=list)

    def announce(self, statement: str) -> None:
        self.succession.append(statement)

    async def connect(self) -> trio.abc.Stream:
        return await open_tls("127.0.0.1", self.port, client_context(self.ca_pem))

    @asynccontextmanager
    async def exchange(self, head: RequestHead, token: str, *, eof: bool) -> AsyncIterator[HTTPClient]:
        # Where a request ends is in its head here.
        connection = HTTPClient(await self.connect())
        try:
            await connection.send_request(direct_request_head(head, b"relay", token, self.succession))
            yield connection
        finally:
            await connection.aclose()


@asynccontextmanager
async def tunnel_way(
    access: ClusterAccess, guardrails: Guardrails | None = None, *, timed: bool = True
) -> AsyncIterator[TunnelWay]:
    """A tunnel whose hub has signed its time, if `timed`."""
    async with open_pool(access) as pool, trio.open_nursery() as nursery:
        at_hub, at_relay = memory_transport_pair()
        upstream = Upstream(pool, guardrails)
        if guardrails is not None:
            nursery.start_soon(run_guardrails, guardrails, upstream)

        async def run_relay() -> None:
            async with open_session(at_relay, Role.DIALER, hello=Hello(nonce=NONCE)) as session:
                await serve_session(session, upstream, hubs=hubs())

        nursery.start_soon(run_relay)
        async with open_session(at_hub, Role.LISTENER, answer_hello=lambda _: Welcome()) as session:
            if timed:
                tell_time(session)
            yield TunnelWay(session, upstream)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def direct_way(
    access: ClusterAccess,
    folder: Path,
    guardrails: Guardrails | None = None,
    memory: Memory | None = None,
    statement: Callable[[], Statement] = Statement,
) -> AsyncIterator[DirectWay]:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem, key = folder / "direct.pem", folder / "direct.key"
    pem.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    verifier = Verifier(trusting(), HUB, CLUSTER_ID, time.time)
    async with open_pool(access) as pool, trio.open_nursery() as nursery:
        upstream = Upstream(pool, guardrails)
        if guardrails is not None:
            nursery.start_soon(run_guardrails, guardrails, upstream)
        server = DirectServer(
            upstream, verifier, watch_certificate(pem, key), memory or Memory(2**40), statement=statement
        )
        listeners = [TCPListener(each) for each in await trio.open_tcp_listeners(0, host="127.0.0.1")]
        await nursery.start(trio.serve_listeners, server.handle_connection, listeners)
        nursery.start_soon(server.run)
        underway = upstream.underway
        nursery.start_soon(HeldUp(server.memory, underway, underway.end_for_memory).run)
        ca_pem = authority.cert_pem.bytes().decode()
        yield DirectWay(listeners[0].socket.getsockname()[1], ca_pem, verifier, upstream)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_way(
    mode: str, access: ClusterAccess, folder: Path, guardrails: Guardrails | None = None
) -> AsyncIterator[Way]:
    """The way of `mode` to a relay that reaches its API server by `access`."""
    if mode == "tunnel":
        async with tunnel_way(access, guardrails) as tunnel:
            yield tunnel
    else:
        async with direct_way(access, folder, guardrails) as direct:
            yield direct


async def exchange_raw(way: DirectWay, data: bytes) -> bytes:
    """Send raw bytes and return one answer, read by its Content-Length alone."""
    stream = await way.connect()
    received = b""
    try:
        await stream.send_all(data)
        with trio.fail_after(5):
            while (
                len(received.partition(b"\r\n\r\n")[2])
                < int((headers(received, "content-length") or ["0"])[0])
                or b"\r\n\r\n" not in received
            ):
                received += bytes(await stream.receive_some())
    finally:
        await trio.aclose_forcefully(stream)
    return received


def inquiry(cluster_id: str = CLUSTER_ID, issuer: str = HUB, age_s: float = 0.0) -> str:
    return issue_inquiry(KEY, issuer=issuer, cluster_id=cluster_id, jti="j", now=time.time() - age_s)


def inquiry_request(bearer: str, target: bytes = STATEMENT_TARGET, method: bytes = b"GET") -> bytes:
    head = b"%b %b HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %b\r\n" % (
        method,
        target,
        bearer.encode(),
    )
    return head + b"Connection: close\r\n\r\n"
