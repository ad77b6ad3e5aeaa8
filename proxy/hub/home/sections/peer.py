"""The configuration of the links between hubs: its keys, and their rules."""

from __future__ import annotations

import attrs

from proxy.process.config import Address

_TOGETHER = "peer.listen and peer.address are given together, or neither"


@attrs.frozen
class PeerConfig:
    """The links to the other hubs on one database; without `listen` there are none."""

    listen: Address | None = None
    """The listener for links."""
    address: Address | None = None
    """What the other hubs dial."""


def faults_of_peer(peer: PeerConfig, *, in_postgres: bool) -> list[str]:
    """Return the violations of the rules that a type cannot express."""
    stated = {"listen": peer.listen is not None, "address": peer.address is not None}
    if not in_postgres:
        return [f"peer.{name}: goes with database.url only" for name, given in stated.items() if given]
    if peer.listen is None or peer.address is None:
        return [f"peer: {_TOGETHER}"] if any(stated.values()) else []
    faults = []
    if peer.address.port == 0:
        faults.append("peer.address: names no port")
    if peer.address.host in ("0.0.0.0", "::"):  # noqa: S104 - the other hubs must not be sent there
        faults.append("peer.address: no hub can dial every address: name the one of this machine")
    return faults


def misleading_address(peer: PeerConfig) -> str | None:
    """Return the warning for an address that the hubs of other machines cannot dial."""
    if peer.listen is None or peer.address is None or peer.listen.is_loopback or not peer.address.is_loopback:
        return None
    return (
        f"peer.listen is {peer.listen}, for other machines, but peer.address is {peer.address}, which only "
        "hubs of this machine can dial: set peer.address"
    )
