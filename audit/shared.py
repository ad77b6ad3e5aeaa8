"""What events have in common, so that the trail's file has it once.

Two thirds of an event say who, from where, by which relay, as whom and by which rule: the same for all that
an agent does with one token. Encoded and written with every event, that is most of what the trail costs. So
an event is a row with what is its own, and the number of another row with the rest. A reader puts the two
together again, and gets the bytes that `audit.record.encode` makes of the whole.

The writer remembers what it has written. It forgets after SPAN_EVENTS, so that whoever removes the beginning
of a trail knows by numbers alone which common parts nobody needs any more, whatever the other writers do. And
it forgets when anybody else has written: that may have been an older copy, put back in the file's place, and
in that a number is, or will be, of another part.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

import msgspec

from audit.record import (
    VERSION,
    Actor,
    Client,
    Cluster,
    Decision,
    Event,
    Impersonated,
    Record,
    Relay,
    Request,
    Response,
    Stream,
    Tunnel,
    encode,
)

# An event's common part was written at most so many events before it. A file has this number in a trigger, so
# to change it takes another version of the schema.
SPAN_EVENTS = 10_000
# What a writer remembers: some 4 MiB. One above it is written again.
_REMEMBERED_MAX = 1024
# What a reader has decoded of late.
_DECODED_MAX = 256

# In the order in which `encode` writes them.
_MEMBERS = ("v", *Event.__struct_fields__)


class _Common(Record, frozen=True, kw_only=True, tag_field="v", tag=VERSION):
    org: str = ""
    actor: Actor
    client: Client | None = None
    cluster: Cluster | None = None
    relay: Relay | None = None
    impersonated: Impersonated | None = None
    decision: Decision | None = None


class _Own(Record, frozen=True):
    """Beside what has columns: eid, kind, phase and time."""

    dur_ms: float | None = None
    req: Request | None = None
    resp: Response | None = None
    stream: Stream | None = None
    tunnel: Tunnel | None = None
    count: int = 1
    note: str = ""


members_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def own_part(event: Event) -> bytes:
    """The JSON of what no other event says, but for the brace that begins it.

    Without that it is no JSON. An `audit list --follow` of an earlier hawse, left running, takes this for the
    whole, and so ends with an error where it would print events that do not say who did them.
    """
    own = _Own(event.dur_ms, event.req, event.resp, event.stream, event.tunnel, event.count, event.note)
    return encode(own)[1:]


def common_part(event: Event) -> bytes:
    """The JSON of what other events say as well."""
    return encode(
        _Common(
            org=event.org,
            actor=event.actor,
            client=event.client,
            cluster=event.cluster,
            relay=event.relay,
            impersonated=event.impersonated,
            decision=event.decision,
        )
    )


def whole(own: bytes, common: bytes, *, eid: str, kind: str, phase: str, ts: datetime) -> bytes:
    """The event's JSON as `encode` makes it, from its parts and its columns."""
    members: dict[str, object] = {
        **_common_members(common),
        **members_of(b"{" + own),
        "eid": eid,
        "kind": kind,
        "phase": phase,
        "ts": ts,
    }
    ordered = {name: members.pop(name) for name in _MEMBERS if name in members}
    # What a newer hawse has added stands at the end.
    return msgspec.json.encode({**ordered, **members})


@lru_cache(_DECODED_MAX)
def _common_members(common: bytes) -> dict[str, msgspec.Raw]:
    return members_of(common)


class CommonParts:
    """Which common parts are in a trail's file, as far as one writer remembers. It `begin`s each batch."""

    def __init__(self) -> None:
        # By the sections' identity, which are kept alive with it: most events share theirs with others.
        self._by_sections: dict[tuple[int, ...], tuple[int, tuple[object, ...]]] = {}
        self._by_json: dict[bytes, int] = {}
        # None of those was written before the event behind this one.
        self._since = 0
        self._version = 0
        self._newest = self._next = 0
        self.unwritten: list[tuple[int, int, bytes]] = []
        """What the batch has found to be new: rows of number, newest event before the batch, and JSON."""

    def forget(self) -> None:
        """Remember nothing: the file may be another, or is as it was before the batch."""
        self._by_sections.clear()
        self._by_json.clear()

    def begin(self, newest: int, highest: int, version: int, events: int) -> None:
        """Begin a batch of so many events, at most SPAN_EVENTS, while no other writer can write.

        `newest` is the last event's sequence number, `highest` the last common part's, and `version` changes
        when another connection has written. Raises ValueError.
        """
        if events > SPAN_EVENTS:
            raise ValueError(f"{events} events at once, at most {SPAN_EVENTS} can be written so")
        if (
            version != self._version
            or newest + events - self._since > SPAN_EVENTS
            or len(self._by_json) >= _REMEMBERED_MAX
        ):
            self.forget()
        elif len(self._by_sections) >= _REMEMBERED_MAX:
            self._by_sections.clear()
        if not self._by_json:
            self._since = newest
        self._version = version
        self._newest, self._next = newest, highest + 1
        self.unwritten = []

    def number(self, event: Event) -> int:
        """The number of the event's common part, which may be one of the `unwritten`."""
        sections = (
            event.org,
            event.actor,
            event.client,
            event.cluster,
            event.relay,
            event.impersonated,
            event.decision,
        )
        identity = tuple(map(id, sections))
        known = self._by_sections.get(identity)
        if known is not None:
            return known[0]
        json = common_part(event)
        number = self._by_json.get(json)
        if number is None:
            number = self._by_json[json] = self._next
            self._next += 1
            self.unwritten.append((number, self._newest, json))
        self._by_sections[identity] = number, sections
        return number
