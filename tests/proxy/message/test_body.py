from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.message.body import H11_BYTES_MAX, BodyError, ChunkedBody
from tests.fuzz.differential import check_chunks

thorough = settings(max_examples=10 * settings().max_examples)


sizes = st.lists(st.integers(1, 12), max_size=60)
chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6).map(
    lambda parts: b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
)
soup = st.lists(
    st.sampled_from(
        [
            b"\r\n", b"\r", b"\n", b"0", b"00", b"3", b"A", b"a", b"1", b"abc", b";x=1", b" ", b"\t", b"0x3",
            b"+3", b"-1", b"1_0", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b"X: y\r\n", b"ffffffff\r\n",
            b"fffffffff\r\n", b"000000003\r\nabc\r\n", b"3 \r\nabc\r\n", b"3;a=b\r\nabc\r\n", b"\x00",
            b"\xff", b"GET / HTTP/1.1\r\n\r\n",
        ]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@thorough
@given(chunks, st.binary(max_size=8), sizes)
def test_chunks_are_read_as_h11_reads_them_however_they_are_cut(wire, behind, sizes):
    check_chunks(wire + behind, sizes)


@thorough
@given(soup, sizes)
def test_what_h11_refuses_is_refused_and_what_it_takes_is_equal(wire, sizes):
    check_chunks(wire, sizes)


@thorough
@given(chunks, st.data(), sizes)
def test_damaged_chunks_are_read_as_h11_reads_them(wire, data, sizes):
    damaged = bytearray(wire)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | soup)
    check_chunks(bytes(damaged), sizes)


def test_many_small_chunks_that_came_together_go_on_together():
    body = ChunkedBody()
    assert body.feed(b"1\r\na\r\n" * 100 + b"0\r\n\r\nrest") == b"a" * 100
    assert (body.reached, body.rest, body.trailers) == (True, b"rest", False)


def test_bytes_within_a_chunk_are_handed_on_as_they_came():
    body = ChunkedBody()
    assert body.feed(b"20000\r\n") == b""
    piece = bytes(65536)
    assert body.feed(piece) is piece
    assert body.feed(piece) is piece
    assert body.feed(b"\r\n0\r\n\r\n") == b""
    assert body.reached


def test_trailers_are_seen_and_dropped():
    body = ChunkedBody()
    assert body.feed(b"1\r\na\r\n0\r\nImpersonate-User: root\r\n\r\n") == b"a"
    assert (body.reached, body.trailers) == (True, True)


def fed(wire: bytes, size: int) -> tuple[bytes, ChunkedBody]:
    """The data of a body that comes in pieces of one size, and its reader."""
    body = ChunkedBody()
    data = b"".join([body.feed(wire[at : at + size]) for at in range(0, len(wire), size)])
    return data, body


# Lines that h11 takes the longest for, a byte.
@pytest.mark.parametrize("line", [b"a:\r\n", b"a:\n", b"a: b\r\n b\r\n"])
@pytest.mark.parametrize("size", [1, 5000, 10**6])
def test_trailers_have_a_bound(line, size):
    few = H11_BYTES_MAX // len(line) - 2
    assert fed(b"1\r\na\r\n0\r\n" + line * few + b"\r\n", size)[1].reached
    with pytest.raises(BodyError):
        fed(b"1\r\na\r\n0\r\n" + line * 2 * few + b"\r\n", size)


@pytest.mark.parametrize("head", [b"%x;a", b"%x;", b"%09x", b"%x \t"])
@pytest.mark.parametrize("size", [30, 5000, 10**6])
def test_chunks_that_h11_reads_must_not_be_tiny_for_long(head, size):
    def chunks(of: int, count: int) -> bytes:
        return (head % of + b"\r\n" + b"x" * of + b"\r\n") * count + b"0\r\n\r\n"

    for of, count in ((1, 1000), (60, 4000), (20_000, 5)):
        data, body = fed(chunks(of, count), size)
        assert body.reached
        assert data == b"x" * of * count
    with pytest.raises(BodyError):
        fed(chunks(1, 6000), size)
    # What came before is no reason to have patience.
    with pytest.raises(BodyError):
        fed(chunks(20_000, 5).removesuffix(b"0\r\n\r\n") + chunks(1, 6000), size)


def test_what_follows_a_body_that_h11_reads_is_left():
    body = ChunkedBody()
    assert body.feed(b"1;a\r\nx\r\n0\r\n\r\n" + b"y" * 10_000) == b"x"
    assert body.rest == b"y" * 10_000


@pytest.mark.parametrize(
    "wire",
    [
        b"1;\r\nx\r\n" * 10_000,
        b"xyz\r\n",
        b"1\r\nabc\r\n",
        b"-1\r\n",
        b"0\r\n bad\r\n\r\n",
        b"1;" + b"x" * 2_000_000,
    ],
)
def test_a_body_that_is_broken_stays_broken(wire):
    body = ChunkedBody()
    for _ in range(3):
        with pytest.raises(BodyError):
            body.feed(wire)


@pytest.mark.parametrize("wire", [b"1\r\nabc\r\n", b"3\r\nabc\rx", b"1\r\na\n"])
def test_a_chunk_that_is_longer_than_its_size_is_followed_by_nothing(wire):
    body = ChunkedBody()
    with pytest.raises(BodyError, match="longer than its size says"):
        body.feed(wire)
    for behind in (b"\r\n1\r\nx\r\n", b"\r\n0\r\n\r\n", b"1\r\nx\r\n", b"x"):
        with pytest.raises(BodyError):
            body.feed(behind)
    assert (body.reached, body.rest) == (False, b"")


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=40), st.integers(1, 60), st.integers(1, 8))
def test_a_bound_on_the_chunks_at_once_changes_nothing_but_the_pieces(chunks, size, at_once):
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\nnext"
    body = ChunkedBody(at_once)
    data = held = b""
    while not body.reached:
        held, wire = held + wire[:size], wire[size:]
        data += body.feed(held)
        held = body.rest
    assert data == b"".join(chunks)
    assert held + wire == b"next"
