"""Which headers cross, in each direction, at the hub and at the relay. Pure.

Every list is built afresh: what is not named here does not cross. Taking the client's list and deleting from
it is how others lost their identity headers (`Connection: Impersonate-User` on a proxy that honours it after
it has added its own), so our own headers are added last, and nothing that a client says is applied to them.

The hub writes the *inner head*: the client's allowed headers, the framing, and what the hub alone knows (the
audit id, the client's address). The relay writes the upstream's head from it by the same rules again, and
adds Host, its own token and the impersonation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NewType

from auth.requestinfo import PROXIED, RequestInfo
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import (
    FRAMING_NAMES,
    Fields,
    Headers,
    RequestHead,
    ResponseHead,
    connection_tokens,
    line,
    lines_of,
    request_bytes,
)
from proxy.message.hops import HOP_BY_HOP, RESERVED_PREFIX, RESPONSE_NEVER

# The relay's own word in direct mode, where a refusal of the relay must be told from one of the API server.
FAILURE_HEADER = b"hawse-relay-failure"
# The hub's word to the relay in direct mode: how its keys have changed (auth/key_rotation.py).
SUCCESSION_HEADER = b"hawse-hub-keys"
# The relay's own word in an answer that it made itself, in both modes: who decided, and by which rule.
DECISION_HEADER = b"hawse-relay-decision"
_FAILURE_REASON_BYTES_MAX = 200

# A token that a browser puts among the subprotocols (kube-apiserver's own convention); never passed on.
BEARER_SUBPROTOCOL = b"base64url.bearer.authorization.k8s.io."
# A client offers a handful. To look at each of 1 MiB of them would take a tenth of a second.
_SUBPROTOCOLS_MAX = 64

_CLIENT_PREFIXES = (b"accept-", b"content-", b"if-", b"kubectl-", b"sec-websocket-")
_CLIENT_NAMES = frozenset({b"accept", b"range", b"user-agent", b"x-stream-protocol-version"})
# On the tail of a proxy path every other header belongs to the backend, but these never.
_NEVER_NAMES = HOP_BY_HOP | {
    b"audit-id",
    b"authorization",
    b"content-length",
    b"cookie",
    b"cookie2",
    b"expect",
    b"forwarded",
    b"host",
    b"set-cookie",
    b"x-access-token",
    b"x-auth-request-access-token",
    b"x-real-ip",
}
_NEVER_PREFIXES = (b"impersonate-", b"x-remote-", b"x-forwarded-", RESERVED_PREFIX)
# What the hub alone knows, and the relay passes on from it.
_HUB_NAMES = frozenset({b"audit-id", b"x-forwarded-for"})
_HUB_LINES = re.compile(rb"(?:(?:audit-id|x-forwarded-for): [^\r]*+\r\n)*+")

# Meant for a loopback proxy, or written anew by it.
_LOOPBACK_NEVER = frozenset(
    {b"authorization", b"content-length", b"cookie", b"cookie2", b"expect", b"host", b"origin"}
)
# A document under it has an origin of its own, runs no script and sends no form. Where the backend has a
# policy too, a browser holds it to both.
_SANDBOX = (b"content-security-policy", b"sandbox")

_TOKEN_NAME = b"access_token"
# The name of a parameter with a token, each letter of it plain or escaped.
ACCESS_TOKEN_NAME = b"".join(
    b"(?:%c|%%%x|%%%x)" % (low, low, high) for low, high in zip(_TOKEN_NAME, _TOKEN_NAME.upper(), strict=True)
)
_ACCESS_TOKEN = re.compile(rb"%b=" % ACCESS_TOKEN_NAME, re.IGNORECASE)
_ABSOLUTE = re.compile(rb"(?:(?:https?|wss?):)?//([^/?#\\]*+)(.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):")
# Possessive, since a backend may answer with 16 KiB of it.
_AUTHORITY = re.compile(
    rb"(?:[a-z0-9._~!$&'()*+,;=:%-]*+@)?((?:[a-z0-9_~-]++\.?+)++|\[[0-9a-f:.]++\])(?::0*+([0-9]{0,5}+))?"
)
PORT_MAX = 65535
_DEFAULT_PORTS = frozenset({None, b"", b"80", b"443"})
# A name that ends so is an address to browsers, in whatever notation.
_ADDRESS = re.compile(rb"\[.*|(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
# Servers take 8 KB in all; to read one of 64 KiB, which a backend may answer with, takes up to 4 ms.
LOCATION_BYTES_MAX = 16 * 1024
_DOT = (b".", b"%2e", b"%2E")
_DOT_DOT = frozenset([first + second for first in _DOT for second in _DOT])
_DOTS = _DOT_DOT | frozenset(_DOT)


IdentityLines = NewType("IdentityLines", bytes)
"""The lines of an identity, as `identity_lines` has checked them, and nobody else may make any."""


class RewriteError(Exception):
    """A head that must not be sent: it would carry no identity, or somebody else's."""


