"""A connection to a relay in direct mode as the upstream's port of an exchange.

The relay's own refusal is marked by a reserved header. It fails the exchange, and never reaches the client.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from proxy.exchange.client import ClientConnection
from proxy.exchange.http_state import DONE
from proxy.exchange.upstream_port import UpstreamPort
from proxy.hub.calls.explain_403 import Held403, may_be_explained
from proxy.hub.relays.direct import DirectRequest
from proxy.hub.store.entities import Cluster
from proxy.message.failure import OutboundBroken
from proxy.message.head import ResponseHead
from proxy.message.rewrite import failure_of


class DirectPort(UpstreamPort):
    """The answering side of one request to a relay (a Port)."""

    __slots__ = ("_cluster", "_held", "_request")

    evicted = False
    """It has no stream of a tunnel that could be evicted."""

    def __init__(
        self,
        request: DirectRequest,
        cluster: Cluster,
        rewrite: Callable[[ResponseHead], ResponseHead],
        *,
        long: bool,
    ) -> None:
        """`rewrite` returns the client's head of the API server's; it raises OutboundBroken if none fits."""
        super().__init__(
            request.connections, request.inner, long=long, rewrite=rewrite, head_on=request.head_on
        )
        self._request = request
        self._cluster = cluster
        self._held: Held403 | None = None

    @property
    def peer(self) -> Hashable:
        """The fairness key of the relay."""
        return self._cluster.id

    @property
    def held_bytes(self) -> int:
        """See UpstreamPort; with the body of a 403 that is read to its end."""
        held = self._held
        return super().held_bytes + (0 if held is None else held.held_bytes)

    async def open(self, *, fresh: bool = False) -> None:
        """Get a connection: a new one if `fresh`. Raises OutboundBroken."""
        await self._request.open(self, fresh=fresh)

    def _answer(self, connection: ClientConnection, head: ResponseHead) -> None:
        failure = failure_of(head)
        if failure is not None:
            raise OutboundBroken(failure)
        if not may_be_explained(head):
            super()._answer(connection, head)
            return
        self._answered = True
        self._head = self._head_on = None
        rewrite, self._rewrite = self._rewrite, None
        assert rewrite is not None, "it is given"
        self._held = Held403(head, self._cluster.name, rewrite)
        if self._pass_on(connection, connection.http.receive_body()):
            self._go_on(connection)

    def _pass_on(self, connection: ClientConnection, piece: bytes | None) -> bool:
        """See UpstreamPort. A short 403 is passed on once its body has arrived."""
        held, http = self._held, connection.http
        if held is None:
            return super()._pass_on(connection, piece)
        while piece is not None:
            held.add(piece)
            if http.incoming is DONE:
                self.connection = self._held = None
                self._connections.release_watched(connection)
                head, body = held.answer()
                self.bytes_passed += len(body)
                self.exchange.answer_head(head, body, True)
                return False
            if not (http.held or http.ended):
                return True
            piece = http.receive_body()
        return True
