"""A relay on a machine of its own: a network namespace with a cable to the hub, and one to the API server.

with open_site() as site:
    ...                     # what is started by site.prefix runs there, and knows the hub as site.hub
    site.unplug()           # the link to the hub is down: no RST, no FIN, no route
    site.plug(address=1)    # and up again, with another address at the relay's side

What it needs is root and iproute2. The addresses are of RFC 2544's block for tests, the names this process's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import attrs

# More processes than test at once on a machine.
_SITES: Final = 250


@attrs.frozen
class Cable:
    """A link of two ends, and its network: the host is 1, and the relay's side 2 or 3."""

    outside: str
    inside: str
    network: str

    def address(self, number: int) -> str:
        return self.network.replace(".0/24", f".{number}")


@attrs.frozen
class Site:
    """The namespace and its cables."""

    name: str
    to_hub: Cable
    to_api: Cable

    @property
    def hub(self) -> str:
        """The hub's address, as the relay sees it."""
        return self.to_hub.address(1)

    @property
    def api(self) -> str:
        """The API server's."""
        return self.to_api.address(1)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command line begins with that is to run there."""
        return ("ip", "netns", "exec", self.name)

    def unplug(self) -> None:
        """Take the link down at the host's end: nobody is told, and nothing passes."""
        ip("link", "set", self.to_hub.outside, "down")

    def plug(self, address: int = 0) -> None:
        """Take it up again; the relay's side has the one address or the other, and no other."""
        cable = self.to_hub
        ip("-n", self.name, "address", "flush", "dev", cable.inside)
        ip("-n", self.name, "address", "add", f"{cable.address(2 + address)}/24", "dev", cable.inside)
        ip("link", "set", cable.outside, "up")


def ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(args)}: {done.stderr.strip()}"


@contextmanager
def open_site() -> Iterator[Site]:
    """Make the namespace and its cables for the block; raises AssertionError without the right to."""
    number = os.getpid()
    site = Site(
        f"hawse-{number}",
        Cable(f"hub-a{number}", f"hub-b{number}", f"198.18.{number % _SITES}.0/24"),
        Cable(f"api-a{number}", f"api-b{number}", f"198.19.{number % _SITES}.0/24"),
    )
    ip("netns", "add", site.name)
    try:
        for cable in (site.to_hub, site.to_api):
            ip("link", "add", cable.outside, "type", "veth", "peer", cable.inside, "netns", site.name)
            ip("-n", site.name, "link", "set", cable.inside, "up")
            ip("address", "add", f"{cable.address(1)}/24", "dev", cable.outside)
        ip("-n", site.name, "address", "add", f"{site.to_api.address(2)}/24", "dev", site.to_api.inside)
        ip("link", "set", site.to_api.outside, "up")
        site.plug()
        yield site
    finally:
        # A cable goes when one end goes, and this end at once.
        for cable in (site.to_hub, site.to_api):
            with suppress(AssertionError):
                ip("link", "del", cable.outside)
        ip("netns", "del", site.name)
