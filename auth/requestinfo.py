"""Parses a request as Kubernetes does: method and target → verb, group, resource, namespace, name,
subresource.

This is the same parse as kube-apiserver's RequestInfo, because policy and audit here must agree with RBAC
there. It is stricter in places: a path that two readers could understand differently is refused, never
normalised. An accepted path is forwarded byte for byte.

The tail after `services|pods|nodes/<name>/proxy` belongs to the server behind the proxy. It may hold anything
but dot segments, which could climb out of it. The parse finds its position by the segments before it, never
by a search for the text "/proxy/".

Every request is parsed at the hub and at the relay, and agents repeat their requests, so results are
memoized. Nearly all paths have neither escapes nor a tail; one regular expression splits these. It must agree
with `_split`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from urllib.parse import unquote_to_bytes

import attrs

from auth.memo import memoized
from auth.selectors import selected_name

# kube-apiserver's limit for the request head. The listener refuses earlier; this bounds the work here.
TARGET_LENGTH_MAX = 1 << 20
# Far more segments than any Kubernetes path has (the tail is not counted).
SEGMENTS_MAX = 32
# Go's net/url reads at most this many (since 1.24.12 and 1.25.6). From a longer query kube-apiserver reads
# nothing: it would list everything, where a reader here sees one name.
PARAMETERS_MAX = 10_000
# Names in Kubernetes need almost no escapes, and a backend's path has some KB. 1 MiB of them would take a
# fifth of a second and delay all other requests.
PATH_ESCAPES_MAX = 10_000

# Maps each hexadecimal digit to a zero.
_HEXADECIMAL = bytes.maketrans(b"123456789abcdefABCDEF", b"0" * 21)
_SHORT_BYTES = 1024
# The parameters that are read from a query for a list, or for a change.
_LIST_OPTIONS = ("watch", "fieldSelector", "labelSelector", "timeoutSeconds", "limit")

_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")  # visible ASCII without '#': a fragment is never sent
# RFC 3986 pchar without ';' (path parameters) and with whole escapes only.
_SEGMENT = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,=:@]++|%[0-9A-Fa-f]{2})++")
# A path of such segments, without escapes and dot segments.
_PLAIN_PATH = re.compile(rb"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9\-._~!$&'()*+,=:@]++)++/?")
# A decoded segment must not contain separators of any reader, a second escape, or controls.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f/\\%;]")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
# TRACE makes a backend echo the headers that were added on the way, and CONNECT opens a tunnel. Kubernetes
# supports neither, and some backends ignore the case of a method.
_REFUSED_METHODS = frozenset({"TRACE", "CONNECT"})

# The resources with a proxy subresource.
PROXIED = frozenset({"services", "pods", "nodes"})
_VERB_PREFIXES = frozenset({"proxy", "watch"})
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_VERBS = {
    "POST": "create",
    "GET": "get",
    "HEAD": "get",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_LONG_RUNNING_VERBS = frozenset({"watch", "proxy"})
_LONG_RUNNING_SUBRESOURCES = frozenset({"attach", "exec", "proxy", "log", "portforward"})
# By these a GET acts on a pod, a node or a service.
_ACTING_SUBRESOURCES = frozenset({"exec", "attach", "portforward", "proxy"})
_READING_VERBS = frozenset({"get", "list", "watch"})
_DRY_VERBS = frozenset({"create", "update", "patch"})
# These ignore `dryRun`: even a dry run issues a token.
_NEVER_DRY = _ACTING_SUBRESOURCES | {"token"}
# Creates that only ask "who am I, what may I".
_SELF_REVIEWS = frozenset(
    {
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectrulesreviews"),
        ("authentication.k8s.io", "selfsubjectreviews"),
    }
)


class BadTarget(Exception):
    """A request target that is refused with 400; the message says which part and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.frozen
