"""Measures how much each agent adds to the trail's file, so that no agent can fill its disk.

A row is charged the space that SQLite uses for it. Rows are in pages of one b-tree, in insertion order, and a
row that does not fit into the rest of a page starts a new page. So rows of slightly more than half a page
take twice their size. Each row is therefore charged for the space that it may leave empty, at most two pages.
An agent cannot choose rows that take much more than they are charged. Nor can it increase another agent's
charge: the charge of a row depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from audit.record import ActorType, Event

# SQLite's default, which a file keeps from its creation.
PAGE_BYTES = 4096
# The space for rows in a page, and the part of a longer row that stays in it
# (https://www.sqlite.org/fileformat2.html, "B-tree Pages"): the rest is in overflow pages.
_ROOM_BYTES = PAGE_BYTES - 8
_ROW_BYTES_MAX = PAGE_BYTES - 35
_REST_BYTES = PAGE_BYTES - 4
_LEFT_BYTES_MIN = (PAGE_BYTES - 12) * 32 // 255 - 23
# An event's columns besides its names and its JSON, with SQLite's lengths: eid, kind, phase, time and
# numbers.
_EVENT_BYTES = 90
# The same for a common part.
_COMMON_BYTES = 24

# An agent's id and name.
Agent = tuple[str, str]


def taken_bytes(row_bytes: int) -> int:
    """Bytes of the file that a row uses, including page space that it may leave empty."""
    rest = 0
    if row_bytes > _ROW_BYTES_MAX:
        left = _LEFT_BYTES_MIN + (row_bytes - _LEFT_BYTES_MIN) % _REST_BYTES
        left = left if left <= _ROW_BYTES_MAX else _LEFT_BYTES_MIN
        rest = -(-(row_bytes - left) // _REST_BYTES)
        row_bytes = left
    taken = row_bytes * PAGE_BYTES // (_ROOM_BYTES - row_bytes)
    return rest * PAGE_BYTES + (taken if taken < 2 * PAGE_BYTES else 2 * PAGE_BYTES)


def shares(
    events: Sequence[Event],
    own: Sequence[bytes],
    common: Iterable[int],
    written: Iterable[tuple[int, int, bytes]],
    taken: Callable[[int], int] = taken_bytes,
) -> dict[Agent, int]:
    """How much a batch adds to the trail for each agent.

    For each event: its `own` part and the number of its `common` part. `written` are the new common parts;
    each is charged to the first event that refers to it. `taken` converts the bytes of a row to those of the
    disk.
    """
    sizes = {number: taken(_COMMON_BYTES + len(json)) for number, _, json in written}
    found: dict[Agent, int] = {}
    for event, body, number in zip(events, own, common, strict=True):
        actor = event.actor
        if actor.type is ActorType.AGENT:
            agent = actor.id, actor.name
            names = len(actor.name) + (len(event.cluster.name) if event.cluster is not None else 0)
            size = taken(_EVENT_BYTES + names + len(body)) + sizes.pop(number, 0)
            found[agent] = found.get(agent, 0) + size
    return found
