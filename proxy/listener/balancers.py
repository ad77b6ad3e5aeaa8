"""The load balancers in front of a listener, from its configuration (`listen_proxy_from`)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, Self

import attrs

# A dual-stack socket shows an IPv4 peer by such an address; it is compared in its IPv4 form.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
# A longer list names clients instead. Each connection is compared with all networks.
NETWORKS_MAX = 256


@attrs.frozen
class Balancers:
    """The peers whose connections begin with a PROXY header."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    @classmethod
    def of(cls, stated: Iterable[str]) -> Self:
        """Parse addresses and networks (CIDR); raises ValueError, whose message repeats none of them."""
        networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for number, text in enumerate(stated, 1):
            try:
                network = ipaddress.ip_network(text)
            except ValueError:
                raise ValueError(
                    f"number {number} is neither an address nor a network, as in 192.0.2.7 or 10.0.0.0/8"
                ) from None
            if network.prefixlen == 0:
                raise ValueError(f"number {number} is every address: any client could claim another address")
            if isinstance(network, ipaddress.IPv6Network) and network.overlaps(_MAPPED):
                raise ValueError(f"number {number} is IPv4 in the form of IPv6: write it as IPv4")
            networks.append(network)
        if len(networks) > NETWORKS_MAX:
            raise ValueError(f"there are {len(networks)} addresses and networks, the limit is {NETWORKS_MAX}")
        return cls(tuple(networks))

    def __contains__(self, address: str) -> bool:
        if not self.networks:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            # The peer has reset the connection, so the socket has no address any more.
            return False
        return any(parsed in network for network in self.networks)


NO_BALANCERS: Final = Balancers()
