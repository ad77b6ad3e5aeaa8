"""Selects and rewrites the headers that hub and relay forward, in each direction. Pure.

Every list of headers is built from scratch: a header that is not named here is not forwarded. Other proxies
delete from the client's list, and lost their identity headers that way (`Connection: Impersonate-User` on a
proxy that applies it after adding its own). So our headers are added last, and no client header acts on them.

The hub writes the *inner head*: the client's allowed headers, the framing, and the headers that only the hub
can write (the audit id, the client's address). The relay applies the same rules to it again, and adds Host,
its own token and the impersonation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NewType

from auth.requestinfo import PROXIED, RequestInfo
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
from proxy.message.location import LOCATION_BYTES_MAX, path_at, prefixed
from proxy.message.reason import REASON_HEADER

# Carries the hub's key statements to the relay in direct mode (auth/key_rotation.py).
SUCCESSION_HEADER = b"hawse-hub-keys"

# A token that browsers send as a subprotocol (kube-apiserver's own convention); never forwarded.
BEARER_SUBPROTOCOL = b"base64url.bearer.authorization.k8s.io."
# A client offers a handful. Checking each of 1 MiB of them would take a tenth of a second.
_SUBPROTOCOLS_MAX = 64

_CLIENT_PREFIXES = (b"accept-", b"content-", b"if-", b"kubectl-", b"sec-websocket-")
_CLIENT_NAMES = frozenset({b"accept", b"range", b"user-agent", b"x-stream-protocol-version"})
# On the tail of a proxy path all other headers are for the backend, but these are never forwarded.
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
# Headers that the hub writes, and the relay forwards.
_HUB_NAMES = frozenset({b"audit-id", b"x-forwarded-for"})
_HUB_LINES = re.compile(rb"(?:(?:audit-id|x-forwarded-for): [^\r]*+\r\n)*+")

# Meant for the loopback proxy itself, or rewritten by it.
_LOOPBACK_NEVER = frozenset(
    {b"authorization", b"content-length", b"cookie", b"cookie2", b"expect", b"host", b"origin"}
)
# A sandboxed document has an opaque origin, runs no script and sends no form. A browser enforces the
# backend's own policy as well.
_SANDBOX = (b"content-security-policy", b"sandbox")

_TOKEN_NAME = b"access_token"
# The name of a parameter with a token, each letter of it plain or escaped.
ACCESS_TOKEN_NAME = b"".join(
    b"(?:%c|%%%x|%%%x)" % (low, low, high) for low, high in zip(_TOKEN_NAME, _TOKEN_NAME.upper(), strict=True)
)
_ACCESS_TOKEN = re.compile(rb"%b=" % ACCESS_TOKEN_NAME, re.IGNORECASE)


IdentityLines = NewType("IdentityLines", bytes)
"""The header lines of an identity; only `identity_lines` creates them, after its checks."""


class RewriteError(Exception):
    """A head must not be sent: it would carry no identity, or another agent's."""


def identity_headers(head: RequestHead) -> list[bytes]:
    """Return the client's headers that try to set an identity (as `kubectl --as` does).

    An underscore counts as a hyphen, since some servers treat the two names as one.
    """
    return [name for name, _ in head.headers if name.replace(b"_", b"-").startswith(b"impersonate-")]


def has_access_token(target: bytes) -> bool:
    """Whether the query of a target holds a token, which every server on the way would log.

    Escaped spellings count too, since a Go server decodes the name.
    """
    # A cheap test that most targets fail: parsing up to 10,000 parameters takes some milliseconds.
    if target.lower().find(b"token=") < 0 and target.find(b"%") < 0:
        return False
    _, _, query = target.partition(b"?")
    return any(map(_ACCESS_TOKEN.match, query.split(b"&")))


def is_tail(info: RequestInfo) -> bool:
    """Whether the API server forwards a request to a backend (`services|pods|nodes/<name>/proxy`)."""
    # The test that ordinary requests fail comes first.
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
    """Return the inner head: the forwarded part of a client's request, for the target in the cluster.

    `tail` means that the target is on the tail of a proxy path (`is_tail`), where the backend's headers are
    forwarded too.
    """
    return RequestHead(head.method, target, _forwarded(head, tail), _own_lines(audit_id, client_ip))


