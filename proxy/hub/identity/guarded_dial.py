"""Connecting to a host that somebody else has named, and whose name leads where a third party says.

A name is resolved once for each connection and connected to as it was resolved, so that what was looked at is
what is dialled. No proxy is asked: the hub uses none.
"""

from __future__ import annotations

import ipaddress
import ssl

import trio

from proxy.hub.store.names import is_never_allowed, is_public
from tunnel.net.connect import NO_NAME, open_first, wrap_client

# Where a URL names no port.
HTTPS_PORT = 443


class AddressRefusedError(OSError):
    """A name leads to an address that the hub must not connect to."""


async def dial_checked(host: str, port: int, context: ssl.SSLContext, *, private: bool) -> trio.abc.Stream:
    """Connect to a host by TLS, unless its addresses must not be reached; `private` allows private ones.

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
            refusal = f"{host} leads to {address}, where nobody that the hub asks can be"
        elif not private and not is_public(there):
            # Of a cluster or of an issuer: both are added by a command with that option.
            meant = "if that is meant, add it anew with --allow-private-address"
            refusal = f"{host} leads to {address}, which is no public address ({meant})"
        else:
            allowed.append(str(address))
    if not allowed:
        raise AddressRefusedError(refusal)
    return await wrap_client(await open_first(allowed, port), context, server_hostname=host)
