"""Direct mode: the hub dials a cluster's relay at its public address, with the relay JWT on each request.

A private or loopback address is refused unless the operator allowed it when the cluster was added. Addresses
where no relay can be are always refused (proxy.hub.identity.guarded_dial). The certificate is verified
against the CA pinned when the cluster was added. A refusal by the relay itself has a reserved header, which
tells it from a refusal by the API server.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Set
from functools import partial
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import attrs
import trio

from auth.principal import Principal
from auth.tokens import issue_inquiry, issue_relay
from proxy.exchange.client import ClientConnection
from proxy.exchange.pool import Connections
from proxy.exchange.upstream_port import UpstreamPort
from proxy.hub.identity.guarded_dial import HTTPS_PORT, dial_checked
from proxy.hub.relays.contexts import AGENTS_PER_SESSION_MAX, RENEW_AFTER_S
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.relays.pins import Pins, read_statement
from proxy.hub.relays.relay_limit import RelayRefusedError
from proxy.hub.store.entities import Cluster
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.kubernetes.statement import STATEMENT_BYTES_MAX, STATEMENT_TARGET, Statement
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import RequestHead
from proxy.message.relay_marks import failure_of
from proxy.message.rewrite import direct_request_head
from tunnel.net.connect import bind_to_peer, client_context
from tunnel.net.readiness import Readiness
from tunnel.net.tcp import Bonds

# The interval between requests for a relay's statement, and the deadline from dial to whole answer.
ASK_EVERY_S = 30.0
ASK_DEADLINE_S = 10.0

# For agents; the log and the trail have the details.
_ELSEWHERE = "its relay is in another Kubernetes cluster than the pinned one"
_UNREADABLE = "its relay's statement is invalid"
# A relay in direct mode states no instance name.
INSTANCE = "direct"


@attrs.define
class _Token:
    text: str
    minted_at: float
    principal: Principal


@attrs.define(eq=False)
class _Relay:
    """The hub's state for one cluster in direct mode: connections and tokens."""

    cluster: Cluster
    connections: Connections
    host: bytes
    session: str
    announced: WeakKeyDictionary[ClientConnection, tuple[str, ...]] = attrs.Factory(WeakKeyDictionary)
    """The key statements sent on each connection: one address may lead to several relays."""
    tokens: dict[str, _Token] = attrs.Factory(dict)
    asking: trio.Event | None = attrs.Factory(trio.Event)
    """Requests wait for this event; None once the relay has been asked for its statement."""
    statement: Statement = attrs.Factory(Statement)
    heard_first: float | None = None
    """Since when it has answered each time (epoch seconds); None while it does not answer."""
    heard_last: float = 0.0
    refused: str = ""
    """Why nothing is sent to it, in words for agents; "" if requests may be sent."""
    unreached: str = ""
    """Why the last dial or request for a statement failed; "" if it did not."""

    # The relay's name in its events (pins.Source).
    instance = INSTANCE
    version = ""

    @property
    def cluster_id(self) -> str:
        return self.cluster.id

    @property
    def cluster_name(self) -> str:
        return self.cluster.name

    @property
    def address(self) -> str:
        return self.host.decode("ascii")


