from __future__ import annotations

import ipaddress
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.listener.proxy_protocol import HEADER_BYTES_MAX, ProxyHeaderError, Source, missing, source_of
from tests.fakes.balancer import LOCAL, PROXY, TCP4, TCP6, UNIX, UNSPEC, header, of_client, tlv

TLVS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8).map(
    lambda tlvs: b"".join(tlv(*each) for each in tlvs)
)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
# A client's, the load balancer's own, and those that name no IP address.
HEADERS = st.one_of(
    st.builds(of_client, ADDRESSES, st.integers(0, 65535), TLVS),
    st.builds(header, st.just(LOCAL), st.integers(0, 255), st.binary(max_size=300)),
    st.builds(header, st.just(PROXY), st.just(UNSPEC), st.binary(max_size=300)),
    st.builds(header, st.just(PROXY), st.just(UNIX), st.binary(min_size=216, max_size=300)),
)


class Connection:
    """Bytes that come in pieces, of which no more may be read than is asked for."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.rest = data
        self._sizes = iter(sizes)

    def read(self, size: int) -> bytes:
        size = min(size, next(self._sizes, size))
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def header(self) -> bytes:
        """All that is asked for; shorter than a header where the bytes end before."""
        taken = b""
        while wanted := missing(taken):
            assert wanted > 0
            piece = self.read(wanted)
            if not piece:
                break
            taken += piece
        return taken


@given(HEADERS, st.binary(max_size=100), st.lists(st.integers(1, 40), max_size=400))
def test_a_header_is_read_in_any_pieces_and_nothing_behind_it(
    sent: bytes, behind: bytes, sizes: list[int]
) -> None:
    connection = Connection(sent + behind, sizes)
    assert connection.header() == sent
    assert connection.rest == behind


@given(ADDRESSES, st.integers(0, 65535), TLVS)
def test_a_client_is_who_the_header_says(address: str, port: int, tlvs: bytes) -> None:
    source = source_of(of_client(address, port, tlvs))
    assert source is not None
    assert source.port == port
    stated = ipaddress.ip_address(address)
    assert source.address == str(getattr(stated, "ipv4_mapped", None) or stated)


@given(st.one_of(st.binary(max_size=400), HEADERS), st.data())
def test_bytes_of_any_kind_are_a_header_or_an_error_and_within_the_bound(
    sent: bytes, data: st.DataObject
) -> None:
    mutated = bytearray(sent)
    for _ in range(data.draw(st.integers(0, 4))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    connection = Connection(bytes(mutated), data.draw(st.lists(st.integers(1, 40), max_size=20)))
    with suppress(ProxyHeaderError):
        taken = connection.header()
        if missing(taken) == 0:
            source = source_of(taken)
            assert source is None or taken[12] == PROXY
    assert len(mutated) - len(connection.rest) <= HEADER_BYTES_MAX


def test_a_client_of_ipv4_at_a_socket_for_both_is_one_of_ipv4() -> None:
    assert source_of(of_client("::ffff:203.0.113.7", 5)) == Source("203.0.113.7", 5)


@pytest.mark.parametrize(
    "sent",
    [
        header(LOCAL, UNSPEC, b""),
        # Of LOCAL the rest is ignored.
        header(LOCAL, TCP4, of_client("203.0.113.7")[16:]),
        header(LOCAL, 0xFF, b"\x00" * 7),
        header(PROXY, UNSPEC, b""),
        header(PROXY, UNIX, b"/run/client\0".ljust(216, b"\0")),
    ],
)
def test_what_names_no_client_leaves_the_connections_own_address(sent: bytes) -> None:
    assert missing(sent) == 0
    assert source_of(sent) is None


@pytest.mark.parametrize(
    "sent",
    [
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),
        b"GET / HTTP/1.1\r\n\r\n",
        header(0x11, TCP4, bytes(12)),
        header(0x30, TCP4, bytes(12)),
        header(0x22, TCP4, bytes(12)),
        header(PROXY, 0x12, bytes(12)),
        header(PROXY, 0x22, bytes(36)),
        header(PROXY, 0x32, bytes(216)),
        header(PROXY, 0x10, bytes(12)),
        header(PROXY, 0x41, bytes(216)),
        header(PROXY, TCP4, bytes(11)),
        header(PROXY, TCP6, bytes(35)),
        header(PROXY, UNIX, bytes(215)),
        header(LOCAL, UNSPEC, bytes(HEADER_BYTES_MAX - 15)),
    ],
)
def test_what_is_no_header_of_a_tcp_connection_is_refused_by_its_first_bytes(sent: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        missing(sent[:16])


def test_a_header_is_as_long_as_the_bound_and_no_longer() -> None:
    longest = of_client("203.0.113.7", tlvs=tlv(5, bytes(HEADER_BYTES_MAX - 16 - 12 - 3)))
    assert missing(longest) == 0
    with pytest.raises(ProxyHeaderError, match="4097 bytes, the limit is 4096"):
        missing(longest[:14] + struct.pack(">H", HEADER_BYTES_MAX - 15))