class RequestInfo:
    """A parsed request. For a non-resource path, `verb` is the method in lower case."""

    method: str
    verb: str
    """Empty if kube-apiserver has no verb for the method; no rule allows that."""
    is_resource: bool
    path: str
    """The path, decoded once (in the tail, U+FFFD replaces invalid UTF-8)."""
    raw_path: bytes
    query: bytes
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    upgrade: bool = False
    """Whether the request's headers ask to upgrade its connection to another protocol."""

    long_running: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether kube-apiserver sets no deadline: watch, logs, exec, attach, port-forward, proxy."""

    kind: tuple[str, str, str, str, str, str] = attrs.field(init=False, eq=False, repr=False)
    """The fields that policies test, except the name: the same rules apply to all requests of a kind."""

    # Derived once, and read for every request.
    @kind.default
    def _kind(self) -> tuple[str, str, str, str, str, str]:
        # A path begins with a slash and a resource never does, so they cannot be confused.
        subject = self.resource if self.is_resource else self.path
        # The method too: under the legacy /proxy/ prefix, the verb does not show what is done.
        return self.method, self.verb, self.group, subject, self.subresource, self.namespace

    @long_running.default
    def _is_long_running(self) -> bool:
        if not self.is_resource:
            return self.path.startswith("/debug/pprof/")
        return self.verb in _LONG_RUNNING_VERBS or self.subresource in _LONG_RUNNING_SUBRESOURCES

    def upgraded(self) -> RequestInfo:
        """The same request, as one that asks for an upgrade."""
        return attrs.evolve(self, upgrade=True)

    @property
    def is_write(self) -> bool:
        """Whether the request may change something; a GET that execs or proxies may."""
        if not self.is_resource:
            return self.method not in {"GET", "HEAD", "OPTIONS"}
        if self.verb == "create" and (self.group, self.resource) in _SELF_REVIEWS and not self.subresource:
            return False
        return self.verb not in _READING_VERBS or self.subresource in _ACTING_SUBRESOURCES

    @property
    def dry_run(self) -> bool:
        """Whether the query has exactly one `dryRun=All`, and kube-apiserver honours it.

        For a deletion it may not: if there is a body, kube-apiserver reads the options from that and ignores
        the query. An upgrade takes effect by what is sent on its connection.
        """
        if self.upgrade or self.verb not in _DRY_VERBS or self.subresource in _NEVER_DRY:
            return False
        # Most queries cannot contain the parameter and need no parsing.
        if b"dryRun" not in self.query and b"%" not in self.query:
            return False
        # With a second value, the API server's validation decides.
        values = list(islice(raw_values(self.query, "dryRun"), 2))
        return len(values) == 1 and decode_value(values[0]) == "All"


@memoized
def parse(method: bytes, target: bytes) -> RequestInfo:
    """Parse the method and target of a request line (as sent to kube-apiserver); raises BadTarget."""
    if _METHOD.fullmatch(method) is None:
        raise BadTarget("the method is not a token")
    method_name = method.decode("ascii")
    if method_name.upper() in _REFUSED_METHODS:
        raise BadTarget(f"the method {method_name} is not served")
    if len(target) > TARGET_LENGTH_MAX:
        raise BadTarget(f"the target is longer than {TARGET_LENGTH_MAX} bytes")
    if not target.startswith(b"/"):
        raise BadTarget("the target is not a path: it must begin with '/'")
    if _TARGET.fullmatch(target) is None:
        raise BadTarget("the target holds a fragment, a blank, a control or a byte that is not ASCII")
    raw_path, _, query = target.partition(b"?")
    if query.count(b"&") >= PARAMETERS_MAX:
        raise BadTarget(f"the query has more than {PARAMETERS_MAX} parameters")
    if raw_path.count(b"%") > PATH_ESCAPES_MAX:
        raise BadTarget(f"the path has more than {PATH_ESCAPES_MAX} escapes")
    parts = _split_plain(raw_path)
    if parts is not None:
        path = raw_path.decode("ascii")
    else:
        parts, tail = _split(raw_path)
        path = _join(parts, tail, raw_path)

    # Shorter than /api/v1/pods or /apis/group/v1/pods: not a resource, but discovery, health or version.
    if len(parts) < 3 or parts[0] not in {"api", "apis"} or (parts[0] == "apis" and len(parts) < 4):
        return RequestInfo(method_name, method_name.lower(), False, path, raw_path, query)
    group, parts = ("", parts[1:]) if parts[0] == "api" else (parts[1], parts[2:])
    version, parts = parts[0], parts[1:]

    verb_by_path = parts[0] in _VERB_PREFIXES
    if verb_by_path:
        if len(parts) < 2:
            raise BadTarget(f"the path ends after '{parts[0]}': it names no resource")
        verb, parts = parts[0], parts[1:]
    else:
        verb = _VERBS.get(method_name, "")
    namespace, parts = _take_namespace(parts)

    resource = parts[0]
    name = parts[1] if len(parts) > 1 else ""
    # Below the legacy /proxy/ prefix, the backend's path follows the name.
    subresource = parts[2] if len(parts) > 2 and verb != "proxy" else ""
    if not name:
        verb, name = _of_collection(verb, query)
    return RequestInfo(
        method_name, verb, True, path, raw_path, query, group, version, namespace, resource, subresource, name
    )


def _of_collection(verb: str, query: bytes) -> tuple[str, str]:
    """The verb and the name of a request whose path names no object. A field selector may name one."""
    if verb == "get":
        parameters = first_values(query, _LIST_OPTIONS) if _may_narrow(query) else {}
        return "watch" if _truthy(parameters, "watch") else "list", selected_name(parameters)
    return "deletecollection" if verb == "delete" else verb, ""


def _may_narrow(query: bytes) -> bool:
    """Whether a query may contain `watch` or `fieldSelector`: most do not, and need no parsing."""
    return b"watch" in query or b"fieldSelector" in query or b"%" in query


def first_values(query: bytes, names: Iterable[str]) -> dict[str, list[str]]:
    """The first value of each of these names, if there is one.

    Each name is searched for, and only its value is decoded: to decode all of 10,000 parameters takes 15 ms.
    """
    found = {}
    for name in names:
        first = next((text for text in map(decode_value, raw_values(query, name)) if text is not None), None)
        if first is not None:
            found[name] = [first]
    return found


def raw_values(query: bytes, name: str) -> Iterator[bytes]:
    """The raw values of a parameter in a query. The name must consist of letters."""
    return (pair[1] or b"" for pair in _pair_of(name).finditer(b"&" + query))


@cache
def _pair_of(name: str) -> re.Pattern[bytes]:
    spelled = "".join([f"(?:{letter}|%(?i:{ord(letter):02x}))" for letter in name])
    return re.compile(rb"&%b(?:=([^&]*+))?+(?=&|\Z)" % spelled.encode("ascii"))


def decode_value(value: bytes) -> str | None:
    """Decode a value as Go's net/url does: '+' is a blank. Return None for ';' or a broken escape."""
    if b";" in value:
        return None
    # There may be thousands of short values, and failing to decode each takes twice as long as this test.
    if len(value) <= _SHORT_BYTES and value.count(b"%") > value.translate(_HEXADECIMAL).count(b"%00"):
        return None
    try:
        return _unescaped(value.replace(b"+", b" "))
    except UnicodeDecodeError:
        return None


