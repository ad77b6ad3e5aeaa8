"""What a TCP load balancer says first on a connection (PROXY protocol, version 2), written by hand."""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31


def header(command: int, family: int, block: bytes) -> bytes:
    """A header of these parts, whatever they are."""
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack(">H", len(value)) + value


def of_client(address: str, port: int = 40000, tlvs: bytes = b"") -> bytes:
    """The header of a client's connection."""
    source = ipaddress.ip_address(address)
    destination = ipaddress.ip_address("192.0.2.1" if source.version == 4 else "2001:db8::1")
    addresses = source.packed + destination.packed + struct.pack(">HH", port, 443)
    return header(PROXY, TCP4 if source.version == 4 else TCP6, addresses + tlvs)
