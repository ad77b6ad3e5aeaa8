"""Common parts of events, which the trail's file stores once.

Two thirds of an event say who, from where, by which relay, as whom and by which rule. These are the same for
all calls of an agent with one token. Encoding and writing them with every event would be most of the trail's
cost. So an event is a row with its own part, and the number of another row with the common part. A reader
joins the two, and gets the bytes that `audit.record.encode` makes of the whole event.

The writer memoizes the parts that it has written, for SPAN_EVENTS events. So a prune can tell from the
numbers alone which common parts are unused, independent of other writers. The memo is also dropped if another
connection has written. That may mean that an older copy was put in the file's place, in which a number
belongs, or will belong, to another part.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

import msgspec

from audit.record import (
    VERSION,
    Actor,
    Approval,
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
from audit.schema import SPAN_EVENTS

# Maximum common parts that a writer memoizes: some 4 MiB. Beyond it, parts are written again.
_MEMO_MAX = 1024
# Maximum decoded common parts that a reader memoizes.
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
    """The own part, without the columns: eid, kind, phase and time."""

    dur_ms: float | None = None
    req: Request | None = None
    resp: Response | None = None
    stream: Stream | None = None
    tunnel: Tunnel | None = None
    approval: Approval | None = None
    serves: str = ""
    count: int = 1
    note: str = ""


members_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def own_part(event: Event) -> bytes:
    """The JSON of an event's own part, without the opening brace.

    So it is not valid JSON on purpose. A running `audit list --follow` of an earlier hawse takes it for the
    whole event. It then fails with an error, instead of printing events without their actors.
    """
    own = _Own(
        event.dur_ms,
        event.req,
        event.resp,
        event.stream,
        event.tunnel,
        event.approval,
        event.serves,
        event.count,
        event.note,
    )
    return encode(own)[1:]


def common_part(event: Event) -> bytes:
    """The JSON of the part that events share."""
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
    # Members that a newer hawse has added come last.
    return msgspec.json.encode({**ordered, **members})


@lru_cache(_DECODED_MAX)
def _common_members(common: bytes) -> dict[str, msgspec.Raw]:
    return members_of(common)


class CommonParts:
    """The common parts in a trail's file, as far as one writer has them memoized. It calls `begin` for each
    batch.
    """

    def __init__(self) -> None:
        # Keyed by the sections' identities, and keeps the sections alive: most events share theirs with
        # others.
        self._by_sections: dict[tuple[int, ...], tuple[int, tuple[object, ...]]] = {}
        self._by_json: dict[bytes, int] = {}
        # All parts in the memo were written after this event.
        self._since = 0
        self._version = 0
        self._newest = self._next = 0
        self.unwritten: list[tuple[int, int, bytes]] = []
        """The new parts of the batch, as rows of number, newest event before the batch, and JSON."""

    def forget(self) -> None:
        """Drop the memo: the file may be another one, or the batch was rolled back."""
        self._by_sections.clear()
        self._by_json.clear()

    def begin(self, newest: int, highest: int, version: int, events: int) -> None:
        """Begin a batch of at most SPAN_EVENTS events, while no other writer can write.

        `newest` is the last event's sequence number, `highest` the last common part's, and `version` changes
        if another connection has written. Raises ValueError for a larger batch.
        """
        if events > SPAN_EVENTS:
            raise ValueError(f"{events} events exceed the {SPAN_EVENTS} of a batch")
        if (
            version != self._version
            or newest + events - self._since > SPAN_EVENTS
            or len(self._by_json) >= _MEMO_MAX
        ):
            self.forget()
        elif len(self._by_sections) >= _MEMO_MAX:
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
