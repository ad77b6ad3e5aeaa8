"""The audit event and its stored JSON.

An event is built by the hub, frozen, and stored once. A write or an upgrade has two rows with one `eid`: its
intent, committed before the call is forwarded, and its end (`complete`, or `unknown` if the hub died in
between). All other events have a single `complete` row, except long reads, which first get a `start` row. The
API server writes the `eid` into its own log as `Audit-ID`, which joins the two logs.

Text from clients is bounded where the event is made (`audit.bounds`). Secrets in it are masked before the
event reaches the disk (`audit.mask`).

These are msgspec structs and not attrs classes, since an event is made for every call. Building one takes a
fifth of the time, and C encodes the whole event in one call, instead of one dictionary per section (1 µs
instead of 7). `omit_defaults` leaves out empty fields. It compares with a default in the class, so a field
whose zero or false must be written gets its default from a factory. `gc=False` is safe because no event is
part of a cycle: the garbage collector skips the thousands in the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256

import msgspec
from msgspec import field
from msgspec.structs import force_setattr, replace

from audit.bounds import bound, bounded_argv

VERSION = 1

# The protocol of a stream without an upgrade. No upgrade protocol has this name.
_NO_UPGRADE = "http"

# An event's size in memory besides its free text: the objects themselves, rounded up.
_WEIGHT_BASE_BYTES = 2048


class Phase(StrEnum):
    """The state of a call when the row is written."""

    INTENT = "intent"
    START = "start"
    """The first row of a long read, written before its end, like a write's intent."""
    COMPLETE = "complete"
    UNKNOWN = "unknown"
    """The hub ended between the first row and the completion: the call's result is unknown."""

    @property
    def opens(self) -> bool:
        """Whether another row follows, which ends the call."""
        return self is Phase.INTENT or self is Phase.START


class Kind(StrEnum):
    """The kind of event."""

    CALL = "call"
    """A Kubernetes API call; a denial is a call whose decision says deny."""
    PREVIEW = "preview"
    """A call that the hub made under an agent's name, to find what a call of that agent would do."""
    REQUEST_OPENED = "request.opened"
    """An agent's call asked for approval."""
    REQUEST_DECIDED = "request.decided"
    """A person approved or denied it."""
    REQUEST_USED = "request.used"
    """A hub took the approval for a call, spent it, or returned it unused."""
    REQUEST_ENDED = "request.ended"
    """It expired, became stale, or was cancelled or revoked."""
    AUTH_FAILED = "auth.failed"
    MALFORMED = "request.malformed"
    HEADER_SMUGGLING = "header_smuggling"
    """A client sent identity headers of its own."""
    TOKEN_ISSUED = "token.issued"  # noqa: S105 - the name of an event
    KEY_REGISTERED = "key.registered"
    """An agent registered a key with an enrolment code."""
    RELAY_CONNECTED = "relay.connected"
    RELAY_DISCONNECTED = "relay.disconnected"
    RELAY_NEW = "relay.new"
    """A relay connected with an instance name or from an address that is new for its cluster."""
    RELAY_REFUSED = "relay.refused"
    """A relay with a valid key was refused: it exceeds the relay limit, repeats an instance name, or is in
    another Kubernetes cluster than its cluster is pinned to.
    """
    RELAY_PINNED = "relay.pinned"
    """A cluster was pinned to the Kubernetes cluster that its relay states; the note has the UID."""
    SESSION_KILLED = "session.killed"
    ADMIN = "admin.action"
    CONSOLE_OPENED = "console.opened"
    """A person signed in to the console with a one-time code."""
    AUDIT_READ = "audit.read"
    CONSOLE_READ = "console.read"
    """A session of the console read anything but the trail; `count` says how often."""
    AUDIT_PRUNED = "audit.pruned"
    """The oldest events were removed; the note has their numbers and checksum."""
    AUDIT_GAP = "audit.gap"
    """The store was down; `dur_ms` says how long, and `count` how many events have no row."""
    AUDIT_LATE = "audit.late"
    """The end of a call that another hub had closed as `unknown`; the note has the call's id."""
    AUDIT_DISK = "audit.disk"
    """The disk of the trail is nearly full; the note says how full."""
    DIRECTORY_ROLLED_BACK = "directory.rolled_back"
    """The database has lost changes that the hub had applied; the note says which version."""
    HUB_STARTED = "hub.started"


