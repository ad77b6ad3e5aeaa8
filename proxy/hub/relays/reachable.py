"""The relays that calls can be sent to, whichever hub has their tunnel."""

from __future__ import annotations

from typing import Protocol

from audit.record import Relay as RecordedRelay
from auth.principal import Principal
from proxy.hub.relays.contexts import AgentContext
from proxy.kubernetes.statement import Statement
from tunnel import Session


class AgentContexts(Protocol):
    """The contexts under which streams to a relay are opened, one for each agent."""

    def context_for(self, principal: Principal, now: float) -> AgentContext:
        """Return the context for this agent's next stream. Raises SessionClosed."""
        ...

    def renew(self, principal: Principal, now: float) -> AgentContext:
        """Do the same after the relay has refused the last token. Raises SessionClosed."""
        ...


class ReachableRelay(Protocol):
    """A relay that this hub can open streams to: a LiveRelay, or a PeerRelay (proxy.hub.hop.peer_relay).

    The tunnel of a LiveRelay ends here. That of a PeerRelay ends at another hub, and the streams to it are
    opened on the link to that hub.
    """

    @property
    def cluster_id(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def session(self) -> Session:
        """The session in which its streams are opened: its own, or the link's."""
        ...

    @property
    def contexts(self) -> AgentContexts: ...
    @property
    def statement(self) -> Statement:
        """Its last statement, as far as it is known here."""
        ...

    @property
    def recorded(self) -> RecordedRelay:
        """As the audit events of its calls name it."""
        ...

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened."""
        ...

    @property
    def doubtful(self) -> bool:
        """Whether another relay is preferable: this one is silent, or its API server is."""
        ...

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """Its place among the relays of its cluster, the best one first.

        Whether it is doubtful, whether it or its hub leaves, whether its tunnel ends at another hub, and its
        number of streams.
        """
        ...
