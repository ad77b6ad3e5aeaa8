"""The admin listener: apart from the public front, on loopback by default, with bearer tokens of its own."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import attrs
import trio
from starlette.applications import Starlette

from auth.apikey import hash as hash_key
from proxy.hub.admin.asgi import Application, Receive, Scope, Send, serve_connection
from proxy.hub.admin.operators import KNOWN
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.local_admin import AdminEndpoint
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import Directory
from proxy.hub.store.local_user import LOCAL_TOKEN_NAME
from proxy.hub.store.roles import Role
from proxy.listener.connection_limit import Guest, NoRoomError, Room
from tunnel.net.connect import peer_address, wrap_server
from tunnel.net.loglimit import LogLimit

HANDSHAKE_S = 10.0
# Operators and a scraper; more is somebody who should not be here.
CONNECTIONS_MAX = 64
# More of one token make room for others: no role may keep an admin from removing its token.
CONNECTIONS_PER_TOKEN_MAX = 16

_log = logging.getLogger("hawse.hub.admin")


@attrs.frozen
class LiveRelays:
    """The live side of the hub, as the admin API wants it (its Operations)."""

    registry: Registry
    clock: Callable[[], float]
    direct: DirectRelays

    def relays(self) -> list[RelayInfo]:
        """Every connected relay instance, by cluster and instance."""
        now, monotonic = self.clock(), trio.current_time()
        tunnels = (
            RelayInfo(
                relay.cluster_name,
                relay.instance,
                relay.version,
                relay.address,
                relay.connected_at,
                now - (monotonic - relay.session.last_received_s),
                None if relay.session.rtt_s is None else relay.session.rtt_s * 1000,
                relay.session.stream_count,
                relay.kid,
                relay.statement,
            )
            for relay in self.registry.relays()
            if not relay.session.detached
        )
        return sorted([*tunnels, *self.direct.here()], key=lambda info: (info.cluster, info.instance))


async def ensure_local_token(data: DataDir, directory: Directory, pepper: bytes) -> None:
    """Make the token that `hawse admin` finds in the data folder, unless it is the one called `local`.

    Another token in that file is replaced: requests with the token `local` are from this machine's users.
    """
    token = data.admin.token()
    known = None if token is None else directory.current.admin_tokens_by_hash.get(hash_key(token, pepper))
    if known is not None and known.name == LOCAL_TOKEN_NAME and known.role is Role.ADMIN:
        return
    digest = hash_key(data.admin.make_token(), pepper)
    await directory.change(lambda store: store.put_local_token(digest))


def write_endpoint(config: HubConfig, data: DataDir, certificate: Path) -> None:
    """Tell `hawse admin` on this machine where to connect, and which certificate to expect."""
    pem = ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(_first_certificate(certificate)))
    data.admin.write_endpoint(AdminEndpoint(f"https://{config.admin.listen}", pem))


def _first_certificate(file: Path) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    before_end, _, _ = file.read_text().partition(end)
    return before_end[before_end.find(begin) :] + end + "\n"


@attrs.define(eq=False)
class AdminFront:
    """Serves the admin API's connections."""

    app: Starlette
    certificate: Certificate
    room: Room = attrs.Factory(lambda: Room(LogLimit(_log), CONNECTIONS_PER_TOKEN_MAX))

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end; a fault in it is logged and reaches no other."""
        try:
            with self.room.entered(CONNECTIONS_MAX) as guest:
                await self._serve(tcp, guest)
        except NoRoomError:
            await trio.aclose_forcefully(tcp)

    def doubt_revoked(self, directory: Directory) -> None:
        """Have whoever showed a token that is no more make room as any stranger."""
        self.room.doubt_all_but({token.id for token in directory.current.admin_tokens_by_hash.values()})

    async def _serve(self, tcp: trio.abc.Stream, guest: Guest) -> None:
        host, _, port = peer_address(tcp).rpartition(":")
        tls = wrap_server(tcp, self.certificate.context)
        try:
            with trio.move_on_after(HANDSHAKE_S) as handshake:
                await tls.do_handshake()
            if not handshake.cancelled_caught:
                client = host.strip("[]"), int(port)
                await serve_connection(self._app_that_tells(guest), tls, client=client)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left, or its handshake failed
        except Exception:
            _log.exception("an operator's connection failed by a fault of ours")
        finally:
            await trio.aclose_forcefully(tls)

    def _app_that_tells(self, guest: Guest) -> Application:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"][KNOWN] = guest.known
            await self.app(scope, receive, send)

        return app


async def note_relays_seen(registry: Registry, directory: Directory, interval_s: float) -> NoReturn:
    """Remember from time to time when each connected relay was last heard; never returns."""
    while True:
        await trio.sleep(interval_s)
        monotonic = trio.current_time()
        for relay in registry.relays():
            seen = time.time() - (monotonic - relay.session.last_received_s)
            directory.note_relay_seen(relay.cluster_id, relay.instance, seen)
