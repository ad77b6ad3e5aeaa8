"""The first hub's side of a forwarded call: a relay whose session ends at another hub.

A PeerRelay stands in the Registry beside the relays of this hub, and calls do not know the difference. Its
streams are opened on the link to the other hub, under a context that names the agent and the relay's session.
The other hub has the relay's session, mints the token, and splices the streams (proxy.hub.hop.forwarded).

A route lives no longer than its link. `proxy.hub.peers.routes` makes, updates and ends it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from audit.record import Relay as RecordedRelay
from auth.principal import Principal
from proxy.exchange.groups import group_of
from proxy.hub.authorize.events import impersonated
from proxy.hub.hop.call_context import CallContext
from proxy.hub.relays.contexts import AgentContext
from proxy.hub.relays.registry import Registry
from proxy.kubernetes.statement import Statement
from tunnel import Session

if TYPE_CHECKING:
    from proxy.hub.peers.link import PeerLink
    from proxy.hub.peers.routes import Route

# Pairs of an agent and a session with a context on one link. The protocol allows 4,096 live contexts, and a
# retired one lives until the OPENs that name it have left.
CONTEXTS_PER_LINK_MAX = 2048


class LinkContexts:
    """The contexts of one link; the least recently used one makes room for another.

    `version` returns the number of the directory's version that this hub has applied.
    """

    def __init__(self, session: Session, version: Callable[[], int]) -> None:
        self.session = session
        self._version = version
        self._entries: OrderedDict[tuple[str, str, str], tuple[int, AgentContext]] = OrderedDict()
        """With the version that each one states."""

    def context_for(self, cluster_id: str, session_id: str, principal: Principal, now: float) -> AgentContext:
        """Return the context for streams of an agent to a session. Raises SessionClosed.

        Plain and synchronous, like TokenContexts. An agent gets another one after each change of the
        directory: the other hub has to know by which version this one decides. The number may also go back,
        in a database that has lost commits.
        """
        entries, key, version = self._entries, (cluster_id, session_id, principal.agent_id), self._version()
        entry = entries.get(key)
        if entry is not None:
            stated_version, context = entry
            if stated_version == version and context.principal == principal:
                entries.move_to_end(key)
                return context
            self.retire(*key)
        elif len(entries) >= CONTEXTS_PER_LINK_MAX:
            self.session.retire_context(entries.popitem(last=False)[1][1].index)
        stated = CallContext(session_id, cluster_id, principal, version)
        index = self.session.add_context(group_of(principal.agent_id), stated.encode())
        context = AgentContext(index, now, principal, impersonated(principal, session_id))
        entries[key] = version, context
        return context

    def retire(self, cluster_id: str, session_id: str, agent_id: str) -> None:
        """Retire an agent's context for a session, if there is one."""
        entry = self._entries.pop((cluster_id, session_id, agent_id), None)
        if entry is not None:
            self.session.retire_context(entry[1].index)


@attrs.define(eq=False)
class PeerContexts:
    """The contexts of one relay on the link to its hub (AgentContexts)."""

    _link: LinkContexts
    _cluster_id: str
    _session_id: str
    opened: int = 0
    """Streams opened since the other hub has stated their number."""
    _agents: set[str] = attrs.Factory(set)

    def context_for(self, principal: Principal, now: float) -> AgentContext:
        """See AgentContexts."""
        self.opened += 1
        self._agents.add(principal.agent_id)
        return self._link.context_for(self._cluster_id, self._session_id, principal, now)

    # The other hub has the token. It renews it by itself before it passes the relay's refusal on.
    renew = context_for

    def retire(self) -> None:
        """Retire all contexts of the relay: its session has ended."""
        for agent_id in self._agents:
            self._link.retire(self._cluster_id, self._session_id, agent_id)


@attrs.define(eq=False)
class PeerRelay:
    """A relay whose session ends at another hub (ReachableRelay, and RouteHandle of proxy.hub.peers)."""

    route: Route
    session: Session
    """The link's."""
    contexts: PeerContexts
    recorded: RecordedRelay
    cluster_id: str
    """The cluster's id. No update changes it: the registry has the relay under this one."""
    _registry: Registry

    @property
    def instance(self) -> str:
        """The relay's instance."""
        return self.route.instance

    @property
    def statement(self) -> Statement:
        """See ReachableRelay. The other hub has checked the cluster's UID."""
        return Statement(api_server=self.route.api_server)

    @property
    def usable(self) -> bool:
        """See ReachableRelay."""
        return self.session.may_open

    @property
    def doubtful(self) -> bool:
        """See ReachableRelay."""
        return self.route.away or self.session.away or self.route.api_server is False

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """See ReachableRelay."""
        return self.doubtful, self.route.leaving, True, self.route.streams + self.contexts.opened

    def update(self, route: Route) -> None:
        """See RouteHandle."""
        self.route = route
        self.contexts.opened = 0

    def away(self) -> None:
        """See RouteHandle. A stream waits for the first redial, and its call for further ones."""
        self._registry.relay_wait.expect([self.cluster_id])

    def back(self) -> None:
        """See RouteHandle."""
        self._registry.relay_wait.arrived(self.cluster_id)

    def end(self) -> None:
        """See RouteHandle. Streams that are open end by themselves."""
        self.contexts.retire()
        self._registry.remove_elsewhere(self.route.session, self)
        moves = self.session.closed or self.route.leaving
        if moves and self._registry.session(self.cluster_id) is None:
            # Its hub has died, cannot be reached, or leaves. The relay dials another hub within a second.
            self._registry.relay_wait.expect([self.cluster_id])


@attrs.define(eq=False)
class PeerRelays:
    """Makes the PeerRelays of a hub (RouteFactory)."""

    registry: Registry
    version: Callable[[], int]
    """Returns the number of the directory's version that this hub has applied."""
    _links: dict[Session, LinkContexts] = attrs.Factory(dict)

    def __call__(self, link: PeerLink, route: Route) -> PeerRelay:
        """Register a route, and return its relay."""
        contexts = self._links.get(link.session)
        if contexts is None:
            for ended in [session for session in self._links if session.closed]:
                del self._links[ended]
            contexts = self._links[link.session] = LinkContexts(link.session, self.version)
        relay = PeerRelay(
            route,
            link.session,
            PeerContexts(contexts, route.cluster, route.session),
            RecordedRelay(route.instance, route.version),
            route.cluster,
            self.registry,
        )
        self.registry.add_elsewhere(route.session, relay)
        return relay
