"""Direct mode: the hub dials a cluster's relay at its public address, with the relay JWT on each request.

An address that is private or loopback is refused unless the operator said so when the cluster was added, and
one where no relay can be always (proxy.hub.dialling). The certificate is verified against the CA pinned then.
What the relay itself refuses carries a reserved header, so that its refusal is told from one of the API
server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import attrs
import trio

from auth.principal import Principal
from auth.tokens import issue_relay
from proxy.connections import Connections
from proxy.exchange import OutboundBroken
from proxy.head import RequestHead, ResponseHead
from proxy.http import ClientConnection
from proxy.hub.contexts import AGENTS_PER_SESSION_MAX, RENEW_AFTER_S
from proxy.hub.datadir import SigningKeys
from proxy.hub.dialling import HTTPS_PORT, dial_checked
from proxy.hub.entities import Cluster
from proxy.pooled import PooledOutbound
from proxy.rewrite import direct_request_head, failure_of
from tunnel.net import bind_to_peer, client_context
from tunnel.tcp import Bonds


@attrs.define
class _Token:
    text: str
    minted_at: float
    principal: Principal


@attrs.define(eq=False)
class _Relay:
    """What the hub keeps of one directly reached cluster: connections and tokens."""

    cluster: Cluster
    connections: Connections
    host: bytes
    session: str
    told: WeakKeyDictionary[ClientConnection, tuple[str, ...]] = attrs.Factory(WeakKeyDictionary)
    """What was said of the hub's keys on each connection: behind an address stand several relays."""
    tokens: dict[str, _Token] = attrs.Factory(dict)


class DirectRelays:
    """The relays in direct mode, each with its kept connections, whose upkeep runs in `nursery`."""

    def __init__(
        self,
        *,
        keys: Callable[[], SigningKeys],
        issuer: str,
        new_id: Callable[[], str],
        nursery: trio.Nursery,
        enrolled: Callable[[], Set[str]],
    ) -> None:
        """`enrolled` says the ids of the clusters that there are now."""
        self._keys = keys
        self._issuer = issuer
        self._new_id = new_id
        self._nursery = nursery
        self._enrolled = enrolled
        # Whoever comes new looks for those whose clusters were removed: no more than were enrolled at once.
        self._relays: dict[str, _Relay] = {}
        self._bonds = Bonds()
        nursery.start_soon(self._bonds.run)

    async def open(
        self, cluster: Cluster, principal: Principal, inner: RequestHead, *, renew: bool
    ) -> DirectOutbound:
        """Send a request's head to the cluster's relay; raises OutboundBroken.

        `renew` mints a new token: the relay refused the one before.
        """
        relay = self._relay(cluster)

        def head_for(connection: ClientConnection) -> RequestHead:
            token = self._token(relay, principal, renew=renew)
            succession = self._keys().succession
            news = () if relay.told.get(connection) == succession else succession
            relay.told[connection] = succession
            return direct_request_head(inner, relay.host, token, news)

        outbound = DirectOutbound(relay.connections, inner, head_for, session=relay.session)
        await outbound.start()
        return outbound

    def _relay(self, cluster: Cluster) -> _Relay:
        relay = self._relays.get(cluster.id)
        if relay is not None and relay.cluster == cluster:
            return relay
        if relay is not None:
            # Its URL, CA or rules have changed; what is under way there ends by itself.
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

        connections = Connections(dial, f"the relay of cluster {cluster.name}")
        self._nursery.start_soon(connections.sweep)
        relay = _Relay(cluster, connections, url.netloc.encode("ascii"), self._new_id())
        self._relays[cluster.id] = relay
        return relay

    def _token(self, relay: _Relay, principal: Principal, *, renew: bool) -> str:
        now = time.time()
        token = relay.tokens.get(principal.agent_id)
        # A clock that was set back does not make a token young.
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


class DirectOutbound(PooledOutbound):
    """The answering side of a request at a relay in direct mode; `head_for` a connection is what is sent."""

    def __init__(
        self,
        connections: Connections,
        inner: RequestHead,
        head_for: Callable[[ClientConnection], RequestHead],
        *,
        session: str,
    ) -> None:
        super().__init__(connections, inner)
        self.session = session
        """As the relay's token names it."""
        self._head_for = head_for

    async def receive_head(self) -> ResponseHead:
        """Return the API server's head; raises OutboundBroken with the relay's own refusal. See Outbound."""
        head = await super().receive_head()
        failure = failure_of(head)
        if failure is not None:
            await self._cut()
            raise OutboundBroken(failure)
        return head

    def _head_on(self, connection: ClientConnection, head: RequestHead) -> RequestHead:
        return self._head_for(connection)