def _unescaped(part: bytes) -> str:
    """Decode a part of a query; raises UnicodeDecodeError for a broken escape.

    `unquote` makes an object per escape: a tenth of a second for a full head. Python's own escapes are
    decoded in C.
    """
    if b"%" in part:
        literal = part.replace(b"\\", rb"\\").replace(b"%", rb"\x")
        part = literal.decode("unicode_escape").encode("latin-1")
    return part.decode("utf-8", "replace")


def _split_plain(raw_path: bytes) -> list[str] | None:
    """Split a path without escapes and without a tail; return None for any other path."""
    if raw_path.count(b"/") > SEGMENTS_MAX + 1 or b"/proxy" in raw_path:
        return None
    if _PLAIN_PATH.fullmatch(raw_path) is None:
        return None
    parts = raw_path.decode("ascii").strip("/").split("/")
    return parts if len(parts) <= SEGMENTS_MAX else None


def _split(raw_path: bytes) -> tuple[list[str], bytes | None]:
    """Split and decode the strict part of a path; the tail, if any, is returned decoded too."""
    raw_parts = raw_path[1:].split(b"/", SEGMENTS_MAX)
    parts: list[str] = []
    for index, raw in enumerate(raw_parts):
        if _at_tail(parts):
            # Decoded once, as kube-apiserver does before it forwards the path.
            tail = unquote_to_bytes(b"/".join(raw_parts[index:]))
            _refuse_dot_segments(tail)
            return parts, tail
        if not raw and index == len(raw_parts) - 1:
            # A trailing slash, as in `get --raw /apis/`, or the root itself.
            break
        if index == SEGMENTS_MAX:
            raise BadTarget(f"the path has more than {SEGMENTS_MAX} segments")
        parts.append(_decode_segment(raw))
    return parts, None


