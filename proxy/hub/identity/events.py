"""Audit events of agents' requests to the hub itself: tokens, cluster lists and key registration."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from audit.events import new_event
from audit.record import Actor, ActorType, Client, Decision, Event, Kind, Phase, Request, Response, text
from audit.record import Cluster as AuditCluster
from proxy.hub.identity.oauth import Refusal, values_of
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, Cluster
from proxy.message.head import Headers


@attrs.frozen
class Sender:
    """The source of a request, and its target."""

    method: str
    path: str
    headers: Headers = attrs.field(repr=False)
    client_ip: str


@attrs.frozen
class AgentEvents:
    """Builds events and passes them to `record`, which must not block."""

    directory: Directory
    record: Callable[[Event], None]
    clock: Callable[[], float]

    def make(
        self,
        kind: Kind,
        sender: Sender,
        *,
        actor: Actor,
        status: int | None,
        cluster: Cluster | None = None,
        effect: str = "",
        note: str = "",
    ) -> Event:
        """Build the event of an answered request; without a `status`, build an intent."""
        return new_event(
            kind,
            actor,
            org=self.directory.current.org,
            at=self.clock(),
            phase=Phase.INTENT if status is None else Phase.COMPLETE,
            client=Client(sender.client_ip, text(b", ".join(values_of(sender.headers, b"user-agent")))),
            cluster=AuditCluster(cluster.id, cluster.name) if cluster is not None else None,
            req=Request(sender.method, sender.path),
            decision=Decision(effect) if effect else None,
            resp=None if status is None else Response(status),
            note=note,
        )

    def refused(self, refusal: Refusal, sender: Sender, cluster: Cluster | None = None) -> None:
        """Record a refusal."""
        if refusal.agent is None:
            actor = Actor(ActorType.ANONYMOUS)
        else:
            label = "" if refusal.credential is None else refusal.credential.label
            actor = agent_actor(refusal.agent, label)
        self.record(
            self.make(
                refusal.kind,
                sender,
                actor=actor,
                status=refusal.status,
                cluster=cluster,
                effect="deny" if refusal.kind is Kind.AUTH_FAILED else "",
                note=refusal.note,
            )
        )


def agent_actor(agent: Agent, credential: str, jti: str = "") -> Actor:
    """The agent as an audit actor, with the label of the credential it used."""
    return Actor(ActorType.AGENT, agent.name, agent.id, agent.owner, agent.teams, credential, jti)
