"""What one audit event says, and the JSON it is stored as.

An event is built by the hub, frozen, and stored once. A write or an upgrade has two rows under one
`eid`: its intent, committed before the call is forwarded, and its end (`complete`, or `unknown` when
the hub died in between). Everything else is a single `complete` row, but for a read that lasts: that has a
`start` row first. The `eid` is also the `Audit-ID` that the API server writes into its own log, which joins
the two.

Text that a client controls is bounded here, where the event is made, so that a queue of events is
bounded too; what must not be readable later is masked in `audit.mask` before it reaches the disk.

These are msgspec's structs and not attrs classes like all else, since an event is made for every call: one is
built in a fifth of the time, and the JSON of the whole is written in C, in one call instead of a dictionary a
section (1 µs instead of 7). What is empty is left out by `omit_defaults`; it compares with a default that
stands in the class, so a zero or a false that is to be said comes from a factory. `gc=False` is right because
no event is part of a cycle: the collector need not look at the thousands that are queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256

import msgspec
from msgspec import field
from msgspec.structs import force_setattr, replace

VERSION = 1

# A resource's name has at most 253 characters, a label value 63; a user agent of more than this is noise.
NAME_CHARACTERS_MAX = 1024
# exec scripts travel in the query and are kept, since operators need them; a request head may hold 1 MiB.
TARGET_CHARACTERS_MAX = 64 * 1024
# As many arguments as fit into such a target, each at least `command=&`. All their text has that bound too.
ARGV_ITEMS_MAX = TARGET_CHARACTERS_MAX // 9
# Selectors have some hundred characters. A longer query of a read adds no evidence and fills the disk.
READ_QUERY_CHARACTERS_MAX = 2048
# Kept of the target of a request that is refused before policy decides: enough to show the attempt.
EXCERPT_CHARACTERS_MAX = 1024

# The protocol of a stream without an upgrade. No upgrade protocol has this name.
_NO_UPGRADE = "http"

# What an event weighs beside its free text: the objects themselves, rounded up.
_WEIGHT_BASE_BYTES = 2048


class Phase(StrEnum):
    """Where a call stands when the row is written."""

    INTENT = "intent"
    START = "start"
    """The first row of a read that lasts, written before its end as a write's intent is."""
    COMPLETE = "complete"
    UNKNOWN = "unknown"
    """The hub ended between the first row and the completion: what became of the call is not known here."""

    @property
    def opens(self) -> bool:
        """Whether another row is to follow, which ends the call."""
        return self is Phase.INTENT or self is Phase.START


class Kind(StrEnum):
    """What happened."""

    CALL = "call"
    """A Kubernetes API call; a denial is a call whose decision says deny."""
    AUTH_FAILED = "auth.failed"
    MALFORMED = "request.malformed"
    HEADER_SMUGGLING = "header_smuggling"
    """A client sent identity headers of its own."""
    TOKEN_ISSUED = "token.issued"  # noqa: S105 - the name of an event
    KEY_REGISTERED = "key.registered"
    """An agent registered a key of its own, by a code."""
    RELAY_CONNECTED = "relay.connected"
    RELAY_DISCONNECTED = "relay.disconnected"
    RELAY_NEW = "relay.new"
    """A relay came under an instance's name or from an address that its cluster had not used before."""
    RELAY_REFUSED = "relay.refused"
    """A relay with a good key was turned away: one more than may be here, a second one of its name, or one in
    another Kubernetes cluster than its cluster is pinned to."""
    RELAY_PINNED = "relay.pinned"
    """A cluster was pinned to the Kubernetes cluster that its relay states; the note has the UID."""
    SESSION_KILLED = "session.killed"
    ADMIN = "admin.action"
    AUDIT_READ = "audit.read"
    AUDIT_PRUNED = "audit.pruned"
    """The oldest events were removed; the note says which, and has their sum."""
    AUDIT_GAP = "audit.gap"
    """The store was down; `dur_ms` says how long, `count` how many events have no row of their own."""
    AUDIT_DISK = "audit.disk"
    """The disk of the trail is nearly full; the note says how full."""
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


def _bound(record: Record, *names: str) -> None:
    """Bound the named texts of a record that is just made; nearly all are short and plain as they come."""
    values = [getattr(record, name) for name in names]
    every = "".join(values)
    if len(every) <= NAME_CHARACTERS_MAX and every.isascii():
        return
    for name, value in zip(names, values, strict=True):
        force_setattr(record, name, _bounded(value, _CHARACTERS_MAX.get(name, NAME_CHARACTERS_MAX)))


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


