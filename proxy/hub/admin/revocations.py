"""Revocations that the trail or the store could not take: the reserve keeps each until both have it.

An entry of the reserve is an operator's request with its audit event. The hub carries it out at once. An
entry is settled when the trail and the store have it; when all entries are settled, the reserve is cleared.
At a start the entries are carried out again, by the same actions: locking a locked agent is refused and
changes nothing. Between an entry and its clearing no right can be granted: the trail accepts no intent, or
the store no other change, and the reserve is cleared before either does again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Protocol

import msgspec

from audit.record import Event, utc
from audit.record import Response as AuditResponse
from proxy.hub.admin.administration import ACTIONS, Administration
from proxy.hub.admin.verbs.answers import Answer
from proxy.hub.admin.verbs.call import Call
from proxy.hub.home.files.reserve import Reserve, ReserveError
from proxy.hub.store.engines.errors import StoreError, StoreUnavailableError

_log = logging.getLogger("hawse.hub.admin")


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the reserve."""

    event: Event
    """The intent of the action."""
    recorded: bool
    """Whether the trail has that intent."""
    method: str
    action: str
    """The action's path, as the table of actions has it."""
    call: Call


class Where(Enum):
    """Where a revocation must be stored."""

    TRAIL = auto()
    STORE = auto()


class Trail(Protocol):
    """The part of the recorder that revocations use."""

    def keep(self, event: Event, settled: Callable[[], None]) -> None:
        """Write an event once, as soon as the trail can be written."""
        ...


class Revocations:
    """The reserve, and the state of its entries. Its methods may be called in any thread."""

    def __init__(self, reserve: Reserve) -> None:
        self._reserve = reserve
        self._lock = threading.Lock()
        # For each entry of this process, by `eid`: where it is still missing. Bounded by the reserve.
        self._missing: dict[str, set[Where]] = {}

    def keep(self, revocation: Revocation) -> None:
        """Make a revocation durable; raises ReserveError."""
        payload = msgspec.json.encode(revocation)
        with self._lock:
            self._reserve.add(payload)
            self._missing[revocation.event.eid] = _missing(revocation)

    def settled(self, eid: str, where: Where) -> None:
        """Note that the trail or the store has a revocation; when all are settled, clear the reserve."""
        with self._lock:
            if eid not in self._missing:
                return
            self._missing[eid].discard(where)
            if any(self._missing.values()):
                return
            try:
                if self._reserve.clear(self._is_settled):
                    self._missing.clear()
            except ReserveError as error:
                _log.error("%s: its revocations are carried out again at the next start", error)

    def left(self) -> list[Revocation]:
        """Return the reserve's entries when the hub starts; raises ReserveError."""
        with self._lock:
            found = list(map(_decoded, self._reserve.entries()))
            for revocation in found:
                self._missing.setdefault(revocation.event.eid, _missing(revocation))
        return found

    def _is_settled(self, payload: bytes) -> bool:
        # An unknown entry belongs to another hub, which still drains.
        return self._missing.get(_decoded(payload).event.eid) == set()


def _missing(revocation: Revocation) -> set[Where]:
    return {Where.STORE} if revocation.recorded else {Where.TRAIL, Where.STORE}


def _decoded(payload: bytes) -> Revocation:
    try:
        return msgspec.json.decode(payload, type=Revocation)
    except msgspec.DecodeError as error:
        raise ReserveError(
            f"the reserve holds an entry that this version cannot read ({error}): start the version that "
            "wrote it, and free some of the disk"
        ) from error


async def repeat_revocations(
    revocations: Revocations,
    left: Sequence[Revocation],
    administration: Administration,
    trail: Trail,
    clock: Callable[[], float] = time.time,
) -> None:
    """Carry out the revocations that an earlier run left in the reserve, before any request is served.

    Raises StoreUnavailableError if a revocation cannot be put in force even in memory. The hub does not start
    then, and the entry stays.
    """
    actions = {(action.method, action.path): action for action in ACTIONS}
    for revocation in left:
        event, call = revocation.event, revocation.call
        action = actions.get((revocation.method, revocation.action))
        if action is None:
            raise ReserveError(
                f"the reserve holds an action that this version does not know: {revocation.action!a}"
            )
        in_store = partial(revocations.settled, event.eid, Where.STORE)
        status, note = 200, ""
        try:
            try:
                running = action.run(administration, call)
                done = running if isinstance(running, Answer) else await running
                in_store()
            except StoreUnavailableError as error:
                _log.error("%s; the revocation is in force in memory", error)
                running = action.run(administration.in_memory(in_store), call)
                done = running if isinstance(running, Answer) else await running
            note = done.note
        except StoreUnavailableError:
            raise
        except StoreError as error:
            # Usually the store has it already. The trail records the store's answer.
            in_store()
            status, note = error.status, str(error)
        repeated = f"carried out at the hub's start: {note}"
        _log.warning("from the reserve: %s %s, %s", action.verb, action.resource, repeated)
        if not revocation.recorded:
            ended = event.completed(utc(clock()), resp=AuditResponse(status), note=repeated)
            trail.keep(ended, partial(revocations.settled, event.eid, Where.TRAIL))