def hub_request_bytes(first: bytes, head: RequestHead, audit_id: str, client_ip: str, tail: bool) -> bytes:
    """Return the same in canonical form; `first` is the `request_line` of its method and the target.

    Raises HeadTooLarge: with the added lines a head may exceed the limit that the client's own head met.
    """
    return request_bytes(first, _own_lines(audit_id, client_ip), _forwarded(head, tail))


def _own_lines(audit_id: str, client_ip: str) -> tuple[bytes, bytes]:
    return line(b"audit-id", audit_id), _forwarded_line(client_ip)


# Roughly as many addresses as send at one time; the line of an evicted one is built again.
@lru_cache(maxsize=4096)
def _forwarded_line(client_ip: str) -> bytes:
    return line(b"x-forwarded-for", client_ip)


def direct_request_head(
    inner: RequestHead, host: bytes, token: str, succession: Sequence[str] = ()
) -> RequestHead:
    """Return an inner head for a relay in direct mode, where the identity is a bearer token.

    `succession` holds the statements that lead to the token's key, if the relay may not know them.
    """
    own = lines_of(((b"host", host),)) + line(b"authorization", "Bearer " + token)
    if succession:
        own += line(SUCCESSION_HEADER, " ".join(succession))
    return RequestHead(inner.method, inner.target, inner.fields, (own, *inner.own))


def loopback_request_head(head: RequestHead, host: bytes, token: str, reason: str = "") -> RequestHead:
    """Return the head that a loopback proxy forwards to the hub, with the agent's token.

    All end-to-end headers are forwarded, and the hub checks them. The client's credential for the proxy
    itself and the headers of their connection are not. `reason` is stated for a request that states none.
    """
    fields = head.fields
    listed = fields.connection
    headers = [
        (name, value)
        for name, value in fields.headers
        if name not in _LOOPBACK_NEVER and name not in HOP_BY_HOP and name not in listed
    ]
    framing = _framing(fields) if head.upgrade is None else _upgrade_framing(head)
    if reason and REASON_HEADER not in fields.by_name:
        framing.append((REASON_HEADER, reason.encode()))
    own = lines_of(((b"host", host),)) + line(b"authorization", "Bearer " + token)
    return RequestHead.of(head.method, head.target, (*headers, *framing), (own,))


def relay_request_head(
    inner: RequestHead, host: bytes, token: str, identity: IdentityLines, tail: bool = False
) -> RequestHead:
    """Return the head for the API server; raises RewriteError without a token or an identity.

    No other header of the inner head is placed before or among the proxy's own lines, and none of its
    forwarded headers has the name of one of them.
    """
    if not identity:
        raise RewriteError("the request has no identity")
    own = _credential_lines(host, token), identity, _hub_lines(inner)
    return RequestHead(inner.method, inner.target, _forwarded(inner, tail), own, inner.line)


def identity_lines(impersonation: Headers) -> IdentityLines:
    """Return the lines of an identity; raises RewriteError unless it has exactly one user and some group.

    Without `Impersonate-User` the request would have the relay's own rights. With groups but no user the API
    server refuses it. So a group is always present, and a lost user can never raise the request's rights.
    """
    users = [value for name, value in impersonation if name == b"impersonate-user"]
    groups = [value for name, value in impersonation if name == b"impersonate-group"]
    if len(users) != 1 or not users[0].strip() or not groups or not all(group.strip() for group in groups):
        raise RewriteError("the identity names no user or no group")
    if any(not name.startswith(b"impersonate-") for name, _ in impersonation):
        raise RewriteError("the identity holds a header that is none")
    return IdentityLines(lines_of(impersonation))


# The relay's token, which it holds anyway. A rotated one is evicted after two rotations.
@lru_cache(maxsize=2)
def _credential_lines(host: bytes, token: str) -> bytes:
    if not token:
        raise RewriteError("the relay has no token of its own")
    return lines_of(((b"host", host),)) + line(b"authorization", "Bearer " + token)


def _hub_lines(inner: RequestHead) -> bytes:
    """The lines that only the hub can write: in tunnel mode the first ones, in direct mode anywhere."""
    own = b"".join(inner.own)
    if own and _HUB_LINES.fullmatch(own) is not None:
        return own
    return lines_of(tuple([header for header in inner.headers if header[0] in _HUB_NAMES]))


