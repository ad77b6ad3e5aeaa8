"""The admin listener: separate from the public one, on loopback by default, with separate bearer tokens."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Mapping
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
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.membership.tunnels import Standing
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.relays.registry import Registry
from proxy.hub.relays.shared_limit import SharedRelayLimit
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Cluster
from proxy.hub.store.local_user import LOCAL_TOKEN_NAME
from proxy.hub.store.roles import Role
from proxy.listener.connection_limit import ConnectionLimit, ConnectionLimitError, CountedConnection
from tunnel.net.connect import close_forcefully, peer_address, wrap_server
from tunnel.net.loglimit import LogLimit

HANDSHAKE_S = 10.0
# Enough for operators and a scraper.
CONNECTIONS_MAX = 64
# A token's connections above this are evicted first: no role may block the admin that revokes its token.
CONNECTIONS_PER_TOKEN_MAX = 16

_log = logging.getLogger("hawse.hub.admin")


@attrs.frozen
class LiveRelays:
    """The connected relays, for the admin API (its Operations)."""

    registry: Registry
    clock: Callable[[], float]
    direct: DirectRelays
    clusters: Callable[[], Mapping[str, Cluster]]
    """By id."""
    hub: str = ""
    """The id of this hub among those of its database; "" on SQLite."""
    limit: SharedRelayLimit | None = None
    """Knows the tunnels of all hubs; None on SQLite."""

    def relays(self) -> list[RelayInfo]:
        """Every relay instance that is connected to this hub, by cluster and instance."""
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
                relay.leaving,
                self.hub,
            )
            for relay in self.registry.relays()
            if not relay.session.detached
        )
        return sorted([*tunnels, *self.direct.here()], key=lambda info: (info.cluster, info.instance))

    async def elsewhere(self) -> list[RelayInfo]:
        """The tunnels at the other hubs whose leases hold; raises StoreUnavailableError."""
        if self.limit is None:
            return []
        clusters, now = self.clusters(), self.clock()
        return [
            _info(each, clusters[each.tunnel.contact.cluster_id].name, now)
            for each in await self.limit.elsewhere()
            if each.living and each.tunnel.contact.cluster_id in clusters
        ]

    def instances(self) -> set[tuple[str, str]]:
        """The cluster's name and the instance of each relay that is connected to any hub."""
        clusters = self.clusters()
        here = {(relay.cluster, relay.instance) for relay in self.relays()}
        return here | {
            (clusters[relay.cluster_id].name, relay.instance)
            for relay in self.registry.elsewhere()
            if relay.cluster_id in clusters
        }


def _info(standing: Standing, cluster: str, now: float) -> RelayInfo:
    tunnel, contact = standing.tunnel, standing.tunnel.contact
    return RelayInfo(
        cluster,
        contact.instance,
        contact.version,
        contact.address,
        tunnel.connected_at,
        now,
        None,
        None,
        tunnel.kid,
        leaving=tunnel.leaving,
        hub=standing.hub,
    )


async def ensure_local_token(
    data: DataDir, directory: Directory, pepper: bytes, name: str = LOCAL_TOKEN_NAME
) -> None:
    """Make the token that `hawse admin` reads in the data folder, unless that file holds it already.

    Any other token in the file is replaced, because requests with this token count as this machine's users.
    """
    token = data.admin.token()
    known = None if token is None else directory.current.admin_tokens_by_hash.get(hash_key(token, pepper))
    if known is not None and known.name == name and known.role is Role.ADMIN:
        return
    digest = hash_key(data.admin.make_token(), pepper)
    await directory.change(lambda store: store.put_local_token(digest, name))


def write_endpoint(config: HubConfig, data: DataDir, certificate: Path) -> None:
    """Write the address and the certificate of the admin API for `hawse admin` on this machine."""
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
    connection_limit: ConnectionLimit = attrs.Factory(
        lambda: ConnectionLimit(LogLimit(_log), CONNECTIONS_PER_TOKEN_MAX)
    )

    async def handle_client(self, tcp: trio.abc.Stream) -> None:
        """Serve one connection to its end. A fault in it is logged and affects no other connection."""
        try:
            with self.connection_limit.counted(CONNECTIONS_MAX) as connection:
                await self._serve(tcp, connection)
        except ConnectionLimitError:
            await close_forcefully(tcp)

    def demote_revoked(self, directory: Directory) -> None:
        """Treat the connections of revoked tokens as unauthenticated, so that they are evicted first."""
        self.connection_limit.deauthenticate_all_but(
            {token.id for token in directory.current.admin_tokens_by_hash.values()}
        )

    async def _serve(self, tcp: trio.abc.Stream, connection: CountedConnection) -> None:
        host, _, port = peer_address(tcp).rpartition(":")
        tls = wrap_server(tcp, self.certificate.context)
        try:
            with trio.move_on_after(HANDSHAKE_S) as handshake:
                await tls.do_handshake()
            if not handshake.cancelled_caught:
                client = host.strip("[]"), int(port)
                await serve_connection(self._app_with_connection(connection), tls, client=client)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client disconnected, or its handshake failed
        except Exception:
            _log.exception("an operator's connection failed by a fault of ours")
        finally:
            await close_forcefully(tls)  # noqa: ASYNC102 - as trio.aclose_forcefully

    def _app_with_connection(self, connection: CountedConnection) -> Application:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"][KNOWN] = connection.set_client
            await self.app(scope, receive, send)

        return app


async def note_relays_seen(registry: Registry, directory: Directory, interval_s: float) -> NoReturn:
    """Note regularly when each connected relay was last heard from; never returns."""
    while True:
        await trio.sleep(interval_s)
        monotonic = trio.current_time()
        for relay in registry.relays():
            seen = time.time() - (monotonic - relay.session.last_received_s)
            directory.used.note_relay(relay.cluster_id, relay.instance, seen)
