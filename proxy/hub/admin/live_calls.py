"""What an operator sees of the calls that are under way, and what he ends of them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from audit.record import proto_of
from proxy.exchange.forward import CloseReason
from proxy.hub.calls.live import Ending, LiveCall, LiveCalls
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.relays.operations import SessionInfo
from tunnel.net.fairness import in_slices

# What was ended is held no longer than others are: to let 10,000 go at once takes 70 ms.
KILLED_AT_ONCE = 256


@attrs.frozen
class LiveSessions:
    """The calls under way, as the admin API wants them (its Sessions)."""

    live: LiveCalls
    instances: HubInstances
    boot: str

    async def sessions(self, *, agent: str | None = None, cluster: str | None = None) -> list[SessionInfo]:
        """Those of an agent, on a cluster, or all; the oldest first."""
        return await in_slices(_info, self._chosen(None, agent, cluster))

    async def hubs_beside(self) -> int:
        """How many hubs that were replaced still finish calls of their own, which are not among these."""
        running = await trio.to_thread.run_sync(self.instances.running)
        return len(running - {self.boot})

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        """End what fits all that is given, and return what was ended. Waits for nobody at the other ends."""
        ending = Ending(CloseReason.KILLED, reason)
        chosen = self._chosen(session_id, agent, cluster)
        chosen.reverse()
        killed: list[SessionInfo] = []
        while chosen:
            some = [(chosen.pop(), ending) for _ in range(min(len(chosen), KILLED_AT_ONCE))]
            # What has ended by itself meanwhile is not among them.
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
        bytes_in=live.tally.bytes_in,
        bytes_out=live.tally.bytes_out,
    )


def _kind(live: LiveCall) -> str:
    """What it is to its user: `watch`, `log`, `exec/websocket`, `portforward/spdy/3.1`, `request`."""
    info, upgrade = live.call.info, live.call.head.upgrade
    if upgrade is None and not info.long_running:
        return "request"
    what = info.subresource or info.verb
    return what if upgrade is None else f"{what}/{proto_of(upgrade)}"
