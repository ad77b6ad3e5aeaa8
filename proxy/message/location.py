"""Rewrites a Location so that every reader of it stays where the request went. Pure.

Readers disagree about many forms: a backslash, a port of 17 bits, an address in octal, two slashes. A form
that two readers could take to different hosts is refused, because clients follow a Location with their token.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

_ABSOLUTE = re.compile(rb"(?:(?:https?|wss?):)?//([^/?#\\]*+)(.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):")
# Possessive, since a backend may answer with 16 KiB of it.
_AUTHORITY = re.compile(
    rb"(?:[a-z0-9._~!$&'()*+,;=:%-]*+@)?((?:[a-z0-9_~-]++\.?+)++|\[[0-9a-f:.]++\])(?::0*+([0-9]{0,5}+))?"
)
PORT_MAX = 65535
_DEFAULT_PORTS = frozenset({None, b"", b"80", b"443"})
# Browsers take a name with such an ending for an address, in any notation.
_ADDRESS = re.compile(rb"\[.*|(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
# Servers accept 8 KB for the whole line. Parsing 64 KiB, which a backend may send, takes up to 4 ms.
LOCATION_BYTES_MAX = 16 * 1024
_DOT = (b".", b"%2e", b"%2E")
_DOT_DOT = frozenset([first + second for first in _DOT for second in _DOT])
_DOTS = _DOT_DOT | frozenset(_DOT)


def prefixed(location: bytes, prefix: bytes, target: bytes, host: bytes | None) -> bytes | None:
    """Put a Location under the prefix.

    Returns None if it leads elsewhere, or does to some readers: kubectl and others follow it with their
    token. Also returns None if it is longer than any server accepts.
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
        # Some readers take "https:/path" for an error, others for this host.
        return None
    elif not location.startswith(b"/"):
        location = _resolved(location, target)
    path, separator, rest = _split_path(location)
    # Browsers read a backslash as a slash; no reader does so for an escaped one.
    path = prefix + _without_dots(path.replace(b"\\", b"%5C"))
    # Without a prefix, a path that begins with two slashes names a host.
    return None if path.startswith(b"//") else path + separator + rest


def path_at(location: bytes, host: bytes) -> bytes | None:
    """Return the path of a Location at this host; None for any other Location."""
    absolute = _ABSOLUTE.fullmatch(location)
    if absolute is None or not _leads_to(absolute, host):
        return None
    path = _rooted(absolute[2])
    # The path would be read as a host here.
    return b"/." + path if path.startswith(b"//") else path


def _leads_to(absolute: re.Match[bytes], host: bytes) -> bool:
    """Whether every reader takes a URL to lead to this host, with any user name."""
    if absolute[2].startswith(b"\\"):
        # For browsers the host ends there; for Python the text after it may be the host.
        return False
    there = _normal_authority(absolute[1])
    return there is not None and there == _normal_authority(host)


def _normal_authority(authority: bytes) -> tuple[str, bytes] | None:
    """The host and port of an authority in one normal form; None if it is not plain."""
    match = _AUTHORITY.fullmatch(authority.lower())
    if match is None:
        return None
    name, port = match[1].removesuffix(b"."), match[2]
    if int(port or b"0") > PORT_MAX:
        return None
    host = name.decode("ascii")
    if _ADDRESS.fullmatch(name) is not None:
        try:
            address = ip_address(host.strip("[]"))
        except ValueError:
            return None
        mapped = address.ipv4_mapped if address.version == 6 else None
        host = str(mapped or address)
    return host, b"" if port in _DEFAULT_PORTS else port


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
        # Python's own resolution first removes parameters from the last segment.
        segment = whole.partition(b";")[0]
        if segment not in _DOTS:
            kept.append(whole)
            continue
        if segment in _DOT_DOT and kept:
            kept.pop()
        if index == len(segments) - 1:
            kept.append(b"")
    return b"/" + b"/".join(kept)
