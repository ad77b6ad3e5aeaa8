"""Finds a client's address before TLS: the TCP peer's, or the one that a load balancer states.

Behind a TCP load balancer, all clients have its address. Limits by address would count them together, and
audit events could not tell them apart. So the peers listed in `listen_proxy_from` begin each connection with
a PROXY header. From any other peer the header is never read, since it could state any address.
"""

from __future__ import annotations

from functools import partial

import attrs
import trio

from proxy.listener.balancers import NO_BALANCERS, Balancers
from proxy.listener.proxy_protocol import ProxyHeaderError, missing, source_of
from proxy.listener.unauthenticated import PendingConnection, TooManyPendingError, UnauthenticatedLimits
from tunnel.net.connect import close_forcefully, peer_address, shut_down
from tunnel.net.loglimit import LogLimit
from tunnel.net.tcp import TCPStream

# A load balancer sends the header at once after connecting, over a short path.
HEADER_S = 2.0


@attrs.define(eq=False)
class Admitter:
    """Admits connections under their clients' addresses, within the limits for unauthenticated ones."""

    limits: UnauthenticatedLimits
    log: LogLimit
    balancers: Balancers = NO_BALANCERS

    async def admit(self, tcp: trio.abc.Stream) -> PendingConnection | None:
        """Admit a connection; None when it was refused, and is closed.

        Reads a load balancer's PROXY header and nothing after it; then `peer_address` returns the client's
        address. If cancelled, the connection is closed.
        """
        pending: PendingConnection | None = None
        admitted = False
        try:
            pending = self._enter(tcp)
            if isinstance(tcp, TCPStream) and address_of(tcp) in self.balancers:
                header = await self._receive_header(tcp)
                if header is None:
                    return None
                source = source_of(header)
                if source is not None:
                    tcp.peer = source.address, source.port
                    # Until the client is known, the connection counts for the load balancer's address.
                    pending.release()
                    pending = self._enter(tcp)
            admitted = True
            return pending
        except (TooManyPendingError, ProxyHeaderError) as error:
            self.log.warning(f"refused a connection: {error}", trio.current_time())
            return None
        finally:
            if not admitted:
                if pending is not None:
                    pending.release()
                await close_forcefully(tcp)  # noqa: ASYNC102 - as trio.aclose_forcefully

    def _enter(self, tcp: trio.abc.Stream) -> PendingConnection:
        return self.limits.enter(address_of(tcp), partial(self._cut, tcp))

    def _cut(self, tcp: trio.abc.Stream, why: str) -> None:
        """End a connection that was evicted for a newer one."""
        self.log.warning(f"evicted a connection for a newer one: {why}", trio.current_time())
        shut_down(tcp)

    async def _receive_header(self, tcp: TCPStream) -> bytes | None:
        """Return a whole PROXY header; None if the peer closes first, as a TCP health check does.

        Raises ProxyHeaderError for anything else.
        """
        peer = peer_address(tcp)
        header = b""
        try:
            with trio.fail_after(HEADER_S):
                while wanted := missing(header):
                    data = await tcp.receive_some(wanted)
                    if not data:
                        return None
                    header += data
        except trio.BrokenResourceError:
            return None
        except trio.TooSlowError:
            raise ProxyHeaderError(
                f"no PROXY header has come from {peer} within {HEADER_S:.0f} s (listen_proxy_from)"
            ) from None
        except ProxyHeaderError as error:
            raise ProxyHeaderError(f"from {peer}, which listen_proxy_from names: {error}") from None
        return header


def address_of(tcp: trio.abc.Stream) -> str:
    """Return the client's address without the port."""
    return peer_address(tcp).rpartition(":")[0].strip("[]")
