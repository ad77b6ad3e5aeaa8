from __future__ import annotations

import pytest

from proxy.listener.balancers import NETWORKS_MAX, NO_BALANCERS, Balancers


def test_addresses_and_networks_of_both_kinds_are_named() -> None:
    balancers = Balancers.of(["192.0.2.7", "10.1.0.0/16", "2001:db8::/32"])
    for address in ("192.0.2.7", "10.1.255.255", "2001:db8::5"):
        assert address in balancers
    for address in ("192.0.2.8", "10.2.0.1", "2001:db9::5", "", "StapledStream"):
        assert address not in balancers
    assert "192.0.2.7" not in NO_BALANCERS


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        (["10.0.0.0/8", "lb.example"], "number 2 is neither an address nor a network"),
        (["10.0.0.1/8"], "number 1 is neither an address nor a network"),
        (["0.0.0.0/0"], "number 1 is every address"),
        (["::/0"], "number 1 is every address"),
        (["::ffff:192.0.2.7"], "number 1 is IPv4 in the form of IPv6"),
        (["2001:db8::/32", "::ffff:10.0.0.0/104"], "number 2 is IPv4 in the form of IPv6"),
        (["192.0.2.7"] * (NETWORKS_MAX + 1), f"{NETWORKS_MAX + 1} addresses and networks, the limit"),
    ],
)
def test_what_names_no_load_balancer_is_refused(stated: list[str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Balancers.of(stated)
