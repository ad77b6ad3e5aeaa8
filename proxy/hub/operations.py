"""What the admin API asks the running hub for: the relays that are connected right now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs


@attrs.frozen
class RelayInfo:
    """A relay instance with a live session. Times are epoch seconds."""

    cluster: str
    instance: str
    version: str
    address: str
    connected_at: float
    last_seen: float
    rtt_ms: float | None
    streams: int


class Operations(Protocol):
    """The live side of the hub, as far as administration needs it; nothing here waits."""

    def relays(self) -> Sequence[RelayInfo]:
        """Every connected relay instance."""
        ...
