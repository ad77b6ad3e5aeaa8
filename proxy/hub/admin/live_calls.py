"""The operators' view of the live calls, and the ending of calls."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from audit.record import proto_of
from proxy.hub.calls.live import Ending, LiveCall, LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.relays.operations import SessionInfo
from tunnel.net.fairness import in_chunks

# Calls are ended in batches: to end 10,000 at once would block the loop for 70 ms.
KILLED_AT_ONCE = 256


@attrs.frozen
class LiveSessions:
    """The live calls, for the admin API (its Sessions)."""

    live: LiveCalls
    instances: HubInstances
    boot: str

    async def sessions(self, *, agent: str | None = None, cluster: str | None = None) -> list[SessionInfo]:
        """Return the calls of an agent, on a cluster, or all; the oldest first."""
        return await in_chunks(_info, self._chosen(None, agent, cluster))

    async def hubs_beside(self) -> int:
        """Return how many replaced hubs still drain; their calls are not listed here."""
        running = await trio.to_thread.run_sync(self.instances.running)
        return len(running - {self.boot})

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        """End the calls that match all given conditions, and return them. Does not wait for any peer."""
        ending = Ending(CloseReason.KILLED, reason)
        chosen = self._chosen(session_id, agent, cluster)
        chosen.reverse()
        killed: list[SessionInfo] = []
        while chosen:
            some = [(chosen.pop(), ending) for _ in range(min(len(chosen), KILLED_AT_ONCE))]
            # Calls that have ended by themselves meanwhile are not included.
            killed += map(_info, await self.live.end(some))
        return killed

    def _chosen(self, session_id: str | None, agent: str | None, cluster: str | None) -> list[LiveCall]:
        return [
            live
            for live in self.live
            if session_id in (None, live.eid)
            and agent in (None, live.call.agent.name)
            and cluster in (None, live.call.cluster.name)
        ]


def _info(live: LiveCall) -> SessionInfo:
    call, info = live.call, live.call.info
    live.show()
    return SessionInfo(
        id=live.eid,
        agent=call.agent.name,
        cluster=call.cluster.name,
        kind=_kind(live),
        verb=info.verb,
        resource=f"{info.resource}/{info.subresource}" if info.subresource else info.resource,
        namespace=info.namespace,
        name=info.name,
        client=call.client_ip,
        relay=live.relay.instance if live.relay is not None else "",
        started_at=live.began_at,
        status=live.tally.status,
        bytes_in=live.counted.bytes_in,
        bytes_out=live.counted.bytes_out,
    )


def _kind(live: LiveCall) -> str:
    """Return the kind of a call: `watch`, `log`, `exec/websocket`, `portforward/spdy/3.1`, `request`."""
    info, upgrade = live.call.info, live.call.head.upgrade
    if upgrade is None and not info.long_running:
        return "request"
    what = info.subresource or info.verb
    return what if upgrade is None else f"{what}/{proto_of(upgrade)}"
