"""Allocates the addresses and node ports of services.

A dry run allocates nothing. It gets the dummies of the real server: the address of the whole range, which no
service can have, and ports above the range.
"""

from __future__ import annotations

from collections.abc import Iterator

from sandbox.kinds import SERVICES
from sandbox.objects import Object, child, integer, items, text
from sandbox.storage import Store

_DUMMY_ADDRESS = "10.96.0.0"
_PORTS = range(30000, 32768)
_DUMMY_PORTS = range(_PORTS.stop + 1, 65536)


def allocate(store: Store, service: Object, *, dry_run: bool) -> None:
    """Assign a service its address, and its node ports if it has any, in place."""
    if text(service, "spec", "type") == "ExternalName":
        return
    spec = child(service, "spec")
    others = [item.value for item in store.collection(SERVICES.group, SERVICES.resource).items()]
    if not text(spec, "clusterIP"):
        spec["clusterIP"] = _DUMMY_ADDRESS if dry_run else _free_address(others)
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        ports = iter(_DUMMY_PORTS) if dry_run else _free_ports(others)
        for port in items(spec, "ports"):
            if not port.get("nodePort"):
                port["nodePort"] = next(ports)


def _free_address(others: list[Object]) -> str:
    taken = {text(other, "spec", "clusterIP") for other in others}
    addresses = (f"10.96.{high}.{low}" for high in range(256) for low in range(1, 255))
    return next(address for address in addresses if address not in taken)


def _free_ports(others: list[Object]) -> Iterator[int]:
    used = {integer(port, "nodePort") for other in others for port in items(other, "spec", "ports")}
    return (number for number in _PORTS if number not in used)