def identity_headers(head: RequestHead) -> list[bytes]:
    """Return the names by which a client tries to say who it is to the cluster (`kubectl --as` does).

    An underscore counts as a hyphen: some servers fold the two, and then it is the same header.
    """
    return [name for name, _ in head.headers if name.replace(b"_", b"-").startswith(b"impersonate-")]


def has_access_token(target: bytes) -> bool:
    """Whether a target has a token in its query, where it would be logged by every server on the way.

    However its name is spelled: a Go server decodes it before it looks.
    """
    # What most targets lack, before what takes some ms for the 10,000 parameters that there may be.
    if target.lower().find(b"token=") < 0 and target.find(b"%") < 0:
        return False
    _, _, query = target.partition(b"?")
    return any(map(_ACCESS_TOKEN.match, query.split(b"&")))


def is_tail(info: RequestInfo) -> bool:
    """Whether a request goes through the API server to a backend (`services|pods|nodes/<name>/proxy`)."""
    # First what no ordinary request says.
    return (
        info.long_running
        and (info.verb == "proxy" or info.subresource == "proxy")
        and info.is_resource
        and info.group == ""
        and info.resource in PROXIED
        and bool(info.name)
    )


def hub_request_head(
    head: RequestHead, target: bytes, audit_id: str, client_ip: str, tail: bool = False
) -> RequestHead:
    """Return the inner head: what of a client's request crosses to the relay, for the target in the cluster.

    `tail` says that the target is on the tail of a proxy path (`is_tail`), where the backend's headers cross.
    """
    return RequestHead(head.method, target, _crossing(head, tail), _own_lines(audit_id, client_ip))


def hub_request_bytes(first: bytes, head: RequestHead, audit_id: str, client_ip: str, tail: bool) -> bytes:
    """Return the same in canonical form; `first` is the `request_line` of its method and the target.

    Raises HeadTooLarge: it may have fitted as its client wrote it, and not with what is added on the way.
    """
    return request_bytes(first, _own_lines(audit_id, client_ip), _crossing(head, tail))


def _own_lines(audit_id: str, client_ip: str) -> tuple[bytes, bytes]:
    return line(b"audit-id", audit_id), _forwarded_line(client_ip)


# Of as many addresses as send at one time, by and large; any other is written again.
@lru_cache(maxsize=4096)
def _forwarded_line(client_ip: str) -> bytes:
    return line(b"x-forwarded-for", client_ip)


def direct_request_head(
    inner: RequestHead, host: bytes, token: str, succession: Sequence[str] = ()
) -> RequestHead:
    """Return an inner head as it goes to a relay in direct mode, where the identity is a bearer token.

    `succession` are the statements that lead to the key of the token, said where the relay may not know them.
    """
    own = lines_of(((b"host", host),)) + line(b"authorization", "Bearer " + token)
    if succession:
        own += line(SUCCESSION_HEADER, " ".join(succession))
    return RequestHead(inner.method, inner.target, inner.fields, (own, *inner.own))


def loopback_request_head(head: RequestHead, host: bytes, token: str) -> RequestHead:
    """Return the head of a request to a loopback proxy as it goes on to the hub, under the agent's token.

    Everything that is meant for the far end crosses, and the hub judges it; what the client showed to the
    proxy itself, and what concerns their connection, does not.
    """
    fields = head.fields
    listed = fields.connection
    headers = [
        (name, value)
        for name, value in fields.headers
        if name not in _LOOPBACK_NEVER and name not in HOP_BY_HOP and name not in listed
    ]
    framing = _framing(fields) if head.upgrade is None else _upgrade_framing(head)
    own = lines_of(((b"host", host),)) + line(b"authorization", "Bearer " + token)
    return RequestHead.of(head.method, head.target, (*headers, *framing), (own,))


