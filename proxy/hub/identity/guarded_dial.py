"""Dials hosts from configured URLs, and refuses addresses that such a URL must not reach.

Each connection resolves the name once and dials the resolved address. So the address that was checked is the
address that is dialled. No proxy is used.
"""

from __future__ import annotations

import ipaddress
import ssl

import trio

from proxy.hub.store.names import is_never_allowed, is_public
from tunnel.net.connect import NO_NAME, open_first, wrap_client

# The default when a URL has no port.
HTTPS_PORT = 443
# Both commands that add an issuer or a relay's URL (`federation` and `cluster add`) have this option.
_ADD_AGAIN = "add it again with --allow-private-address"


class AddressRefusedError(OSError):
    """A name resolves to an address that the hub must not connect to."""


async def dial_checked(
    host: str, port: int, context: ssl.SSLContext, *, private: bool, allow_by: str = _ADD_AGAIN
) -> trio.abc.Stream:
    """Connect to a host by TLS, unless an address check refuses it; `private` allows private addresses.

    `allow_by` says how an operator allows them.
    Raises OSError (AddressRefusedError) or trio.BrokenResourceError. When cancelled, nothing is left open.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(NO_NAME) from error
    allowed: list[str] = []
    refusal = f"{host} has no address"
    for *_, (address, *_) in found:
        there = ipaddress.ip_address(address)
        if is_never_allowed(there):
            refusal = f"{host} leads to {address}, an address that the hub never connects to"
        elif not private and not is_public(there):
            meant = f"if that is intended, {allow_by}"
            refusal = f"{host} resolves to {address}, which is not a public address ({meant})"
        else:
            allowed.append(str(address))
    if not allowed:
        raise AddressRefusedError(refusal)
    return await wrap_client(await open_first(allowed, port), context, server_hostname=host)
