"""The console's listener: TLS with the hub's certificate, or plain HTTP for a browser on this machine.

Connections count as unauthenticated, within the limits of the public listener, until a request of theirs has
a session or an admin token. From then on they count for that person.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Hashable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import attrs
import trio

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.server import ServerConnection
from proxy.hub.admin.asgi import Application, Receive, Scope, Send, refuse, serve_request
from proxy.hub.admin.operators import KNOWN
from proxy.hub.console.gate import KNOWN_PERSON
from proxy.hub.console.people import Person
from proxy.hub.home.certificate import Certificate
from proxy.listener.client_address import Admitter
from proxy.listener.unauthenticated import PENDING_S, MeteredStream, PendingConnection
from proxy.message.failure import InboundBroken
from proxy.message.head import Headers
from proxy.message.strict import BadRequest
from tunnel.net.connect import close_forcefully, peer_address, wrap_server

HANDSHAKE_S = 10.0
# A browser has six for each window, and opens them for the streams of pages too.
CONNECTIONS_PER_PERSON_MAX = 32

_log = logging.getLogger("hawse.hub.console")


@attrs.define(eq=False)
class AuthenticatedConnections:
    """The connections of people and of admin tokens."""

    _held: dict[Hashable, dict[trio.CancelScope, str]] = attrs.Factory(dict)
    """By person, the oldest first, each with the id of its session or token."""

    @property
    def count(self) -> int:
        """The number of connections, for the metrics."""
        return sum(len(scopes) for scopes in self._held.values())

    @contextmanager
    def counted(self) -> Iterator[_Counted]:
        """Run a connection in the block, which is cancelled if its session ends or it is one too many."""
        counted = _Counted(self._held)
        try:
            with counted.scope:
                yield counted
        finally:
            counted.leave()

    def end_all_but(self, valid: Container[str]) -> None:
        """End the connections whose session or token is not among these ids."""
        ended = [
            scope
            for scopes in self._held.values()
            for scope, credential in scopes.items()
            if credential not in valid
        ]
        for scope in ended:
            scope.cancel()


@attrs.define(eq=False)
class _Counted:
    """One connection, of a person once it is authenticated."""

    _held: dict[Hashable, dict[trio.CancelScope, str]]
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _person: Hashable = None

    def enter(self, person: Hashable, credential: str) -> None:
        """Count it for a person; the person's oldest connection ends for one too many."""
        if person != self._person:
            self.leave()
            self._person = person
        scopes = self._held.setdefault(person, {})
        scopes[self.scope] = credential
        if len(scopes) > CONNECTIONS_PER_PERSON_MAX:
            oldest = next(iter(scopes))
            # Removed at once, so that the next one ends another.
            del scopes[oldest]
            oldest.cancel()

    def leave(self) -> None:
        """Count it no more."""
        scopes = self._held.get(self._person, {})
        scopes.pop(self.scope, None)
        if not scopes:
            self._held.pop(self._person, None)


@attrs.define(eq=False)
class ConsoleFront:
    """Serves the connections of the console's listener."""

    app: Application
    """The gate."""
    headers: Headers
    """Of answers that no application makes; these may not be kept either."""
    certificate: Certificate | None
    """None for plain HTTP."""
    admitter: Admitter
    connections: AuthenticatedConnections = attrs.Factory(AuthenticatedConnections)
    _deadlines: Deadlines = attrs.Factory(Deadlines)

    async def run(self) -> NoReturn:
        """Close connections that have idled too long; never returns."""
        await self._deadlines.run()

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end. A fault in it is logged and affects no other connection."""
        pending = await self.admitter.admit(tcp)
        if pending is None:
            return
        stream: trio.abc.Stream = tcp
        try:
            with self.connections.counted() as counted:
                if self.certificate is not None:
                    stream = tls = wrap_server(tcp, self.certificate.context)
                    with trio.move_on_after(HANDSHAKE_S) as handshake:
                        await tls.do_handshake(pending.hello_received)
                    if handshake.cancelled_caught:
                        return
                    stream = MeteredStream(tls, pending)
                else:
                    pending.hello_received()
                await self._serve(stream, pending, counted, tcp)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client disconnected, or its handshake failed
        except Exception:
            _log.exception("a connection of the console failed by a fault of ours")
        finally:
            pending.release()
            await close_forcefully(stream)  # noqa: ASYNC102 - as trio.aclose_forcefully

    async def _serve(
        self, stream: trio.abc.Stream, pending: PendingConnection, counted: _Counted, tcp: trio.abc.Stream
    ) -> None:
        host, _, port = peer_address(tcp).rpartition(":")
        client = host.strip("[]"), int(port)
        scheme = "http" if self.certificate is None else "https"
        headers = (*self.headers, (b"cache-control", b"no-store"))
        with ServerConnection(stream, self._deadlines) as connection:
            try:
                while True:
                    try:
                        request = await connection.next_request()
                    except BadRequest as error:
                        await refuse(connection, error.status, error.message, headers)
                        continue
                    if request is None:
                        return
                    with trio.CancelScope() as scope:
                        if pending.counted:
                            scope.deadline = trio.current_time() + PENDING_S
                            pending.request_scope = scope
                        app = self._app(pending, counted, scope)
                        await serve_request(
                            app, connection, request, scheme=scheme, client=client, headers=headers
                        )
                    if scope.cancelled_caught:
                        return
                    pending.release_bytes()
            except InboundBroken:
                return
            finally:
                await connection.aclose()

    def _app(self, pending: PendingConnection, counted: _Counted, scope: trio.CancelScope) -> Application:
        """Return the gate with what a request's authentication changes at its connection."""

        def known(person: Hashable, credential: str) -> None:
            pending.release()
            scope.deadline = math.inf
            counted.enter(person, credential)

        def known_person(person: Person) -> None:
            known((person.token_id, person.name), person.session)

        def known_token(token_id: str | None) -> None:
            if token_id is not None:
                known(token_id, token_id)

        async def app(asked: Scope, receive: Receive, send: Send) -> None:
            asked["state"].update({KNOWN_PERSON: known_person, KNOWN: known_token})
            await self.app(asked, receive, send)

        return app
