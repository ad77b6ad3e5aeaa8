"""When a hub counts as dead. Pure: the times are arguments.

A hub ends all of its calls when its lease was not renewed for its `stale_streams_s`, by its own clock. The
others take it for dead DEAD_MARGIN_S later, by their own clocks: after they have seen the same renewal for
that long. No clock of another machine decides, so a clock that is set kills no hub.

Only what was seen on one connection counts, without a pause. So no hub is dead within that time of a start
of the server or a promotion, and none because the server or this process had stopped.
"""

from __future__ import annotations

import attrs

from proxy.hub.membership.member import DEAD_MARGIN_S, ENDED
from proxy.hub.membership.table import Reading, Row

# Some renewals. After a longer pause, the other hubs may not have renewed yet.
PAUSE_MAX_S = 10.0


@attrs.define(eq=False)
class DeathWatch:
    """What one hub has seen of the others' leases."""

    _connection: int = 0
    _last_s: float = 0.0
    _seen: dict[str, tuple[str, float]] = attrs.Factory(dict)
    """By boot: its last renewal, and when that was seen first."""

    def overdue(self, reading: Reading) -> list[Row]:
        """Return the hubs that have to be marked as dead after this reading."""
        now_s = reading.sent_s
        if reading.connection != self._connection or now_s - self._last_s > PAUSE_MAX_S:
            self._seen = {}
        self._connection, self._last_s = reading.connection, now_s
        before, self._seen = self._seen, {}
        found = []
        for row in reading.rows:
            member = row.member
            if member.state in ENDED:
                continue
            renewal, since_s = before.get(member.boot, ("", now_s))
            if renewal != row.renewed_at:
                since_s = now_s
            self._seen[member.boot] = row.renewed_at, since_s
            if now_s - since_s >= member.stale_streams_s + DEAD_MARGIN_S:
                found.append(row)
        return found