def relay_request_head(
    inner: RequestHead, host: bytes, token: str, identity: IdentityLines, tail: bool = False
) -> RequestHead:
    """Return the head for the API server; raises RewriteError without a token or an identity.

    Nothing of the inner head but what is named here stands before or among our own lines, and none of its
    headers that cross has the name of one of ours.
    """
    if not identity:
        raise RewriteError("the request has no identity")
    own = _credential_lines(host, token), identity, _hub_lines(inner)
    return RequestHead(inner.method, inner.target, _crossing(inner, tail), own, inner.line)


def identity_lines(impersonation: Headers) -> IdentityLines:
    """Return the lines of an identity, checked; raises RewriteError without exactly one user and some group.

    Without `Impersonate-User` the request would run with the relay's own rights, and with groups but no user
    the API server refuses it: so a group is always there, and a lost user can never become power.
    """
    users = [value for name, value in impersonation if name == b"impersonate-user"]
    groups = [value for name, value in impersonation if name == b"impersonate-group"]
    if len(users) != 1 or not users[0].strip() or not groups or not all(group.strip() for group in groups):
        raise RewriteError("the identity names no user or no group")
    if any(not name.startswith(b"impersonate-") for name, _ in impersonation):
        raise RewriteError("the identity holds a header that is none")
    return IdentityLines(lines_of(impersonation))


# The relay's one token, which it holds anyway; a rotated one is out after as many rotations.
@lru_cache(maxsize=2)
def _credential_lines(host: bytes, token: str) -> bytes:
    if not token:
        raise RewriteError("the relay has no token of its own")
    return lines_of(((b"host", host),)) + line(b"authorization", "Bearer " + token)


def _hub_lines(inner: RequestHead) -> bytes:
    """The lines that the hub alone can write: in tunnel mode the first, in direct mode among the others."""
    own = b"".join(inner.own)
    if own and _HUB_LINES.fullmatch(own) is not None:
        return own
    return lines_of(tuple([header for header in inner.headers if header[0] in _HUB_NAMES]))


def relay_response_head(head: ResponseHead, host: bytes) -> ResponseHead:
    """Return an upstream's answer as the relay passes it on: hop-by-hop headers gone, none of ours in it.

    A Location at the API server's own address becomes a path: only the relay knows that address.
    """
    without_hop = head.without_hop()
    if without_hop is not None:
        return without_hop
    headers = []
    for name, value in _end_to_end(head):
        # A longer one goes no further than to the hub.
        if name == b"location" and len(value) <= LOCATION_BYTES_MAX:
            absolute = _ABSOLUTE.fullmatch(value)
            if absolute is not None and _leads_to(absolute, host):
                value = _rooted(absolute[2])
                if value.startswith(b"//"):
                    # What is a path there would be a host here.
                    value = b"/." + value
        headers.append((name, value))
    return ResponseHead.of(head.status, head.reason, tuple(headers))


def loopback_response_head(head: ResponseHead, hub: bytes, prefix: bytes) -> ResponseHead:
    """Return the hub's answer as a loopback proxy passes it on: with a Location only under the prefix.

    It does not rest on what the hub leaves out: the proxy's clients hold a token that outlives a minute.
    """
    headers = []
    alone = _has_one_location(head)
    for name, value in relay_response_head(head, hub).headers:
        if name in RESPONSE_NEVER or (
            name == b"location" and not (alone and value.startswith(prefix + b"/"))
        ):
            continue
        headers.append((name, value))
    return ResponseHead.of(head.status, head.reason, tuple(headers))


def hub_response_head(head: ResponseHead, prefix: bytes, target: bytes, host: bytes | None) -> ResponseHead:
    """Return an answer as the client gets it: Location under the cluster's prefix, nothing for the origin.

    `prefix` is `/clusters/<name>`, or nothing on a cluster's own host. `target` is what was asked for in the
    cluster (a relative Location starts there), `host` the Host that the client used: a Location at that host
    is ours, so it is put under the prefix too. Any other is left out, or a cluster could have a client's
    token sent wherever it likes.
    """
    without_hop = head.without_hop()
    if without_hop is not None:
        return without_hop
    headers = []
    alone = _has_one_location(head)
    for name, value in _end_to_end(head):
        if name in RESPONSE_NEVER:
            continue
        if name == b"location":
            if not alone:
                continue
            location = _prefixed(value, prefix, target, host)
            if location is None:
                continue
            value = location
        elif name == b"sec-websocket-protocol" and BEARER_SUBPROTOCOL in value:
            continue
        headers.append((name, value))
    return ResponseHead.of(head.status, head.reason, tuple(headers))


