"""What one audit event says, and the JSON it is stored as.

An event is built by the hub, frozen, and stored once. A write or an upgrade has two rows under one
`eid`: its intent, committed before the call is forwarded, and its end (`complete`, or `unknown` when
the hub died in between). Everything else is a single `complete` row. The `eid` is also the `Audit-ID`
that the API server writes into its own log, which joins the two.

Text that a client controls is bounded here, where the event is made, so that a queue of events is
bounded too; what must not be readable later is masked in `audit.mask` before it reaches the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

import attrs
import msgspec

VERSION = 1

# A resource's name has at most 253 characters, a label value 63; a user agent of more than this is noise.
NAME_CHARACTERS_MAX = 1024
# exec scripts travel in the query and are kept, since operators need them; a request head may hold 1 MiB.
TARGET_CHARACTERS_MAX = 64 * 1024
# Arguments of one exec, the number and all of their text.
ARGV_ITEMS_MAX = 1024

# What an event weighs beside its free text: the objects themselves, rounded up.
_WEIGHT_BASE_BYTES = 2048


class Phase(StrEnum):
    """Where a call stands when the row is written."""

    INTENT = "intent"
    COMPLETE = "complete"
    UNKNOWN = "unknown"
    """The hub ended between the intent and the completion: what became of the call is not known here."""


class Kind(StrEnum):
    """What happened."""

    CALL = "call"
    """A Kubernetes API call; a denial is a call whose decision says deny."""
    AUTH_FAILED = "auth.failed"
    MALFORMED = "request.malformed"
    HEADER_SMUGGLING = "header_smuggling"
    """A client sent identity headers of its own."""
    TOKEN_ISSUED = "token.issued"  # noqa: S105 - the name of an event
    RELAY_CONNECTED = "relay.connected"
    RELAY_DISCONNECTED = "relay.disconnected"
    SESSION_KILLED = "session.killed"
    ADMIN = "admin.action"
    AUDIT_READ = "audit.read"
    AUDIT_GAP = "audit.gap"
    """The store was down; `dur_ms` says how long, `count` how many events have no row of their own."""
    HUB_STARTED = "hub.started"


class ActorType(StrEnum):
    AGENT = "agent"
    OPERATOR = "operator"
    RELAY = "relay"
    HUB = "hub"
    ANONYMOUS = "anonymous"


def text(value: bytes) -> str:
    r"""Decode what came off the wire; bytes that are no UTF-8 stay visible as `\xff`."""
    return value.decode("utf-8", "backslashreplace")


def utc(epoch_s: float) -> datetime:
    """Turn epoch seconds into the aware time an event carries."""
    return datetime.fromtimestamp(epoch_s, UTC)


def _bounded(value: str, characters_max: int) -> str:
    if len(value) > characters_max:
        value = f"{value[:characters_max]}…[{len(value) - characters_max} more characters]"
    # A lone surrogate (a file name of another encoding, say) has no UTF-8 and would fail the whole batch.
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def _name(value: str) -> str:
    return _bounded(value, NAME_CHARACTERS_MAX)


def _target(value: str) -> str:
    return _bounded(value, TARGET_CHARACTERS_MAX)


def _argv(values: tuple[str, ...]) -> tuple[str, ...]:
    kept: list[str] = []
    left = TARGET_CHARACTERS_MAX
    for number, value in enumerate(values):
        if number == ARGV_ITEMS_MAX or left <= 0:
            kept.append(f"…[{len(values) - number} more arguments]")
            break
        kept.append(_bounded(value, left))
        left -= len(value)
    return tuple(kept)


@attrs.frozen
class Actor:
    """Who did it."""

    type: ActorType
    name: str = attrs.field(default="", converter=_name)
    id: str = ""
    owner: str = attrs.field(default="", converter=_name)
    teams: tuple[str, ...] = ()
    credential: str = ""
    """Which credential, by its id or kind; never the credential."""
    jti: str = ""


@attrs.frozen
class Client:
    """Where the request came from."""

    ip: str = ""
    user_agent: str = attrs.field(default="", converter=_name)
    mode: str = ""


@attrs.frozen
class Cluster:
    id: str = ""
    name: str = attrs.field(default="", converter=_name)


@attrs.frozen
class Relay:
    instance: str = attrs.field(default="", converter=_name)
    version: str = attrs.field(default="", converter=_name)


@attrs.frozen
class Request:
    """The request as it came (`raw_target`) and as Kubernetes understands it."""

    method: str = attrs.field(default="", converter=_name)
    raw_target: str = attrs.field(default="", converter=_target)
    verb: str = ""
    group: str = attrs.field(default="", converter=_name)
    version: str = attrs.field(default="", converter=_name)
    resource: str = attrs.field(default="", converter=_name)
    subresource: str = attrs.field(default="", converter=_name)
    namespace: str = attrs.field(default="", converter=_name)
    name: str = attrs.field(default="", converter=_name)
    dry_run: bool = False
    body_bytes: int | None = None


@attrs.frozen
class Impersonated:
    """As whom the API server saw the call."""

    user: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen
class Decision:
    effect: str
    """`allow` or `deny`."""
    rule: str = ""
    policy: str = ""
    bundle: str = ""


@attrs.frozen
class Response:
    """What the client was answered."""

    status: int
    reason: str = attrs.field(default="", converter=_name)
    bytes: int | None = None
    upstream_ms: float | None = None
    processed: str = ""
    """Whether the API server may have acted: `yes`, `no` or `maybe`."""


@attrs.frozen
class Stream:
    """An exec, attach, port-forward, watch or log stream."""

    proto: str = ""
    command: tuple[str, ...] = attrs.field(default=(), converter=_argv)
    container: str = attrs.field(default="", converter=_name)
    tty: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    close_reason: str = attrs.field(default="", converter=_name)


@attrs.frozen
class Tunnel:
    """What the call went through on the way."""

    detaches: int = 0
    gap_ms: float = 0.0
    replayed: int = 0


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened; `seq` is the store's to give."""

    eid: str
    kind: Kind
    phase: Phase
    ts: datetime
    org: str = ""
    actor: Actor
    v: int = VERSION
    dur_ms: float | None = None
    client: Client | None = None
    cluster: Cluster | None = None
    relay: Relay | None = None
    req: Request | None = None
    impersonated: Impersonated | None = None
    decision: Decision | None = None
    resp: Response | None = None
    stream: Stream | None = None
    tunnel: Tunnel | None = None
    count: int = 1
    """How many happenings this event stands for; more than one only when a flood was aggregated."""
    note: str = attrs.field(default="", converter=_target)

    @property
    def agent(self) -> str:
        """The agent's name, empty when no agent did it."""
        return self.actor.name if self.actor.type is ActorType.AGENT else ""

    @property
    def cluster_name(self) -> str:
        return self.cluster.name if self.cluster is not None else ""

    @property
    def weight_bytes(self) -> int:
        """About what the event holds in memory, for the bound of a queue."""
        weight = _WEIGHT_BASE_BYTES + len(self.note)
        if self.req is not None:
            weight += len(self.req.raw_target) + len(self.req.name)
        if self.client is not None:
            weight += len(self.client.user_agent)
        if self.stream is not None:
            weight += sum(map(len, self.stream.command))
        return weight

    def completed(
        self,
        ts: datetime,
        *,
        resp: Response | None = None,
        stream: Stream | None = None,
        tunnel: Tunnel | None = None,
        relay: Relay | None = None,
        note: str = "",
    ) -> Event:
        """Make the event that ends this intent (or that is the single event of a read begun as this)."""
        return attrs.evolve(
            self,
            phase=Phase.COMPLETE,
            ts=ts,
            dur_ms=round((ts - self.ts).total_seconds() * 1000, 3),
            resp=resp,
            stream=stream if stream is not None else self.stream,
            tunnel=tunnel,
            relay=relay if relay is not None else self.relay,
            note=note or self.note,
        )


_SECTIONS = (Actor, Client, Cluster, Relay, Request, Impersonated, Decision, Response, Stream, Tunnel)
_FIELDS: dict[type, tuple[str, ...]] = {
    record: tuple(field.name for field in attrs.fields(record)) for record in _SECTIONS
}
_EVENT_FIELDS = ("v", *(field.name for field in attrs.fields(Event) if field.name not in ("v", "count")))
_encoder = msgspec.json.Encoder()


def encode(event: Event) -> bytes:
    """Write the event as one line of JSON; what is empty is left out (zero and false are said)."""
    plain: dict[str, object] = {}
    for name in _EVENT_FIELDS:
        value = getattr(event, name)
        if value is None or value == "":
            continue
        fields = _FIELDS.get(type(value))
        plain[name] = value if fields is None else _section(value, fields)
    if event.count != 1:
        plain["count"] = event.count
    return _encoder.encode(plain)


def _section(section: object, fields: tuple[str, ...]) -> dict[str, object]:
    return {
        name: value
        for name in fields
        if (value := getattr(section, name)) is not None and value != "" and value != () and value != {}
    }
