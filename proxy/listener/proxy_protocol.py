"""Parses the PROXY protocol, version 2: the header by which a load balancer states the client's address.
Pure.

The header has twelve bytes of signature, a version and command, a family and a length; then addresses and
TLVs of that length (the specification is haproxy's doc/proxy-protocol.txt, section 2.2). The bytes after it
belong to the connection, so the header is read in pieces of exactly `missing` bytes.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import attrs

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = struct.Struct(f">{len(SIGNATURE)}sBBH")
# The limit of nginx. Addresses have 216 bytes at most, the TLVs of a client's certificate some hundred. TLVs
# are skipped, since nothing here depends on one.
HEADER_BYTES_MAX = 4096

_VERSION = 2
_LOCAL, _PROXY = range(2)
# Family and transport. UDP and UNIX datagrams are refused, since no datagram arrives by TCP.
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
# Source address, destination address, source port, destination port.
_ADDRESSES = {_TCP4: struct.Struct(">4s4sHH"), _TCP6: struct.Struct(">16s16sHH")}
_UNIX_BYTES = 216


class ProxyHeaderError(Exception):
    """The bytes are no PROXY header, or the header is invalid for TCP."""


@attrs.frozen
class Source:
    """The client whose connection a load balancer forwards."""

    address: str
    port: int


def missing(data: bytes) -> int:
    """Return how many bytes to read next, 0 when the header is whole; raises ProxyHeaderError.

    `data` holds the bytes read so far, never more than this function asked for.
    """
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise ProxyHeaderError("its first bytes are no PROXY header of version 2")
    if len(data) < _FIXED.size:
        return _FIXED.size - len(data)
    _, version_command, family, length = _FIXED.unpack_from(data)
    version, command = version_command >> 4, version_command & 15
    if version != _VERSION or command not in {_LOCAL, _PROXY}:
        raise ProxyHeaderError(f"its PROXY header has version {version} and command {command}")
    if _FIXED.size + length > HEADER_BYTES_MAX:
        raise ProxyHeaderError(
            f"its PROXY header has {_FIXED.size + length} bytes, the limit is {HEADER_BYTES_MAX}"
        )
    # Of LOCAL "the receiver must … discard the protocol block including the family".
    if command == _PROXY and length < _address_bytes(family):
        raise ProxyHeaderError(f"its PROXY header is too short for addresses of the family {family:#04x}")
    whole: int = _FIXED.size + length
    return whole - len(data)


def source_of(header: bytes) -> Source | None:
    """Return the client that a whole header states.

    None if the connection is the load balancer's own (LOCAL, as for health checks), or if the header has no
    IP address (UNSPEC, UNIX). The address of the TCP peer counts then.
    """
    assert missing(header) == 0, "the header is whole"
    _, version_command, family, _ = _FIXED.unpack_from(header)
    addresses = _ADDRESSES.get(family)
    if version_command & 15 == _LOCAL or addresses is None:
        return None
    packed, _, port, _ = addresses.unpack_from(header, _FIXED.size)
    return Source(_shown(packed), port)


def _address_bytes(family: int) -> int:
    if family == _UNSPECIFIED:
        return 0
    if family == _UNIX:
        return _UNIX_BYTES
    if family not in _ADDRESSES:
        raise ProxyHeaderError(f"its PROXY header has the family {family:#04x}, which is not for TCP")
    return _ADDRESSES[family].size


def _shown(packed: bytes) -> str:
    if len(packed) == 4:
        return str(IPv4Address(packed))
    address = IPv6Address(packed)
    # A dual-stack load balancer states an IPv4 client in this form (RFC 4291 section 2.5.5.2).
    return str(address.ipv4_mapped or address)
