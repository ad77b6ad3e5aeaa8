"""The relay JWTs of one session: minted once an agent, said once as a CONTEXT, named by every OPEN.

A token names the session's nonce, so that it is good in this one alone. Signing costs 40 µs and verifying
130 µs, so both sides keep a token for its life. A token is renewed
RENEW_AFTER_S after it was minted, so that an OPEN never names one that the relay must refuse.

What led to the key that signs them (auth/key_rotation.py) is said here as well, and the hub's time
(auth/hubclock.py), as contexts that no OPEN names: contexts arrive in order, so the relay knows a key before
the first token that it signs, and the time before the first token that is of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from audit.record import Impersonated
from auth.principal import Principal
from proxy.exchange.tunnelled import HUB_GROUP, group_of
from proxy.hub.authorize.events import impersonated
from tunnel import Session

# Of the 60 s that a relay JWT lives: leaves 15 s for queues, clock error (±5 s) and a slow link.
RENEW_AFTER_S = 45.0
# Agents with a context on one session; below the 4,096 live contexts that the protocol allows, since a
# renewed token lives beside its predecessor for a moment.
AGENTS_PER_SESSION_MAX = 2048


@attrs.frozen
class AgentContext:
    """An agent's current relay JWT on one session."""

    index: int
    minted_at: float
    principal: Principal
    impersonated: Impersonated
    """What the token says, as the trail has it."""


class TokenContexts:
    """Maps an agent to the CONTEXT index of its current relay JWT on one session.

    `mint(principal)` returns a fresh token, `succession()` the statements that lead to its key, and
    `tell_time()` one of the hub's time; None where the relay does not know such.
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
        """The context to open this agent's stream under; mints and announces a token when none is fresh.

        A principal whose teams changed gets a fresh token at once: the old one states what no longer holds.
        Plain and synchronous: it queues a CONTEXT frame, which leaves before the OPEN that names it. Raises
        SessionClosed.
        """
        entry = self._entries.get(principal.agent_id)
        if (
            entry is not None
            # A clock that was set back does not make a token young.
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
        """Tell the relay how the hub's keys have changed, as far as it was not told on this session, and the
        time, where it was not told lately.

        Raises SessionClosed.
        """
        succession = self._succession()
        if succession != self._announced:
            for statement in succession:
                if statement not in self._announced:
                    self._session.add_context(HUB_GROUP, statement.encode("ascii"))
            self._announced = succession
        # As with tokens, a clock that was set back does not make it young.
        if self._tell_time is None or 0.0 <= now - self._time_told_at < RENEW_AFTER_S:
            return
        before = self._time_context
        self._time_context = self._session.add_context(HUB_GROUP, self._tell_time().encode("ascii"))
        self._time_told_at = now
        if before is not None:
            self._session.retire_context(before)

    def renew(self, principal: Principal, now: float) -> AgentContext:
        """A context with a new token, whatever the age of the current one (the relay refused it).

        Raises SessionClosed.
        """
        entry = self._entries.pop(principal.agent_id, None)
        if entry is not None:
            self._session.retire_context(entry.index)
        # The relay may have refused the token for its idea of the hub's time, as after a suspension.
        self._time_told_at = -math.inf
        return self.context_for(principal, now)

    def _retire_oldest(self) -> None:
        agent_id = min(self._entries, key=lambda key: self._entries[key].minted_at)
        self._session.retire_context(self._entries.pop(agent_id).index)
