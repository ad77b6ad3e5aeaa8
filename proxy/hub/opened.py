"""The opened resources of a hub."""

from __future__ import annotations

import attrs
import trio

from proxy.hub.home.config import HubConfig
from proxy.hub.identity.replay_store import ReplayStore
from proxy.hub.relays.registry import Registry
from proxy.hub.relays.shared_limit import SharedRelayLimit
from proxy.hub.resources import Home, Records
from proxy.hub.store.local_user import local_token_name


@attrs.frozen
class OpenedHub:
    """Everything that the parts of the hub are built from."""

    config: HubConfig
    home: Home
    records: Records
    seen: ReplayStore
    shared_limit: SharedRelayLimit | None
    registry: Registry
    upkeep: trio.Nursery
    """Runs the parts' background tasks until the hub has stopped."""

    @property
    def local_token(self) -> str:
        """The name of this machine's admin token."""
        return local_token_name(self.hub_id)

    @property
    def hub_id(self) -> str | None:
        """The id of this hub among those on its database; None on SQLite."""
        members = self.records.members
        return None if members is None else members.me.hub
