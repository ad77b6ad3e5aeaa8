"""Which addresses the hub dials in direct mode; the way of a request there is the system tests' business."""

from __future__ import annotations

import ssl

import pytest
import trio

from proxy.hub.direct import AddressRefusedError, dial_checked


class Resolver(trio.abc.HostnameResolver):
    """Every name leads to one address, as an attacker's name server would have it."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def getaddrinfo(
        self, host: object, port: object, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[object, ...]]:
        return [(trio.socket.AF_INET6, trio.socket.SOCK_STREAM, 6, "", (self.address, 443, 0, 0))]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize("address", ["::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"])
async def test_a_name_that_leads_into_a_private_network_is_not_dialled(address: str) -> None:
    # For this run of trio alone.
    trio.socket.set_custom_hostname_resolver(Resolver(address))
    with pytest.raises(AddressRefusedError, match="no public address"):
        await dial_checked("relay.example", 443, ssl.create_default_context(), private=False)
