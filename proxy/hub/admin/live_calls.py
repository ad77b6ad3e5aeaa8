"""The operators' view of this hub's live calls, and the ending of calls.

Other hubs ask for the same over their links (proxy.hub.admin.other_hubs). An answer on a link is bounded, so
it has as many calls as fit, and says whether there are more.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec
import trio

from audit.mask import without_secrets
from audit.record import proto_of
from proxy.hub.calls.live import Ending, LiveCall, LiveCalls
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.relays.operations import SessionInfo
from tunnel.net.fairness import Chunks, in_chunks

# Calls are ended in batches: to end 10,000 at once would block the loop for 70 ms.
KILLED_AT_ONCE = 256
# A quarter of what a link carries in one answer, whose JSON may escape more. One call has 400 bytes as a
# rule, and 130 KB where its path has 64 KiB of control characters.
PAGE_BYTES_MAX = 256 * 1024


@attrs.frozen
class CallsPage:
    """Some calls, and whether more of them match."""

    calls: Sequence[SessionInfo]
    more: bool


@attrs.frozen
class LiveSessions:
    """The live calls of this hub, for the admin API (its Sessions)."""

    live: LiveCalls
    instances: HubInstances
    boot: str
    hub: str = ""
    """The id of this hub; empty on SQLite."""

    async def sessions(self, *, agent: str | None = None, cluster: str | None = None) -> list[SessionInfo]:
        """Return the calls of an agent, on a cluster, or all; the oldest first."""
        return await in_chunks(self._info, self._chosen(None, agent, cluster))

    async def hubs_beside(self) -> int:
        """Return how many replaced hubs still drain; their calls are not listed here."""
        running = await trio.to_thread.run_sync(self.instances.running)
        return len(running - {self.boot})

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        """End the calls that match all given conditions, and return them. Does not wait for any peer."""
        return await self._kill(self._chosen(session_id, agent, cluster), reason)

    async def page(self, *, agent: str | None, cluster: str | None, after: str) -> CallsPage:
        """Return the first calls whose id is above `after`. Ids rise with the calls' beginnings."""
        chosen = [live for live in self._chosen(None, agent, cluster) if live.eid > after]
        chosen.sort(key=lambda live: live.eid)
        some = await self._page(chosen)
        return CallsPage([self._info(live) for live in some], len(some) < len(chosen))

    async def kill_page(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> CallsPage:
        """End the first calls that match, and return them."""
        # A call that was ended stays live until its record is made.
        chosen = [live for live in self._chosen(session_id, agent, cluster) if live.ended is None]
        some = await self._page(chosen)
        more = len(some) < len(chosen)
        return CallsPage(await self._kill(some, reason), more)

    async def _kill(self, chosen: list[LiveCall], reason: str) -> list[SessionInfo]:
        ending = Ending(CloseReason.KILLED, reason)
        chosen.reverse()
        killed: list[SessionInfo] = []
        while chosen:
            some = [(chosen.pop(), ending) for _ in range(min(len(chosen), KILLED_AT_ONCE))]
            # Calls that have ended by themselves meanwhile are not included.
            killed += map(self._info, await self.live.end(some))
        return killed

    async def _page(self, chosen: list[LiveCall]) -> list[LiveCall]:
        """Return as many of these calls as fit into one answer, and at least one."""
        some: list[LiveCall] = []
        size, chunks = 0, Chunks()
        for live in chosen:
            if chunks.over:
                await chunks.next()
            size += len(msgspec.json.encode(self._info(live)))
            if some and size > PAGE_BYTES_MAX:
                break
            some.append(live)
        return some

    def _chosen(self, session_id: str | None, agent: str | None, cluster: str | None) -> list[LiveCall]:
        return [
            live
            for live in self.live
            if session_id in (None, live.eid)
            and agent in (None, live.call.agent.name)
            and cluster in (None, live.call.cluster.name)
        ]

    def _info(self, live: LiveCall) -> SessionInfo:
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
            hub=self.hub,
            claimed_reason=without_secrets(call.caller.claimed_reason),
        )


def _kind(live: LiveCall) -> str:
    """Return the kind of a call: `watch`, `log`, `exec/websocket`, `portforward/spdy/3.1`, `request`."""
    info, upgrade = live.call.info, live.call.head.upgrade
    if upgrade is None and not info.long_running:
        return "request"
    what = info.subresource or info.verb
    return what if upgrade is None else f"{what}/{proto_of(upgrade)}"