def sandboxed(head: ResponseHead) -> ResponseHead:
    """Return an answer of a backend behind a proxy path as one that no browser trusts with the hub's origin.

    A page that a pod wrote would else run as the hub's: its scripts could read what else is served there.
    """
    if head.status == 101:
        return head
    return ResponseHead.of(head.status, head.reason, (*head.headers, _SANDBOX))


def failure_header(failure: Failure) -> tuple[bytes, bytes]:
    """Return the header by which a relay in direct mode marks an answer as its own refusal."""
    reason = re.sub(r"[^\x20-\x7e]", "?", failure.reason)[:_FAILURE_REASON_BYTES_MAX].strip()
    return FAILURE_HEADER, f"{int(failure.code)};{int(failure.processed)};{reason}".encode("ascii")


def failure_of(head: ResponseHead) -> Failure | None:
    """Return the failure that a relay in direct mode marked its answer with, if it did.

    A mark that cannot be read is still the relay's, and says nothing about whether the request was seen.
    """
    value = head.header(FAILURE_HEADER)
    if value is None:
        return None
    match = re.fullmatch(rb"([0-9]{1,5});([0-2]);([\x20-\x7e]*)", value)
    if match is None:
        return Failure(StreamCode.INTERNAL, Processed.MAYBE, "the relay's refusal cannot be read")
    try:
        code = StreamCode(int(match[1]))
    except ValueError:
        code = StreamCode.INTERNAL
    return Failure(code, Processed(int(match[2])), match[3].decode("ascii"))


def guardrail_of(head: ResponseHead) -> str:
    """Return the rule by which the relay denied a request in the API server's stead; empty if it did not."""
    # Nearly no answer has it, and so is not taken apart.
    if DECISION_HEADER not in head.encode():
        return ""
    value = head.header(DECISION_HEADER)
    if value is None:
        return ""
    match = re.fullmatch(rb"guardrails ([a-z0-9/-]{1,200})", value)
    return match[1].decode("ascii") if match is not None else "unreadable"


def _crossing(head: RequestHead, tail: bool) -> Fields:
    """What of a request's headers crosses, with a framing written from scratch; worked out once a block."""
    fields = head.fields
    if fields.upgrade is not None:
        # Its framing depends on the method, and there is one for each session of its own.
        return Fields((*_client_headers(fields, tail), *_upgrade_framing(head)))
    crossing = fields.crossing_tail if tail else fields.crossing
    if crossing is None:
        crossing = Fields((*_client_headers(fields, tail), *_framing(fields)))
        # To find out would be to look at each of them again, and to hold what comes of it.
        crossing.upgrade = None
        if tail:
            fields.crossing_tail = crossing
        else:
            fields.crossing = crossing
    return crossing


def _client_headers(fields: Fields, tail: bool) -> list[tuple[bytes, bytes]]:
    headers = []
    listed = fields.connection if tail else frozenset()
    for name, value in fields.headers:
        if name == b"sec-websocket-protocol":
            value = _without_bearer(value)
            if not value:
                continue
        if name.startswith(_CLIENT_PREFIXES) or name in _CLIENT_NAMES:
            if name not in FRAMING_NAMES:
                headers.append((name, value))
        elif tail and name not in listed and not _is_never(name):
            headers.append((name, value))
    return headers


def _is_never(name: bytes) -> bool:
    folded = name.replace(b"_", b"-")
    return folded in _NEVER_NAMES or folded.startswith(_NEVER_PREFIXES)


