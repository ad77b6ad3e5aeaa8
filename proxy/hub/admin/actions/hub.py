"""Actions that show the hub itself."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from proxy.hub.admin.actions.answers import Done
from proxy.hub.admin.actions.verb import verb
from proxy.hub.home.keyring import KeyRing
from proxy.hub.store.directory import Changes
from proxy.hub.store.roles import Role


@attrs.frozen
class HubActions:
    """The hub itself."""

    directory: Changes
    ring: KeyRing
    public_url: str
    hub_ca: Callable[[], str | None]
    """Returns the CA that clients need for the hub's certificate; None when it is a public one."""
    version: str

    @verb("GET", "/v1/hub", "get", "hub", Role.VIEWER)
    def show(self) -> Done:
        """Show the hub's names, its CA and its signing key."""
        return Done(
            {
                "org": self.directory.current.org,
                "public_url": self.public_url,
                "version": self.version,
                "ca_pem": self.hub_ca(),
                "signing_key": self.ring.current.active.kid,
            }
        )