class ActorType(StrEnum):
    AGENT = "agent"
    OPERATOR = "operator"
    RELAY = "relay"
    HUB = "hub"
    ANONYMOUS = "anonymous"


def text(value: bytes) -> str:
    r"""Decode bytes from the wire; invalid UTF-8 stays visible as `\xff`."""
    return value.decode("utf-8", "backslashreplace")


def utc(epoch_s: float) -> datetime:
    """Convert epoch seconds to the time zone-aware time of an event."""
    return datetime.fromtimestamp(epoch_s, UTC)


class Record(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An event or a part of one."""


class Actor(Record, frozen=True):
    """The actor of an event."""

    type: ActorType
    name: str = ""
    id: str = ""
    owner: str = ""
    teams: tuple[str, ...] = ()
    credential: str = ""
    """The credential's id or kind; never the credential itself."""
    jti: str = ""

    def __post_init__(self) -> None:
        bound(self, "name", "owner")


class Client(Record, frozen=True):
    """The origin of the request."""

    ip: str = ""
    user_agent: str = ""
    mode: str = ""
    claimed_reason: str = ""
    """The reason that the agent states for its call. Nothing verifies it."""

    def __post_init__(self) -> None:
        bound(self, "user_agent")
        if self.claimed_reason:
            bound(self, "claimed_reason")


class Cluster(Record, frozen=True):
    id: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        bound(self, "name")


class Relay(Record, frozen=True):
    instance: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        bound(self, "instance", "version")


class Request(Record, frozen=True):
    """The request as received (`raw_target`) and as Kubernetes understands it."""

    method: str = ""
    raw_target: str = ""
    verb: str = ""
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    dry_run: bool = field(default_factory=bool)
    body_bytes: int | None = None
    target_bytes: int | None = None
    """The target's length, set only if it is cut."""
    target_sha256: str = ""
    """SHA-256 of the whole masked target, set only if it is cut. See `shortened`."""
    target_kept: int | None = None
    """Never stored: how much of the target to keep after masking."""

    def shortened(self) -> Request:
        """The request in stored form, with its target cut to `target_kept`.

        The request must be masked already. Then the target's checksum reveals nothing about a secret in it,
        and no secret is cut into a piece that does not look like one.
        """
        kept, target = self.target_kept, self.raw_target
        if kept is None or len(target) <= kept:
            return replace(self, target_kept=None, target_bytes=None)
        return replace(
            self,
            raw_target=f"{target[:kept]}…",
            target_sha256=sha256(target.encode("utf-8")).hexdigest(),
            target_kept=None,
        )

    def __post_init__(self) -> None:
        # All fields that clients choose; the verb is one of Hawse's, or the method.
        bound(
            self, "method", "raw_target", "group", "version", "resource", "subresource", "namespace", "name"
        )


class Impersonated(Record, frozen=True):
    """The identity under which the API server saw the call."""

    user: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = {}


class Decision(Record, frozen=True):
    effect: str
    """`allow`, `deny` or `ask`."""
    rule: str = ""
    policy: str = ""
    bundle: str = ""


class Approval(Record, frozen=True):
    """The request for approval that an event belongs to.

    Neither its plan nor its effect: a short secret in a body could be guessed from their digests.
    """

    request: str
    """Its id."""
    shown: str = ""
    """The salted digest of what an approver sees."""
    by: str = ""
    """The person who decided or revoked it."""

    def __post_init__(self) -> None:
        bound(self, "request", "by")


class Response(Record, frozen=True):
    """The answer to the client."""

    status: int
    reason: str = ""
    bytes: int | None = None
    upstream_ms: float | None = None
    processed: str = ""
    """Whether the API server may have acted: `yes`, `no` or `maybe`."""

    def __post_init__(self) -> None:
        if self.reason:
            bound(self, "reason")


class Stream(Record, frozen=True):
    """An exec, attach, port-forward, watch or log stream."""

    proto: str = ""
    """`http`, or the requested upgrade protocol (`proto_of`)."""
    command: tuple[str, ...] = ()
    container: str = ""
    tty: bool = field(default_factory=bool)
    bytes_in: int = field(default_factory=int)
    bytes_out: int = field(default_factory=int)
    close_reason: str = ""

    @property
    def upgraded(self) -> bool:
        """Whether its request asked for an upgrade."""
        return self.proto not in {"", _NO_UPGRADE}

    def __post_init__(self) -> None:
        if self.command:
            force_setattr(self, "command", bounded_argv(self.command))
        bound(self, "proto", "container", "close_reason")


def proto_of(upgrade: bytes | None) -> str:
    """The value of `Stream.proto` for the upgrade that the client requests; None means no upgrade."""
    return _NO_UPGRADE if upgrade is None else text(upgrade).lower()


class Tunnel(Record, frozen=True):
    """The tunnel's disturbances during the call."""

    detaches: int = field(default_factory=int)
    gap_ms: float = field(default_factory=float)
    replayed: int = field(default_factory=int)
    moved_from: str = ""
    """The relay that stopped responding to a read, which another relay then answered."""

    def __post_init__(self) -> None:
        if self.moved_from:
            bound(self, "moved_from")


class Event(Record, frozen=True, kw_only=True, tag_field="v", tag=VERSION):
    """One event; the store assigns `seq`."""

    eid: str
    kind: Kind
    phase: Phase
    ts: datetime
    org: str = ""
    actor: Actor
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
    approval: Approval | None = None
    serves: str = ""
    """The id of the call for which a preview was made, or a request was opened."""
    count: int = 1
    """How many occurrences this event stands for; more than one for a flood, and for merged reads."""
    note: str = ""

    def __post_init__(self) -> None:
        if self.note:
            bound(self, "note")

    @property
    def agent(self) -> str:
        """The agent's name; empty if the actor is not an agent."""
        return self.actor.name if self.actor.type is ActorType.AGENT else ""

    @property
    def cluster_name(self) -> str:
        return self.cluster.name if self.cluster is not None else ""

    @property
    def weight_bytes(self) -> int:
        """The event's approximate size in memory, for the bound of a queue."""
        weight = _WEIGHT_BASE_BYTES + len(self.note)
        if self.req is not None:
            weight += len(self.req.raw_target) + len(self.req.name)
        if self.client is not None:
            weight += len(self.client.user_agent) + len(self.client.claimed_reason)
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
        impersonated: Impersonated | None = None,
        note: str = "",
        dur_ms: float | None = None,
    ) -> Event:
        """Make the event that ends this intent (or the single event of a read that began as this one).

        `dur_ms` comes from a monotonic clock. Without it the two times are subtracted, with 0 if the clock
        went back.
        """
        if dur_ms is None:
            dur_ms = max(0.0, (ts - self.ts).total_seconds() * 1000)
        return replace(
            self,
            phase=Phase.COMPLETE,
            ts=ts,
            dur_ms=round(dur_ms, 3),
            resp=resp,
            stream=stream if stream is not None else self.stream,
            tunnel=tunnel,
            relay=relay if relay is not None else self.relay,
            impersonated=impersonated if impersonated is not None else self.impersonated,
            note=note or self.note,
        )


_encoder = msgspec.json.Encoder()


def encode(record: Record) -> bytes:
    """Encode an event, or a part of one, as JSON without empty fields (zero and false are written)."""
    return _encoder.encode(record)
