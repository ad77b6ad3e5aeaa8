"""Actions that show the hub itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Download, Payload, time_text
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.home.keyring import KeyRing
from proxy.hub.membership.member import Member
from proxy.hub.store.directory import Changes
from proxy.hub.store.roles import Role


class Hubs(Protocol):
    """The hubs on this directory, as read with the last renewal of this hub's lease."""

    @property
    def me(self) -> Member:
        """This hub process."""
        ...

    def others(self) -> Sequence[Member]:
        """Return the other processes that have not ended."""
        ...


@attrs.frozen
class HubActions:
    """The hub itself."""

    directory: Changes
    ring: KeyRing
    public_url: str
    hub_ca: Callable[[], str | None]
    """Returns the CA that clients need for the hub's certificate; None when it is a public one."""
    version: str
    backups: Backups
    hubs: Hubs | None = None
    """None on SQLite, where a hub runs alone."""

    @verb("GET", "/v1/hub", "get", "hub", Role.VIEWER, answer=shapes.Hub)
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

    @verb("POST", "/v1/backup", "backup", "hub", Role.ADMIN)
    async def backup(self) -> Download:
        """Download a backup of the store and of all secrets of the hub."""
        pieces = await self.backups.make()
        return Download(pieces, "application/x-tar", "hawse-backup.tar", f"all secrets, {pieces.size} bytes")

    @verb("GET", "/v1/hubs", "list", "hubs", Role.VIEWER)
    def list_all(self) -> Done:
        """List the hub processes on this directory."""
        if self.hubs is None:
            return Done({"hubs": []})
        me = self.hubs.me
        rows = [_row(member, this=member.boot == me.boot) for member in (me, *self.hubs.others())]
        rows.sort(key=lambda row: (str(row["hub"]), str(row["started_at"])))
        return Done({"hubs": rows})


def _row(member: Member, *, this: bool) -> Payload:
    return {
        "hub": member.hub,
        "boot": member.boot,
        "this": this,
        "state": member.state,
        "living": member.living,
        "version": member.software.removeprefix("hawse/"),
        "tunnels": member.tunnels,
        "calls": member.calls,
        "applied": member.applied,
        "address": member.address,
        "unreachable": [*member.unreachable],
        "started_at": time_text(member.started_at),
        "renewed_s_ago": round(member.age_s, 1),
        "ends_in_s": round(member.ends_in_s, 1),
    }
