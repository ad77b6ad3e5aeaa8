"""The requests in a hub's memory. Waiting calls, running calls and pages read them without the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs
import trio

from proxy.hub.approvals.request import LIFE_S, Request, State
from proxy.hub.approvals.requests.table import Seen

Listener: TypeAlias = Callable[[frozenset[str]], None]
"""Takes the ids of changed requests; must neither wait nor raise."""

KNOWN_S: Final = 2 * LIFE_S
"""How long a hub remembers how many transitions a request had made. No grant counts for longer."""


@attrs.define(eq=False)
class _Known:
    changes: int
    noted_s: float


@attrs.define(eq=False)
class RequestsMemory:
    """The requests that the last reading had, and those that this hub has moved since."""

    mark: int = 0
    """A number that grows with each change."""
    _known: dict[str, _Known] = attrs.Factory(dict)
    """By id. This and the fields below are bounded by the requests of KNOWN_S: 60 an agent and hour."""
    _open: dict[str, Seen] = attrs.Factory(dict)
    _revoked: set[str] = attrs.Factory(set)
    _waiting: dict[str, trio.Event] = attrs.Factory(dict)
    _listeners: list[Listener] = attrs.Factory(list)

    @property
    def open_states(self) -> Mapping[State, int]:
        """How many requests are pending, approved and using."""
        states = State.PENDING, State.APPROVED, State.USING
        return {**dict.fromkeys(states, 0), **Counter(each.state for each in self._open.values())}

    @property
    def oldest_pending(self) -> float | None:
        """When the oldest pending request was opened."""
        pending = (each.created_at for each in self._open.values() if each.state is State.PENDING)
        return min(pending, default=None)

    def on_change(self, listener: Listener) -> None:
        """Call a listener after each change."""
        self._listeners.append(listener)

    def is_revoked(self, request_id: str) -> bool:
        """Return whether a request is known to be revoked."""
        return request_id in self._revoked

    def revoke(self, request_id: str) -> None:
        """Count a request as revoked, whatever the store says."""
        self._revoked.add(request_id)
        self._notify({request_id})

    def changes_of(self, request_id: str) -> int:
        """Return how many transitions a request is known to have made; 0 if nothing is known."""
        known = self._known.get(request_id)
        return 0 if known is None else known.changes

    def event_of(self, request: Request) -> trio.Event:
        """Return an event that is set once the request may differ from this one."""
        if self.changes_of(request.id) > request.changes:
            event = trio.Event()
            event.set()
            return event
        return self._waiting.setdefault(request.id, trio.Event())

    def moved(self, request: Request) -> None:
        """Note a transition that this hub has committed."""
        if self.changes_of(request.id) <= request.changes:
            # A reading may have been faster.
            self._see(
                Seen(
                    request.id,
                    request.state,
                    request.changes,
                    request.created_at,
                    overdue=False,
                    hub_boot=None,
                )
            )
        self._notify({request.id})

    def read(self, found: Sequence[Seen], began_s: float) -> set[str]:
        """Note a reading that began then, on trio's clock.

        Returns the requests of which the database has lost transitions. Until `accept`, they are returned
        again.
        """
        changed: set[str] = set()
        lost: set[str] = set()
        here: set[str] = set()
        for seen in found:
            here.add(seen.id)
            known = self._known.get(seen.id)
            if known is None or seen.changes > known.changes:
                self._see(seen)
                changed.add(seen.id)
            elif seen.changes == known.changes:
                if seen.id in self._open:
                    self._open[seen.id] = seen
            elif known.noted_s < began_s:
                # This hub has not moved it during the reading.
                lost.add(seen.id)
        for request_id in self._open.keys() - here:
            if self._known[request_id].noted_s < began_s:
                # Removed with its agent or cluster.
                del self._open[request_id]
                changed.add(request_id)
        self._forget()
        if changed:
            self._notify(changed)
        return lost

    def accept(self, lost: Iterable[str]) -> None:
        """Forget how many transitions these requests had made."""
        for request_id in lost:
            self._known.pop(request_id, None)
            self._open.pop(request_id, None)

    def _see(self, seen: Seen) -> None:
        self._note(seen.id, seen.changes)
        if seen.state.open:
            self._open[seen.id] = seen
        else:
            self._open.pop(seen.id, None)
        if seen.state is State.REVOKED:
            self._revoked.add(seen.id)

    def _note(self, request_id: str, changes: int) -> None:
        self._known[request_id] = _Known(changes, trio.current_time())

    def _forget(self) -> None:
        old_s = trio.current_time() - KNOWN_S
        for request_id in [each for each, known in self._known.items() if known.noted_s < old_s]:
            if request_id not in self._open:
                del self._known[request_id]
                self._revoked.discard(request_id)

    def _notify(self, changed: set[str]) -> None:
        self.mark += 1
        for request_id in changed:
            if (event := self._waiting.pop(request_id, None)) is not None:
                event.set()
        for listener in self._listeners:
            listener(frozenset(changed))