def relay_response_head(head: ResponseHead, host: bytes) -> ResponseHead:
    """Return an upstream's answer as the relay forwards it: without hop-by-hop and reserved headers.

    A Location at the API server's own address becomes a path: only the relay knows that address.
    """
    without_hop = head.without_hop()
    if without_hop is not None:
        return without_hop
    headers = []
    for name, value in _end_to_end(head):
        # The hub drops a longer one.
        if name == b"location" and len(value) <= LOCATION_BYTES_MAX:
            value = path_at(value, host) or value
        headers.append((name, value))
    return ResponseHead.of(head.status, head.reason, tuple(headers))


def loopback_response_head(head: ResponseHead, hub: bytes, prefix: bytes) -> ResponseHead:
    """Return the hub's answer as a loopback proxy forwards it: with a Location only under the prefix.

    This does not rely on the hub's own filtering: the proxy's clients hold a token that outlives a minute.
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
    """Return an answer for the client: Location under the cluster's prefix, no headers that act on the
    origin.

    `prefix` is `/clusters/<name>`, or empty on a cluster's own host. `target` is the requested path in the
    cluster, to which a relative Location refers. `host` is the Host that the client used: a Location at that
    host is put under the prefix too. Any other Location is dropped, since a cluster could redirect a client
    with its token to any server.
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
            location = prefixed(value, prefix, target, host)
            if location is None:
                continue
            value = location
        elif name == b"sec-websocket-protocol" and BEARER_SUBPROTOCOL in value:
            continue
        headers.append((name, value))
    return ResponseHead.of(head.status, head.reason, tuple(headers))


def sandboxed(head: ResponseHead) -> ResponseHead:
    """Return an answer of a backend behind a proxy path with a policy that denies it the hub's origin.

    A page written by a pod would otherwise run with the hub's origin: its scripts could read everything
    served there.
    """
    if head.status == 101:
        return head
    return ResponseHead.of(head.status, head.reason, (*head.headers, _SANDBOX))


def _forwarded(head: RequestHead, tail: bool) -> Fields:
    """The forwarded headers of a request, with new framing; computed once per block."""
    fields = head.fields
    if fields.upgrade is not None:
        # Its framing depends on the method, and each session has one upgrade, so nothing is cached.
        return Fields((*_client_headers(fields, tail), *_upgrade_framing(head)))
    forwarded = fields.forwarded_tail if tail else fields.forwarded
    if forwarded is None:
        forwarded = Fields((*_client_headers(fields, tail), *_framing(fields)))
        # Known here: computing it would parse each header again, and keep the result.
        forwarded.upgrade = None
        if tail:
            fields.forwarded_tail = forwarded
        else:
            fields.forwarded = forwarded
    return forwarded


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
    """The header that states the body's length."""
    length = fields.body_length
    if length is None:
        return [(b"transfer-encoding", b"chunked")]
    if length or b"content-length" in fields.by_name:
        return [(b"content-length", b"%d" % length)]
    return []


def _upgrade_framing(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """The headers of an upgrade request, which has no body."""
    framing = [(b"connection", b"Upgrade"), (b"upgrade", head.upgrade or b"")]
    if head.method != b"GET":
        framing.append((b"content-length", b"0"))
    return framing


def _end_to_end(head: ResponseHead) -> list[tuple[bytes, bytes]]:
    """The headers of an answer without those of one connection, and without reserved ones."""
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
    """Remove a bearer token from a list of subprotocols; a list without one stays byte for byte."""
    if BEARER_SUBPROTOCOL not in value:
        return value
    # The rest beyond so many is one item, which is kept or removed as a whole.
    offered = [item.strip(b" \t") for item in value.split(b",", _SUBPROTOCOLS_MAX)]
    # Anywhere in an item: kube-apiserver also trims Unicode blanks around it.
    kept = [item.replace(b",", b", ") for item in offered if item and BEARER_SUBPROTOCOL not in item]
    return b", ".join(kept)


def _has_one_location(head: ResponseHead) -> bool:
    # Many clients join several by commas, and the dots of one could then lead another out of the prefix.
    return len(head.header_values(b"location")) == 1
