"""One dial of another hub, from its address to the WebSocket."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs

from audit.ids import new_eid
from proxy.hub.membership.member import Member
from proxy.hub.peers.hello import hub_party, issue_hub_hello
from proxy.hub.peers.identity import LinkIdentity, server_name, trust_in
from proxy.process.config import Address
from tunnel import Transport
from tunnel.dialing.failure import DialFailed
from tunnel.net.connect import HandshakeFailed, open_tcp, os_reason, wrap_client
from tunnel.websocket.upgrade import SESSION_HEADER, WebSocketRefused, dial_websocket

PEER_PATH: Final = "/v1/peer"


@attrs.frozen
class PeerDialer:
    """Dials other hubs as this one."""

    hub: str
    boot: str
    identity: LinkIdentity
    clock: Callable[[], float] = time.time

    @asynccontextmanager
    async def connect(self, member: Member, session: str) -> AsyncIterator[Transport]:
        """Connect to a hub, with the id of the session that is to go on there, or ""; raises DialFailed.

        The caller sets the deadline.
        """
        try:
            address = Address.parse(member.address)
            context = trust_in(member.certificate)
        except ValueError as error:
            raise DialFailed(f"its row cannot be used: {error}") from error
        headers = [(b"authorization", b"Bearer " + self._hello_to(member).encode("ascii"))]
        if session:
            headers.append((SESSION_HEADER, session.encode("ascii")))
        try:
            tcp = await open_tcp(address.host, address.port)
        except OSError as error:
            raise DialFailed(f"cannot connect to {address}: {os_reason(error)}") from error
        try:
            tls = await wrap_client(tcp, context, server_hostname=server_name(member.boot))
        except HandshakeFailed as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise DialFailed(
                    f"at {address} answers another process than the one in its row", forgotten=True
                ) from error
            raise DialFailed(f"no TLS with {address}: {error}") from error
        try:
            async with dial_websocket(tls, host=str(address), target=PEER_PATH, headers=headers) as transport:
                yield transport
        except WebSocketRefused as error:
            raise DialFailed(f"{address} refuses the link: {_reason_in(error)}") from error

    def _hello_to(self, member: Member) -> str:
        return issue_hub_hello(
            self.identity.key,
            sender=hub_party(self.hub, self.boot),
            reader=hub_party(member.hub, member.boot),
            jti=new_eid(),
            now=self.clock(),
        )


def _reason_in(refused: WebSocketRefused) -> str:
    """The refusal, with what the other hub says of it (RFC 7234 5.5) as far as a log may show it."""
    for name, value in refused.headers:
        if name.lower() == b"warning":
            return f"{refused} ({value[:200].decode('ascii', 'replace')})"
    return str(refused)