def _framing(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The header that says where the body ends."""
    length = fields.body_length
    if length is None:
        return [(b"transfer-encoding", b"chunked")]
    if length or b"content-length" in fields.by_name:
        return [(b"content-length", b"%d" % length)]
    return []


def _upgrade_framing(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """The headers that say what the connection becomes, of a request without a body."""
    framing = [(b"connection", b"Upgrade"), (b"upgrade", head.upgrade or b"")]
    if head.method != b"GET":
        framing.append((b"content-length", b"0"))
    return framing


def _end_to_end(head: ResponseHead) -> list[tuple[bytes, bytes]]:
    """The headers of an answer without those that concern one connection, or are reserved for the relay."""
    listed = connection_tokens(head.headers)
    headers = [
        (name, value)
        for name, value in head.headers
        if name not in HOP_BY_HOP and name not in listed and not name.startswith(RESERVED_PREFIX)
    ]
    if head.status == 101:
        upgrade = head.header(b"upgrade")
        headers += [(b"connection", b"Upgrade")] + ([(b"upgrade", upgrade)] if upgrade else [])
    return headers


def _without_bearer(value: bytes) -> bytes:
    """Take a bearer token out of a list of subprotocols; a list without one stays byte for byte."""
    if BEARER_SUBPROTOCOL not in value:
        return value
    # What follows so many is one item more, which stays or goes as a whole.
    offered = [item.strip(b" \t") for item in value.split(b",", _SUBPROTOCOLS_MAX)]
    # Wherever in an item: kube-apiserver takes blanks of Unicode from around it, too.
    kept = [item.replace(b",", b", ") for item in offered if item and BEARER_SUBPROTOCOL not in item]
    return b", ".join(kept)


def _prefixed(location: bytes, prefix: bytes, target: bytes, host: bytes | None) -> bytes | None:
    """Put a Location under the prefix.

    None when it leads elsewhere, or does to some readers: kubectl, as others, goes there with its token.
    None as well when it is longer than any server would take.
    """
    if len(location) > LOCATION_BYTES_MAX:
        return None
    location = location.replace(b"\t", b"")  # browsers drop tabs before they read a URL
    absolute = _ABSOLUTE.fullmatch(location)
    if absolute is not None:
        if not _leads_to(absolute, host or b""):
            return None
        location = _rooted(absolute[2])
        if location.startswith(prefix + b"/"):
            location = location.removeprefix(prefix)
    elif _SCHEME.match(location) is not None:
        # "https:/path" is an error to some and this very host to others.
        return None
    elif not location.startswith(b"/"):
        location = _resolved(location, target)
    path, separator, rest = _split_path(location)
    # A backslash is a slash to browsers, and one that is escaped to nobody.
    path = prefix + _without_dots(path.replace(b"\\", b"%5C"))
    # Without a prefix the second of two slashes begins a host.
    return None if path.startswith(b"//") else path + separator + rest


def _has_one_location(head: ResponseHead) -> bool:
    # Many clients join several by commas, and one is then led out of the prefix by the dots of another.
    return len(head.header_values(b"location")) == 1


def _leads_to(absolute: re.Match[bytes], host: bytes) -> bool:
    """Whether a URL leads to a host, by any user, and to nowhere else by any reader."""
    if absolute[2].startswith(b"\\"):
        # To browsers its host ends there, and to Python's what follows may be it.
        return False
    there = _place(absolute[1])
    return there is not None and there == _place(host)


def _place(authority: bytes) -> tuple[str, bytes] | None:
    """The host and the port of an authority, the same for each way to write them; None for one not plain."""
    match = _AUTHORITY.fullmatch(authority.lower())
    if match is None:
        return None
    name, port = match[1].removesuffix(b"."), match[2]
    if int(port or b"0") > PORT_MAX:
        return None
    place = name.decode("ascii")
    if _ADDRESS.fullmatch(name) is not None:
        try:
            address = ip_address(place.strip("[]"))
        except ValueError:
            return None
        mapped = address.ipv4_mapped if address.version == 6 else None
        place = str(mapped or address)
    return place, b"" if port in _DEFAULT_PORTS else port


def _rooted(path: bytes) -> bytes:
    return path if path.startswith(b"/") else b"/" + path


def _resolved(reference: bytes, target: bytes) -> bytes:
    """Resolve a relative reference against the target (RFC 3986 5.2.3)."""
    path = target.partition(b"?")[0]
    if not reference or reference[:1] == b"#":
        return target + reference
    if reference[:1] == b"?":
        return path + reference
    return path[: path.rindex(b"/") + 1] + reference


def _split_path(location: bytes) -> tuple[bytes, bytes, bytes]:
    end = min((at for at in (location.find(b"?"), location.find(b"#")) if at >= 0), default=len(location))
    return location[:end], location[end : end + 1], location[end + 1 :]


def _without_dots(path: bytes) -> bytes:
    """Resolve dot segments, escaped ones too, so that no client resolves them out of the prefix."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for index, whole in enumerate(segments):
        # Python's own resolution takes parameters off the last one first.
        segment = whole.partition(b";")[0]
        if segment not in _DOTS:
            kept.append(whole)
            continue
        if segment in _DOT_DOT and kept:
            kept.pop()
        if index == len(segments) - 1:
            kept.append(b"")
    return b"/" + b"/".join(kept)