class DirectRelays:
    """The relays in direct mode with their kept connections; background tasks run in `nursery`."""

    def __init__(
        self,
        *,
        keys: Callable[[], SigningKeys],
        issuer: str,
        new_id: Callable[[], str],
        nursery: trio.Nursery,
        enrolled: Callable[[], Set[str]],
        pins: Pins,
    ) -> None:
        """`enrolled` returns the ids of the enrolled clusters."""
        self._pins = pins
        self._keys = keys
        self._issuer = issuer
        self._new_id = new_id
        self._nursery = nursery
        self._enrolled = enrolled
        # Removed clusters are dropped when another one is added, so the size is bounded by the clusters ever
        # enrolled at once.
        self._relays: dict[str, _Relay] = {}
        self._bonds = Bonds()
        self._readiness = Readiness()
        nursery.start_soon(self._bonds.run)
        nursery.start_soon(self._readiness.run)

    def request(
        self, cluster: Cluster, principal: Principal, inner: RequestHead, *, renew: bool
    ) -> DirectRequest:
        """Return a request to the cluster's relay. Nothing is sent yet.

        `renew` mints a new token, since the relay refused the last one.
        """
        relay = self._relay(cluster)

        def head_on(connection: ClientConnection) -> RequestHead:
            token = self._token(relay, principal, renew=renew)
            succession = self._keys().succession
            news = () if relay.announced.get(connection) == succession else succession
            relay.announced[connection] = succession
            return direct_request_head(inner, relay.host, token, news)

        return DirectRequest(relay, inner, head_on, partial(self._until_asked, relay))

    async def _until_asked(self, relay: _Relay) -> None:
        """Wait until requests may be sent to a relay; raises OutboundBroken if they may not.

        The first request, and the first one after the relay was unreachable, waits until the relay has stated
        its cluster.
        """
        if relay.unreached and relay.asking is None:
            # Another relay may be behind the address by now.
            relay.asking = trio.Event()
            self._nursery.start_soon(self._ask_for_requests, relay)
        if relay.asking is not None:
            await relay.asking.wait()
            if relay.unreached:
                # A second dial would take as long, and fail in the same way.
                raise OutboundBroken(Failure(StreamCode.DIAL_FAILED, Processed.NO, relay.unreached))
        if relay.refused:
            raise OutboundBroken(Failure(StreamCode.DIAL_FAILED, Processed.NO, relay.refused))

    def _relay(self, cluster: Cluster) -> _Relay:
        relay = self._relays.get(cluster.id)
        if relay is not None and relay.cluster == cluster:
            return relay
        if relay is not None:
            # Its URL, CA or rules have changed. Open requests on its connections end by themselves.
            self._nursery.start_soon(relay.connections.aclose)
        for removed in self._relays.keys() - self._enrolled() - {cluster.id}:
            self._nursery.start_soon(self._relays.pop(removed).connections.aclose)
        assert cluster.relay_url is not None
        url = urlsplit(cluster.relay_url)
        assert url.hostname is not None
        host, port = url.hostname, url.port or HTTPS_PORT
        context = client_context(cluster.relay_ca_pem)

        async def dial() -> trio.abc.Stream:
            stream = await dial_checked(host, port, context, private=cluster.relay_address_private)
            bind_to_peer(stream, self._bonds)
            return stream

        connections = Connections(dial, f"the relay of cluster {cluster.name}", self._readiness)
        self._nursery.start_soon(connections.sweep)
        relay = _Relay(cluster, connections, url.netloc.encode("ascii"), self._new_id())
        self._relays[cluster.id] = relay
        self._nursery.start_soon(self._keep_asking, relay)
        return relay

    async def _keep_asking(self, relay: _Relay) -> None:
        """Ask a relay for its statement periodically, while requests may be sent to it."""
        await self._ask_for_requests(relay)
        while True:
            await trio.sleep(ASK_EVERY_S)
            if self._relays.get(relay.cluster.id) is not relay or relay.cluster.id not in self._enrolled():
                return
            await self._ask(relay)

    async def _ask_for_requests(self, relay: _Relay) -> None:
        """Ask a relay for its statement, then release the waiting requests."""
        asking = relay.asking
        assert asking is not None, "requests wait"
        try:
            await self._ask(relay)
        finally:
            relay.asking = None
            asking.set()

    async def _ask(self, relay: _Relay) -> None:
        """Ask a relay for its statement, on a separate connection, and check it against the cluster's pin.

        While it does not answer, its last statement stays in force.
        """
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                text = await self._statement(relay)
        except OutboundBroken as broken:
            relay.heard_first, relay.unreached = None, broken.failure.reason
            return
        except trio.TooSlowError:
            relay.heard_first, relay.unreached = None, f"no answer within {ASK_DEADLINE_S:.0f} s"
            return
        now = time.time()
        relay.heard_first, relay.heard_last, relay.unreached = relay.heard_first or now, now, ""
        refused = _UNREADABLE
        try:
            relay.statement = read_statement(text)
            refused = _ELSEWHERE
            await self._pins.check(relay, relay.statement)
        except RelayRefusedError as error:
            # One event for all repetitions of the same refusal.
            if relay.refused != refused:
                self._pins.refused(relay, error)
            relay.refused = refused
        else:
            relay.refused = ""

    async def _statement(self, relay: _Relay) -> str:
        """Return a relay's statement; empty from an older version. Raises OutboundBroken."""
        keys = self._keys()
        token = issue_inquiry(
            keys.active,
            issuer=self._issuer,
            cluster_id=relay.cluster.id,
            jti=self._new_id(),
            now=time.time(),
        )
        request = RequestHead.of(b"GET", STATEMENT_TARGET)
        connection, _ = await relay.connections.acquire(fresh=True)
        try:
            await connection.send_request(direct_request_head(request, relay.host, token, keys.succession))
            head = await connection.receive_head()
            if head.status != 200 or failure_of(head) is not None:
                return ""
            body = bytearray()
            # One byte above the limit is enough to refuse a statement.
            while len(body) <= STATEMENT_BYTES_MAX and (data := await connection.receive_body()):
                body += data
            return body.decode("ascii", "replace")
        finally:
            # This close never waits for the peer, even when cancelled.
            await connection.aclose()  # noqa: ASYNC102

    def is_new(self, cluster: Cluster) -> bool:
        """Whether the cluster's relay was not asked yet at its current URL and CA."""
        relay = self._relays.get(cluster.id)
        return relay is None or relay.cluster != cluster or relay.asking is not None

    def heard(self, cluster: Cluster) -> Statement | None:
        """The last statement of the cluster's relay; None unless it answers and may serve requests."""
        relay = self._relays.get(cluster.id)
        if relay is None or self.is_new(cluster) or relay.unreached or relay.refused:
            return None
        return relay.statement

    def here(self) -> Iterator[RelayInfo]:
        """The relays that answered the last request for a statement."""
        for relay in self._relays.values():
            if relay.heard_first is not None and relay.cluster.id in self._enrolled():
                yield RelayInfo(
                    relay.cluster_name,
                    relay.instance,
                    relay.version,
                    relay.address,
                    relay.heard_first,
                    relay.heard_last,
                    None,
                    0,
                    "",
                    relay.statement,
                )

    def _token(self, relay: _Relay, principal: Principal, *, renew: bool) -> str:
        now = time.time()
        token = relay.tokens.get(principal.agent_id)
        # The lower bound: after the clock was set back, the token's age is unknown.
        young = token is not None and 0.0 <= now - token.minted_at < RENEW_AFTER_S
        if token is None or renew or not young or token.principal != principal:
            text = issue_relay(
                self._keys().active,
                issuer=self._issuer,
                cluster_id=relay.cluster.id,
                principal=principal,
                session=relay.session,
                jti=self._new_id(),
                now=now,
            )
            if len(relay.tokens) >= AGENTS_PER_SESSION_MAX:
                relay.tokens.pop(next(iter(relay.tokens)))
            relay.tokens[principal.agent_id] = token = _Token(text, now, principal)
        return token.text


@attrs.frozen(eq=False)
class DirectRequest:
    """A request to a relay in direct mode, for the port that sends it."""

    _relay: _Relay
    inner: RequestHead
    """The request's head, without the lines that are only for the relay."""
    head_on: Callable[[ClientConnection], RequestHead]
    """Returns the head to send on a connection: with a token, and with the keys that are new there."""
    _until_asked: Callable[[], Awaitable[None]]

    @property
    def connections(self) -> Connections:
        """The connections to the relay."""
        return self._relay.connections

    @property
    def session(self) -> str:
        """The session id in the relay's token."""
        return self._relay.session

    async def open(self, port: UpstreamPort, *, fresh: bool = False) -> None:
        """Get the port a connection, a new one if `fresh`; raises OutboundBroken.

        Waits before that until requests may be sent to the relay.
        """
        await self._until_asked()
        try:
            if fresh or not port.take_kept():
                await port.dial(fresh=fresh)
        except OutboundBroken as broken:
            self._relay.unreached = broken.failure.reason
            raise
