"""What a hub has where other hubs serve beside it: their rows, and with `[peer]` its links to them.

A link carries calls for relays of the other hub (proxy/hub/hop), resumes that came to the wrong hub
(carried_resumes.py), routes and questions (proxy/hub/peers).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Self

import attrs
import trio
from prometheus_client import CollectorRegistry

from proxy.hub.admin.hub_facts import OtherHubsFacts, answer_facts
from proxy.hub.admin.live_calls import LiveSessions
from proxy.hub.admin.metrics.hub import LeaseCollector
from proxy.hub.admin.metrics.links import LinkCollector
from proxy.hub.admin.other_hubs import OtherHubsCalls, answer_others, peers_of
from proxy.hub.admin.overview.health import Facts
from proxy.hub.carried_resumes import CarriedResumes, ResumeCarrier
from proxy.hub.front import Front
from proxy.hub.hop.forwarded import ForwardedCalls
from proxy.hub.hop.local_routes import local_routes
from proxy.hub.hop.peer_relay import PeerRelays
from proxy.hub.membership.member import MemberState
from proxy.hub.membership.members import Figures, Members
from proxy.hub.peers.dial import PeerDialer
from proxy.hub.peers.identity import LinkIdentity
from proxy.hub.peers.link import RESUME
from proxy.hub.peers.listener import PeerListener
from proxy.hub.peers.mesh import Mesh
from proxy.hub.peers.slots import SlotQuestions
from proxy.hub.relays.registry import Registry
from proxy.hub.relays.shared_limit import SharedRelayLimit
from proxy.hub.store.directory import Directory


@attrs.frozen(eq=False)
class Links:
    """The links of a hub, and what they carry."""

    mesh: Mesh
    listener: PeerListener
    forwarded: ForwardedCalls

    @classmethod
    def start(
        cls,
        members: Members,
        identity: LinkIdentity,
        registry: Registry,
        directory: Directory,
        front: Front,
        limit: SharedRelayLimit,
        nursery: trio.Nursery,
    ) -> Self:
        """Build the links, and start their background tasks in `nursery`."""
        me = members.me
        forwarded = ForwardedCalls(registry, directory)
        mesh = Mesh(
            members,
            PeerDialer(me.hub, me.boot, identity).connect,
            partial(local_routes, registry),
            PeerRelays(registry, lambda: directory.current.version.number),
            memory=front.calls.memory,
            readiness=front.dials.readiness,
        )
        mesh.on_call = forwarded.serve
        mesh.streams[RESUME] = CarriedResumes(registry, front.dials, nursery).accept
        front.dials.carrier = ResumeCarrier(members, mesh.links)
        slots = SlotQuestions(mesh.links, mesh.answers)
        limit.ask = slots.ask
        slots.answer_by(limit)
        registry.on_change(mesh.routes_changed)
        directory.on_change(forwarded.reconsider)
        nursery.start_soon(mesh.run)
        nursery.start_soon(forwarded.run)
        return cls(mesh, PeerListener(mesh, identity, time.time), forwarded)


@attrs.define(eq=False)
class Peering:
    """The other hubs of the database (stop.Peers)."""

    members: Members
    links: Links | None
    """None without `[peer]`."""

    def tell_figures(self, registry: Registry, front: Front) -> None:
        """State this hub's figures with each renewal of its row."""

        def figures() -> Figures:
            links, tunnels, calls = self.links, sum(1 for _ in registry.relays()), front.calls.live.count
            if links is None:
                return Figures(tunnels, calls)
            return Figures(tunnels, calls + links.forwarded.count, links.mesh.unreachable)

        self.members.figures = figures

    def register(self, metrics: CollectorRegistry, directory: Directory) -> None:
        """Register the metrics of the lease and of the links."""
        metrics.register(LeaseCollector(self.members, directory))
        if (links := self.links) is not None:
            metrics.register(LinkCollector(self.members, links.mesh, links.forwarded))

    def calls_elsewhere(self, sessions: LiveSessions) -> OtherHubsCalls:
        """Answer the other hubs about this one's calls, and return what asks them about theirs."""
        mesh = None if self.links is None else self.links.mesh
        if mesh is not None:
            answer_others(mesh.answers, sessions)
        return OtherHubsCalls(partial(peers_of, self.members, None if mesh is None else mesh.links))

    def facts_elsewhere(self, facts: Facts) -> OtherHubsFacts:
        """Answer the other hubs what this one has, and return what asks them."""
        mesh = None if self.links is None else self.links.mesh
        if mesh is not None:
            answer_facts(mesh.answers, facts)
        return OtherHubsFacts(partial(peers_of, self.members, None if mesh is None else mesh.links))

    @property
    def serve(self) -> bool:
        """See stop.Peers."""
        return any(each.living and each.state is MemberState.SERVING for each in self.members.others())

    @property
    def carry(self) -> bool:
        """See stop.Peers."""
        return self.links is not None

    def leave(self, *, replaced: bool = False) -> None:
        """See stop.Peers."""
        self.members.leave()
        if self.links is not None:
            self.links.mesh.leave(replaced=replaced)