# Of a masked target, in which a character may be written as three (`%5B`). A target has TARGET_CHARACTERS_MAX
# before: to cut it once it is masked would hide what was run behind anything that looks like a secret.
_MASKED_CHARACTERS_MAX = 3 * TARGET_CHARACTERS_MAX
# All other texts are kept to NAME_CHARACTERS_MAX.
_CHARACTERS_MAX = {"raw_target": _MASKED_CHARACTERS_MAX, "note": TARGET_CHARACTERS_MAX}


class Record(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A part of an event, or the whole."""


class Actor(Record, frozen=True):
    """Who did it."""

    type: ActorType
    name: str = ""
    id: str = ""
    owner: str = ""
    teams: tuple[str, ...] = ()
    credential: str = ""
    """Which credential, by its id or kind; never the credential."""
    jti: str = ""

    def __post_init__(self) -> None:
        _bound(self, "name", "owner")


class Client(Record, frozen=True):
    """Where the request came from."""

    ip: str = ""
    user_agent: str = ""
    mode: str = ""

    def __post_init__(self) -> None:
        _bound(self, "user_agent")


class Cluster(Record, frozen=True):
    id: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        _bound(self, "name")


class Relay(Record, frozen=True):
    instance: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        _bound(self, "instance", "version")


class Request(Record, frozen=True):
    """The request as it came (`raw_target`) and as Kubernetes understands it."""

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
    """How long the target was; only where some of it is cut."""
    target_sha256: str = ""
    """Of the whole target, masked; only where some of it is cut. See `shortened`."""
    target_kept: int | None = None
    """Never stored: so much of the target is kept, once it is masked."""

    def shortened(self) -> Request:
        """The request as it is stored, with no more of its target than is to be kept.

        Made of a masked request: so the sum of a target says nothing of a secret in it, and no secret is cut
        into a piece that looks like none.
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
        # All that a client chooses; the verb is one of ours, or the method.
        _bound(
            self, "method", "raw_target", "group", "version", "resource", "subresource", "namespace", "name"
        )


class Impersonated(Record, frozen=True):
    """As whom the API server saw the call."""

    user: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = {}


class Decision(Record, frozen=True):
    effect: str
    """`allow` or `deny`."""
    rule: str = ""
    policy: str = ""
    bundle: str = ""


class Response(Record, frozen=True):
    """What the client was answered."""

    status: int
    reason: str = ""
    bytes: int | None = None
    upstream_ms: float | None = None
    processed: str = ""
    """Whether the API server may have acted: `yes`, `no` or `maybe`."""

    def __post_init__(self) -> None:
        if self.reason:
            _bound(self, "reason")


class Stream(Record, frozen=True):
    """An exec, attach, port-forward, watch or log stream."""

    proto: str = ""
    """`http`, or the protocol that was asked for in its place (`proto_of`)."""
    command: tuple[str, ...] = ()
    container: str = ""
    tty: bool = field(default_factory=bool)
    bytes_in: int = field(default_factory=int)
    bytes_out: int = field(default_factory=int)
    close_reason: str = ""

    @property
    def upgraded(self) -> bool:
        """Whether its request asked for another protocol."""
        return self.proto not in {"", _NO_UPGRADE}

    def __post_init__(self) -> None:
        if self.command:
            force_setattr(self, "command", _argv(self.command))
        _bound(self, "proto", "container", "close_reason")


def proto_of(upgrade: bytes | None) -> str:
    """What a stream goes by, from the protocol that its client asks for; None is no other than HTTP."""
    return _NO_UPGRADE if upgrade is None else text(upgrade).lower()


class Tunnel(Record, frozen=True):
    """What the call went through on the way."""

    detaches: int = field(default_factory=int)
    gap_ms: float = field(default_factory=float)
    replayed: int = field(default_factory=int)
    moved_from: str = ""
    """The relay that fell silent over a read, which another one then answered."""

    def __post_init__(self) -> None:
        if self.moved_from:
            _bound(self, "moved_from")


class Event(Record, frozen=True, kw_only=True, tag_field="v", tag=VERSION):
    """One thing that happened; `seq` is the store's to give."""

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
    count: int = 1
    """How many happenings this event stands for; more than one only when a flood was aggregated."""
    note: str = ""

    def __post_init__(self) -> None:
        if self.note:
            _bound(self, "note")

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
        impersonated: Impersonated | None = None,
        note: str = "",
        dur_ms: float | None = None,
    ) -> Event:
        """Make the event that ends this intent (or that is the single event of a read begun as this).

        `dur_ms` is by a clock that nobody sets; without it the two times tell, and nothing where they make no
        sense.
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
    """Write an event, or a part of one, as JSON; what is empty is left out (zero and false are said)."""
    return _encoder.encode(record)