def _decode_segment(raw: bytes) -> str:
    if not raw:
        raise BadTarget("the path has an empty segment")
    if _SEGMENT.fullmatch(raw) is None:
        raise BadTarget(
            f"the path's segment {ascii(raw.decode('latin-1'))[:80]} has a character that is not allowed"
        )
    try:
        segment = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadTarget("the path has an escape that is not UTF-8") from exc
    if segment in {".", ".."}:
        raise BadTarget("the path has a dot segment")
    if _FORBIDDEN.search(segment):
        raise BadTarget(
            f"the path's segment {ascii(raw.decode('latin-1'))[:80]} has an escape that is not allowed"
        )
    return segment


def _at_tail(parts: list[str]) -> bool:
    """Whether the segments after these are for a proxy's backend, not for kube-apiserver."""
    if len(parts) < 4 or parts[0] != "api":
        return False
    rest = parts[2:]
    legacy = rest[0] == "proxy"
    if legacy:
        rest = rest[1:]
    if not rest:
        return False
    _, rest = _take_namespace(rest)
    if rest[0] not in PROXIED:
        return False
    return len(rest) == 2 if legacy else len(rest) == 3 and rest[2] == "proxy"


def _take_namespace(parts: list[str]) -> tuple[str, list[str]]:
    """Split `namespaces/<name>/…` off. A namespace itself, and its own subresources, remain a resource."""
    if parts[0] != "namespaces" or len(parts) < 2:
        return "", parts
    if len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
        return parts[1], parts[2:]
    return parts[1], parts


def _refuse_dot_segments(tail: bytes) -> None:
    enclosed = b"/%b/" % tail
    if b"/./" in enclosed or b"/../" in enclosed:
        raise BadTarget("the path has a dot segment")


def _join(parts: list[str], tail: bytes | None, raw_path: bytes) -> str:
    path = "/" + "/".join(parts)
    if tail is not None:
        return f"{path}/{tail.decode('utf-8', 'replace')}"
    return f"{path}/" if parts and raw_path.endswith(b"/") else path


def _first(parameters: dict[str, list[str]], name: str) -> str | None:
    values = parameters.get(name)
    return values[0] if values else None


def _truthy(parameters: dict[str, list[str]], name: str) -> bool:
    """Under Unicode case folding, the long s (ſ) is an s. kube-apiserver compares like that, except in a
    query with another option that it cannot decode.
    """
    value = _first(parameters, name)
    if value is None or value.lower() in {"0", "false"}:
        return False
    # Under Unicode case folding, the long s (ſ) is an s. kube-apiserver compares like that, except in a query
    # with another option that it cannot decode.
    if value.casefold() == "false":
        raise BadTarget(f"the parameter '{name}' is 'false' to some readers only")
    return True
