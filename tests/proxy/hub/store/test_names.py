from __future__ import annotations

import ipaddress

import pytest

from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.names import check_relay_url, is_public


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "fd00::1", "::"),
        *("::ffff:10.0.0.1", "::10.0.0.1", "2002:7f00:1::1", "2002:a9fe:a9fe::"),
        # NAT64: 127.0.0.1, 10.0.0.1 and the clouds' metadata service.
        *("64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe"),
        # A translator of one's own, where nobody knows what is meant.
        *("64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff:ffff::"),
        # Site-local, which RFC 3879 has given up and routers may still know.
        *("fec0::1", "feff:ffff::1"),
        # What Oracle's and Azure's clouds tell their machines, credentials among it.
        *("192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::c000:c0"),
    ],
)
def test_addresses_of_ones_own_network_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "168.63.129.17", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
)
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["[64:ff9b::7f00:1]", "[64:ff9b:1::1]", "[::ffff:10.0.0.1]"])
def test_a_private_relay_in_other_clothes_must_be_meant(host: str) -> None:
    with pytest.raises(InvalidError, match="private address"):
        check_relay_url(f"https://{host}", private=False)
    check_relay_url(f"https://{host}", private=True)


def test_no_relay_is_where_clouds_keep_credentials_however_it_is_written() -> None:
    for host in (
        *("169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]"),
        *("192.0.0.192", "168.63.129.16", "[::ffff:168.63.129.16]"),
    ):
        with pytest.raises(InvalidError, match="an address that the hub never connects to"):
            check_relay_url(f"https://{host}", private=True)
