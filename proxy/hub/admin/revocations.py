"""Revocations that the trail or the store could not take: each is durable in the reserve until both have it.

An entry of the reserve is the request that an operator made, with the event that tells of it. The hub acts on
it at once. When trail and store have it, it is needless; when all entries are, the reserve is cleared. At a
start the entries are carried out once more, by the same actions: a lock of a locked agent is refused and
changes nothing. Between an entry and its clearing nothing can be granted: the trail takes no intent, or the
store no other change, and the reserve is cleared before either does again.
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
from proxy.hub.admin.actions.administration import ACTIONS, Administration
from proxy.hub.admin.actions.answers import Done
from proxy.hub.admin.actions.call import Call
from proxy.hub.home.reserve import Reserve, ReserveError
from proxy.hub.store.errors import StoreError, StoreUnavailableError

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
    """Who has to have a revocation."""

    TRAIL = auto()
    STORE = auto()


class Trail(Protocol):
    """What this needs of the recorder."""

    def keep(self, event: Event, settled: Callable[[], None]) -> None:
        """Write an event once, as soon as the trail can be written."""
        ...


class Revocations:
    """The reserve, and what is known of its entries. Its methods may be called in any thread."""

    def __init__(self, reserve: Reserve) -> None:
        self._reserve = reserve
        self._lock = threading.Lock()
        # For each entry of this process, by `eid`: who still lacks it. Bounded by the reserve.
        self._awaited: dict[str, set[Where]] = {}

    def keep(self, revocation: Revocation) -> None:
        """Make a revocation durable; raises ReserveError."""
        payload = msgspec.json.encode(revocation)
        with self._lock:
            self._reserve.add(payload)
            self._awaited[revocation.event.eid] = _awaited(revocation)

    def settled(self, eid: str, where: Where) -> None:
        """Trail or store has a revocation of this process; the last one of all clears the reserve."""
        with self._lock:
            if eid not in self._awaited:
                return
            self._awaited[eid].discard(where)
            if any(self._awaited.values()):
                return
            try:
                if self._reserve.clear(self._is_needless):
                    self._awaited.clear()
            except ReserveError as error:
                _log.error("%s: its revocations are carried out again at the next start", error)

    def left(self) -> list[Revocation]:
        """What the reserve holds when the hub starts; raises ReserveError."""
        with self._lock:
            found = list(map(_decoded, self._reserve.entries()))
            for revocation in found:
                self._awaited.setdefault(revocation.event.eid, _awaited(revocation))
        return found

    def _is_needless(self, payload: bytes) -> bool:
        # An unknown entry belongs to another hub that still finishes its calls.
        return self._awaited.get(_decoded(payload).event.eid) == set()


def _awaited(revocation: Revocation) -> set[Where]:
    return {Where.STORE} if revocation.recorded else {Where.TRAIL, Where.STORE}


def _decoded(payload: bytes) -> Revocation:
    try:
        return msgspec.json.decode(payload, type=Revocation)
    except msgspec.DecodeError as error:
        raise ReserveError(
            f"the reserve holds what this version cannot read ({error}): start the version that wrote it, "
            "and free some of the disk"
        ) from error


async def carry_out_again(
    revocations: Revocations,
    left: Sequence[Revocation],
    administration: Administration,
    trail: Trail,
    clock: Callable[[], float] = time.time,
) -> None:
    """Carry out what an earlier run of the hub has left in the reserve, before any request is served.

    Raises StoreUnavailableError where a revocation cannot even be put in force in memory. The hub does not
    start then, and the entry stays.
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
                done = running if isinstance(running, Done) else await running
                in_store()
            except StoreUnavailableError as error:
                _log.error("%s; what was revoked stays in force in memory", error)
                running = action.run(administration.in_memory(in_store), call)
                done = running if isinstance(running, Done) else await running
            note = done.note
        except StoreUnavailableError:
            raise
        except StoreError as error:
            # Usually the store has it already. The trail records the store's answer.
            in_store()
            status, note = error.status, str(error)
        told = f"carried out at the hub's start: {note}"
        _log.warning("from the reserve: %s %s, %s", action.verb, action.resource, told)
        if not revocation.recorded:
            ended = event.completed(utc(clock()), resp=AuditResponse(status), note=told)
            trail.keep(ended, partial(revocations.settled, event.eid, Where.TRAIL))
