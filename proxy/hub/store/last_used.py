"""When agents, credentials, tokens and relays were used last, until the store has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from audit.store import TrailMark
from proxy.hub.store.entities import Agent, Credential
from proxy.hub.store.store import Store

# "Last used" helps an operator find unused credentials; half a minute is exact enough for that, and a write
# per call would be a disk flush per call.
USE_WRITTEN_EVERY_S = 30.0


class LastUsed:
    """The last-used times that are not written yet. No snapshot has them."""

    def __init__(self, trail: TrailMark | None) -> None:
        self._trail_written = trail
        self._trail: TrailMark | None = None
        self._forget()

    def note_agent(self, agent: Agent, credential: Credential, now: float) -> None:
        """Note that an agent has authenticated."""
        self._agents[agent.id] = now
        self._credentials[credential.id] = now

    def note_admin_token(self, token_id: str, now: float) -> None:
        """Note that an operator's token was used."""
        self._admin_tokens[token_id] = now

    def note_relay(self, cluster_id: str, instance: str, now: float) -> None:
        """Note when a connected relay was last heard from."""
        self._relays[cluster_id, instance] = now

    def note_trail(self, mark: TrailMark) -> None:
        """Note the audit trail's highest number."""
        self._trail = mark

    def _forget(self) -> None:
        # Bounded by the existing agents, keys, tokens and connected relays.
        self._agents: dict[str, float] = {}
        self._credentials: dict[str, float] = {}
        self._admin_tokens: dict[str, float] = {}
        self._relays: dict[tuple[str, str], float] = {}

    async def write(self, change: Callable[[Callable[[Store], None]], Awaitable[None]]) -> None:
        """Write what is noted by `change`; raises what that raises, and then these times are lost."""
        note = partial(
            Store.note_use,
            agents=self._agents,
            credentials=self._credentials,
            admin_tokens=self._admin_tokens,
            relays=self._relays,
            trail=self._trail,
        )
        trail = self._trail
        grown = trail is not None and trail != self._trail_written
        if grown or self._agents or self._credentials or self._admin_tokens or self._relays:
            self._forget()
            await change(note)
            self._trail_written = trail
