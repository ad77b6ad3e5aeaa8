"""All actions on one hub, by what they are on."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

from proxy.hub.admin.actions.agents import AgentActions
from proxy.hub.admin.actions.answers import Done
from proxy.hub.admin.actions.clusters import ClusterActions
from proxy.hub.admin.actions.federation import FederationActions
from proxy.hub.admin.actions.policies import PolicyActions
from proxy.hub.admin.actions.sessions import SessionActions
from proxy.hub.admin.actions.signing_keys import SigningKeyActions
from proxy.hub.admin.actions.teams import TeamActions
from proxy.hub.admin.actions.tokens import TokenActions
from proxy.hub.home.config import RELAYS_PER_CLUSTER
from proxy.hub.home.keyring import KeyRing
from proxy.hub.relays.operations import Operations, Sessions
from proxy.hub.store.directory import Directory, InMemory


@attrs.frozen
class Administration:
    """The actions on one hub."""

    directory: Directory
    ring: KeyRing
    pepper: bytes = attrs.field(repr=False)
    public_url: str
    hub_ca: Callable[[], str | None]
    """The CA that clients need for the hub's certificate; None when it is one of the public ones."""
    version: str
    signing_keys: SigningKeyActions
    teams: TeamActions
    agents: AgentActions
    federation: FederationActions
    clusters: ClusterActions
    sessions: SessionActions
    policies: PolicyActions
    tokens: TokenActions

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
        clock: Callable[[], float] = time.time,
        relays_per_cluster: int = RELAYS_PER_CLUSTER,
    ) -> Administration:
        """Give each group of actions what it needs of the hub."""
        return cls(
            directory,
            ring,
            pepper,
            public_url,
            hub_ca,
            version,
            SigningKeyActions(ring),
            TeamActions(directory),
            AgentActions(directory, pepper, clock),
            FederationActions(directory, public_url),
            ClusterActions(directory, ring, public_url, hub_ca, operations, relays_per_cluster),
            SessionActions(directory, operations, live_sessions),
            PolicyActions(directory, clock),
            TokenActions(directory, pepper, clock),
        )

    def in_memory(self, settled: Callable[[], None]) -> Administration:
        """The same actions, for one revocation that the store cannot take; see Directory."""
        directory = InMemory(self.directory, settled)
        return attrs.evolve(
            self,
            agents=attrs.evolve(self.agents, directory=directory),
            federation=attrs.evolve(self.federation, directory=directory),
            clusters=attrs.evolve(self.clusters, directory=directory),
            policies=attrs.evolve(self.policies, directory=directory),
            tokens=attrs.evolve(self.tokens, directory=directory),
        )

    def hub(self) -> Done:
        """What this hub is, and what a relay or an agent must know to trust it."""
        return Done(
            {
                "org": self.directory.current.org,
                "public_url": self.public_url,
                "version": self.version,
                "ca_pem": self.hub_ca(),
                "signing_key": self.ring.current.active.kid,
            }
        )
