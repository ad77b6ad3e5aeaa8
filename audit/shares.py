"""What each agent adds to the trail's file, so that none of them can fill its disk.

A row is charged what SQLite takes for it. Rows stand in pages of one b-tree, in the order in which they came,
and a row that does not fit into the rest of a page begins the next one: rows of a little more than half a
page take twice what they have. So a row is charged in proportion to what it may leave empty, two pages at the
most, and an agent cannot choose rows that take much more than it is charged. Nor can it have another one
charged for them: what a row costs depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from audit.record import ActorType, Event

# SQLite's default, which a file keeps from the day it is made.
PAGE_BYTES = 4096
# What a page has for rows, and what of a longer row stands in it (https://www.sqlite.org/fileformat2.html,
# "B-tree Pages"): the rest is in pages of its own.
_ROOM_BYTES = PAGE_BYTES - 8
_ROW_BYTES_MAX = PAGE_BYTES - 35
_REST_BYTES = PAGE_BYTES - 4
_LEFT_BYTES_MIN = (PAGE_BYTES - 12) * 32 // 255 - 23
# An event's columns beside its names and its JSON, with SQLite's lengths: eid, kind, phase, time and numbers.
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
) -> dict[Agent, int]:
    """What a batch adds to the file for each agent.

    Of each event its `own` part and the number of its `common` part, and the common parts that were
    `written` with them, which the first event of each is charged for.
    """
    sizes = {number: taken_bytes(_COMMON_BYTES + len(json)) for number, _, json in written}
    found: dict[Agent, int] = {}
    for event, body, number in zip(events, own, common, strict=True):
        actor = event.actor
        if actor.type is ActorType.AGENT:
            agent = actor.id, actor.name
            names = len(actor.name) + (len(event.cluster.name) if event.cluster is not None else 0)
            size = taken_bytes(_EVENT_BYTES + names + len(body)) + sizes.pop(number, 0)
            found[agent] = found.get(agent, 0) + size
    return found
