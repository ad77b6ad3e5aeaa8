"""Actions for the first page, and for pages that follow what changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import msgspec

from proxy.hub.admin.actions.hub import Hubs
from proxy.hub.admin.actions.requests import Requests
from proxy.hub.admin.overview.attention import attention, ending_tokens, waiting_requests
from proxy.hub.admin.overview.fleet import bare, cluster_rows
from proxy.hub.admin.overview.health import Facts
from proxy.hub.admin.overview.shapes import AgentCounts, Attention, HubFacts, HubRow, Overview
from proxy.hub.admin.streams.changes import OF_SNAPSHOT, ChangeFeed, Watched
from proxy.hub.admin.trail.rows import Row
from proxy.hub.admin.verbs.answers import Done, Followed, time_text
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.approvals.request import State
from proxy.hub.relays.operations import Operations
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import AgentState, RelayInstance
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store

DENIALS_SHOWN = 10
# The roles that may follow a topic, where a viewer may not.
TOPIC_ROLES = {
    "requests": Role.APPROVER,
    "sessions": Role.OPERATOR,
    "trail": Role.AUDITOR,
    "tokens": Role.AUDITOR,
}


class FactsElsewhere(Protocol):
    """The facts of the other hubs."""

    async def facts(self) -> tuple[Sequence[HubFacts], Sequence[str]]:
        """Return them, and the hubs that did not answer in time."""
        ...


class Denials(Protocol):
    """The part of the trail's search that the overview uses."""

    async def denials(self, count: int) -> Sequence[Row]:
        """Return the last denied calls, the newest first."""
        ...


@attrs.frozen
class OverviewActions:
    """The first page, and the stream of changes."""

    directory: Changes
    operations: Operations
    clock: Callable[[], float]
    public_url: str
    version: str
    hubs: Hubs | None
    """None on SQLite, where a hub runs alone."""
    facts: Facts
    elsewhere: FactsElsewhere | None
    denials: Denials | None
    feed: ChangeFeed
    requests: Requests

    @classmethod
    def of(
        cls,
        *,
        directory: Changes,
        operations: Operations,
        clock: Callable[[], float],
        public_url: str,
        version: str,
        hubs: Hubs | None,
        facts: Facts,
        elsewhere: FactsElsewhere | None,
        denials: Denials | None,
        watched: Watched,
        requests: Requests,
    ) -> OverviewActions:
        """Build the group with its feed of changes."""
        feed = ChangeFeed(lambda: directory.current, {**watched, "requests": lambda: requests.mark})
        return cls(
            directory,
            operations,
            clock,
            public_url,
            version,
            hubs,
            facts,
            elsewhere,
            denials,
            feed,
            requests,
        )

    @verb("GET", "/v1/overview", "get", "overview", Role.VIEWER, with_call=True, etag=True, answer=Overview)
    async def show(self, call: Call) -> Done:
        """Show the fleet in one answer: what needs attention, clusters, agents, hubs, the last denials.

        The ETag leaves out the round trips, which change all the time.
        """
        now, snapshot = self.clock(), self.directory.current
        relays, instances, troubles = [*self.operations.relays()], list[RelayInstance](), list[Attention]()
        try:
            relays += await self.operations.elsewhere()
            instances = await self.directory.read(Store.relay_instances)
        except StoreUnavailableError as error:
            # The page is for this moment too.
            troubles.append(Attention("database-down", "critical", "database", "", str(error)))
        facts, silent = [await self.facts()], list[str]()
        if self.elsewhere is not None:
            others, asked_in_vain = await self.elsewhere.facts()
            facts += others
            silent += asked_in_vain
        rows = cluster_rows(snapshot.clusters_by_id.values(), relays, instances, facts, now)
        hubs = self._hubs()
        found = attention(rows, facts, hubs, silent, snapshot.faults, bare(self.version), now)
        found = [*troubles, *found]
        waiting = None
        if call.role.may(Role.APPROVER):
            waiting = self.requests.open_states.get(State.PENDING, 0)
            found = [*waiting_requests(waiting, self.requests.oldest_pending), *found]
        if call.role.may(Role.AUDITOR):
            found += ending_tokens(snapshot.admin_tokens_by_hash.values(), now)
        denials = None
        if call.role.may(Role.AUDITOR) and self.denials is not None:
            denials = list(await self.denials.denials(DENIALS_SHOWN))
        states = Counter(agent.state for agent in snapshot.agents_by_id.values())
        overview = Overview(
            org=snapshot.org,
            version=self.version,
            public_url=self.public_url,
            attention=found,
            clusters=rows,
            agents=AgentCounts(
                states[AgentState.ACTIVE], states[AgentState.LOCKED], states[AgentState.RETIRED]
            ),
            teams=len(snapshot.teams_by_name),
            calls=sum(sum(each.calls.values()) for each in facts),
            requests=waiting,
            denials=denials,
            denials_roles=[str(role) for role in Role.AUDITOR.holders],
            hubs=hubs,
            silent_hubs=silent,
        )
        steady = msgspec.structs.replace(
            overview, clusters=[msgspec.structs.replace(row, rtt_ms=None) for row in rows]
        )
        return Done(msgspec.structs.asdict(overview), tag=msgspec.json.encode(steady).decode())

    @verb("GET", "/v1/stream", "follow", "changes", Role.VIEWER, with_call=True)
    def follow(self, call: Call) -> Followed:
        """Stream which topics have changed at any hub, at most once a second, as server-sent events.

        The event `changed` has `{"topics": […]}`, of those that the role may read: agents, clusters, hubs,
        policies, relays, requests, sessions, teams, tokens, trail. The first one has none: it says that the
        stream is open.
        """
        topics = {*OF_SNAPSHOT, *self.feed.watched}
        may = {topic for topic in topics if call.role.may(TOPIC_ROLES.get(topic, Role.VIEWER))}
        return Followed(self.feed.subscribe(may), note=f"topics={','.join(sorted(may))}")

    def _hubs(self) -> list[HubRow]:
        if self.hubs is None:
            return []
        me = self.hubs.me
        rows = [
            HubRow(
                member.hub,
                member.boot == me.boot,
                str(member.state),
                member.living,
                bare(member.software),
                member.tunnels,
                member.calls,
                time_text(member.started_at),
            )
            for member in (me, *self.hubs.others())
        ]
        return sorted(rows, key=lambda row: (row.hub, row.started_at or ""))
