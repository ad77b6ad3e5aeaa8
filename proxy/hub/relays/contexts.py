"""The relay JWTs of one session: one per agent, announced as a CONTEXT and named by each OPEN.

A token names the session's nonce, so it is valid in this session alone. Signing costs 40 µs and verifying 130
µs, so both sides keep a token for its life. A token is renewed RENEW_AFTER_S after it was minted, so that no
OPEN names a token that the relay must refuse.

Two kinds of contexts are named by no OPEN: the statements that lead to the signing key (auth/key_rotation.py)
and the hub's time (auth/hubclock.py). Contexts arrive in order. So the relay knows a key before the first
token that it signs, and the time before the first token that is dated by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from audit.record import Impersonated
from auth.principal import Principal
from proxy.exchange.groups import HUB_GROUP, group_of
from proxy.hub.authorize.events import impersonated
from tunnel import Session

# A relay JWT lives 60 s. This leaves 15 s for queues, clock error (±5 s) and a slow link.
RENEW_AFTER_S = 45.0
# Agents with a context on one session. The protocol allows 4,096 live contexts, and a renewed token lives
# beside its predecessor for a moment.
AGENTS_PER_SESSION_MAX = 2048


@attrs.frozen
class AgentContext:
    """An agent's current relay JWT on one session."""

    index: int
    minted_at: float
    principal: Principal
    impersonated: Impersonated
    """The identity in the token, as audit events have it."""


class TokenContexts:
    """Maps an agent to the CONTEXT index of its current relay JWT on one session.

    `mint(principal)` returns a fresh token, `succession()` the statements that lead to its key, and
    `tell_time()` a statement of the hub's time. `tell_time` is None for a relay that does not know such
    statements.
    """

    def __init__(
        self,
        session: Session,
        mint: Callable[[Principal], str],
        succession: Callable[[], tuple[str, ...]],
        tell_time: Callable[[], str] | None = None,
    ) -> None:
        self._session = session
        self._mint = mint
        self._succession = succession
        self._announced: tuple[str, ...] = ()
        self._tell_time = tell_time
        self._time_told_at = -math.inf
        self._time_context: int | None = None
        self._entries: dict[str, AgentContext] = {}

    def context_for(self, principal: Principal, now: float) -> AgentContext:
        """Return the context for this agent's next stream; mints and announces a token when none is fresh.

        If the principal's teams changed, a fresh token is minted at once. Plain and synchronous: it queues a
        CONTEXT frame, which is sent before the OPEN that names it. Raises SessionClosed.
        """
        entry = self._entries.get(principal.agent_id)
        if (
            entry is not None
            # The lower bound: after the clock was set back, the token's age is unknown.
            and 0.0 <= now - entry.minted_at < RENEW_AFTER_S
            and (entry.principal is principal or entry.principal == principal)
        ):
            return entry
        if entry is None and len(self._entries) >= AGENTS_PER_SESSION_MAX:
            self._retire_oldest()
        self.announce(now)
        index = self._session.add_context(group_of(principal.agent_id), self._mint(principal).encode("ascii"))
        if entry is not None:
            self._session.retire_context(entry.index)
        seen = impersonated(principal, self._session.session_id)
        self._entries[principal.agent_id] = entry = AgentContext(index, now, principal, seen)
        return entry

    def announce(self, now: float) -> None:
        """Announce key statements and the hub's time, as far as the relay needs them.

        Statements already sent on this session are left out, and so is the time if it was sent lately. Raises
        SessionClosed.
        """
        succession = self._succession()
        if succession != self._announced:
            for statement in succession:
                if statement not in self._announced:
                    self._session.add_context(HUB_GROUP, statement.encode("ascii"))
            self._announced = succession
        # The lower bound: after the clock was set back, the age is unknown.
        if self._tell_time is None or 0.0 <= now - self._time_told_at < RENEW_AFTER_S:
            return
        before = self._time_context
        self._time_context = self._session.add_context(HUB_GROUP, self._tell_time().encode("ascii"))
        self._time_told_at = now
        if before is not None:
            self._session.retire_context(before)

    def renew(self, principal: Principal, now: float) -> AgentContext:
        """Return a context with a new token, although the current one is fresh (the relay refused it)."""
        entry = self._entries.pop(principal.agent_id, None)
        if entry is not None:
            self._session.retire_context(entry.index)
        # The relay's idea of the hub's time may be the reason, as after a suspension.
        self._time_told_at = -math.inf
        return self.context_for(principal, now)

    def _retire_oldest(self) -> None:
        agent_id = min(self._entries, key=lambda key: self._entries[key].minted_at)
        self._session.retire_context(self._entries.pop(agent_id).index)
