"""All actions on one hub, in groups, and the table of the admin API's verbs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs

from proxy.hub.admin.actions.agents import AgentActions
from proxy.hub.admin.actions.clusters import ClusterActions
from proxy.hub.admin.actions.console import ConsoleActions
from proxy.hub.admin.actions.federation import FederationActions
from proxy.hub.admin.actions.hub import HubActions, Hubs
from proxy.hub.admin.actions.overview import Denials, FactsElsewhere, OverviewActions
from proxy.hub.admin.actions.policies import PolicyActions
from proxy.hub.admin.actions.requests import RequestActions, Requests
from proxy.hub.admin.actions.sessions import SessionActions
from proxy.hub.admin.actions.signing_keys import SigningKeyActions
from proxy.hub.admin.actions.simulations import SimulationActions
from proxy.hub.admin.actions.teams import TeamActions
from proxy.hub.admin.actions.tokens import TokenActions
from proxy.hub.admin.actions.trail import TrailActions
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.overview.health import Facts, NoFacts
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.streams.changes import Watched
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.admin.verbs.answers import Answer
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import Verb, declared_by
from proxy.hub.home.keyring import KeyRing
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.relays.operations import Operations, OtherHubs, Sessions
from proxy.hub.store.directory import Directory, InMemory
from proxy.hub.store.local_user import LOCAL_TOKEN_NAME

_GROUPS: Mapping[str, type] = {
    "overview": OverviewActions,
    "hub": HubActions,
    "signing_keys": SigningKeyActions,
    "teams": TeamActions,
    "agents": AgentActions,
    "federation": FederationActions,
    "clusters": ClusterActions,
    "sessions": SessionActions,
    "requests": RequestActions,
    "policies": PolicyActions,
    "simulations": SimulationActions,
    "tokens": TokenActions,
    "console": ConsoleActions,
    "trail": TrailActions,
}


@attrs.frozen
class Administration:
    """The actions on one hub; its groups bear the names in _GROUPS."""

    directory: Directory
    pepper: bytes = attrs.field(repr=False)
    local_token: str
    """The name of the admin token of this hub's machine."""
    overview: OverviewActions
    hub: HubActions
    signing_keys: SigningKeyActions
    teams: TeamActions
    agents: AgentActions
    federation: FederationActions
    clusters: ClusterActions
    sessions: SessionActions
    requests: RequestActions
    policies: PolicyActions
    simulations: SimulationActions
    tokens: TokenActions
    console: ConsoleActions
    trail: TrailActions

    @classmethod
    def of(
        cls,
        *,
        directory: Directory,
        ring: KeyRing,
        pepper: bytes,
        public_url: str,
        hub_ca: Callable[[], str | None],
        version: str,
        operations: Operations,
        live_sessions: Sessions,
        simulations: Simulations,
        backups: Backups,
        requests: Requests,
        clock: Callable[[], float] = time.time,
        limits: LimitsConfig | None = None,
        local_token: str = LOCAL_TOKEN_NAME,
        trail: TrailService | None = None,
        hubs: Hubs | None = None,
        other_hubs: OtherHubs | None = None,
        facts: Facts | None = None,
        facts_elsewhere: FactsElsewhere | None = None,
        denials: Denials | None = None,
        watched: Watched | None = None,
        console_url: str = "",
    ) -> Administration:
        """Build the groups of actions."""
        limits = limits or LimitsConfig()
        overview = OverviewActions.of(
            directory=directory,
            operations=operations,
            clock=clock,
            public_url=public_url,
            version=version,
            hubs=hubs,
            facts=facts or NoFacts(),
            elsewhere=facts_elsewhere,
            denials=denials,
            watched=watched or {},
            requests=requests,
        )
        return cls(
            directory,
            pepper,
            local_token,
            overview,
            HubActions(directory, ring, public_url, hub_ca, version, backups, hubs),
            SigningKeyActions(ring),
            TeamActions(directory),
            AgentActions(directory, pepper, clock, limits.by_key),
            FederationActions(directory, public_url),
            ClusterActions(directory, ring, public_url, hub_ca, operations, limits.relays_per_cluster),
            SessionActions(directory, operations, live_sessions, other_hubs),
            RequestActions(directory, requests),
            PolicyActions(directory, clock),
            SimulationActions(directory, simulations),
            TokenActions(directory, pepper, clock),
            ConsoleActions(directory, pepper, clock, console_url, hub_ca),
            TrailActions(directory, trail or TrailService.without_trail()),
        )

    def in_memory(self, settled: Callable[[], None]) -> Administration:
        """Return the same actions for one revocation that the store cannot take; see Directory."""
        directory = InMemory(self.directory, settled)
        return attrs.evolve(
            self,
            agents=attrs.evolve(self.agents, directory=directory),
            federation=attrs.evolve(self.federation, directory=directory),
            clusters=attrs.evolve(self.clusters, directory=directory),
            requests=attrs.evolve(self.requests, directory=directory, settled=settled),
            policies=attrs.evolve(self.policies, directory=directory),
            tokens=attrs.evolve(self.tokens, directory=directory),
            console=attrs.evolve(self.console, directory=directory),
        )


@attrs.frozen(kw_only=True)
class Action(Verb):
    """A verb with the method that carries it out."""

    group: str
    function: str

    def run(self, administration: Administration, call: Call) -> Answer | Awaitable[Answer]:
        """Carry it out. Raises StoreError; InvalidError for a body or query of another shape."""
        function: Callable[..., Answer | Awaitable[Answer]]
        function = getattr(getattr(administration, self.group), self.function)
        return function(*self.arguments(call))

    def only_revokes(self, administration: Administration, call: Call) -> bool:
        """Return whether this request only revokes rights and grants none; raises InvalidError."""
        if isinstance(self.revokes, bool):
            return self.revokes
        return self.revokes(getattr(administration, self.group), *self.arguments(call))


ACTIONS: Sequence[Action] = tuple(
    Action(**attrs.asdict(declared, recurse=False), group=group, function=function)
    for group, cls in _GROUPS.items()
    for function, declared in declared_by(cls)
)
