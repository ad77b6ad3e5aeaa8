"""Reading an answer: as http.client reads it, or an error."""

from __future__ import annotations

import io
from http.client import HTTPResponse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.agent.https.answer import (
    HEAD_BYTES_MAX,
    INTERIM_ANSWERS_MAX,
    PIECE_BYTES_MAX,
    HTTPError,
    begin_answer,
    read_answer,
)

BODY_MAX = 100


def read(raw: bytes, body_bytes_max: int = BODY_MAX) -> tuple[int, bytes]:
    return read_answer(io.BytesIO(raw), body_bytes_max)


class Sent(io.BytesIO):
    """A socket for http.client."""

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.getvalue())


def chunked(parts: list[bytes], extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part) + b"0\r\n\r\n"


bodies = st.lists(st.binary(max_size=40), max_size=4)
names = st.sampled_from([b"date", b"x-content-length", b"server", b"connection", b"trailer"])
fields = st.lists(st.tuples(names, st.sampled_from([b"", b"a", b"close", b"x: y", b" 7 "])), max_size=4)


@given(
    st.sampled_from([200, 201, 302, 400, 401, 500, 599]),
    fields,
    bodies,
    st.sampled_from(["length", "chunks", "end"]),
)
def test_an_answer_is_read_as_by_http_client(
    status: int, more: list[tuple[bytes, bytes]], parts: list[bytes], form: str
) -> None:
    body = b"".join(parts)
    match form:
        case "length":
            framing, sent = b"Content-Length:%d\r\n" % len(body), body + b"next"
        case "chunks":
            framing, sent = b"transfer-encoding: Chunked\r\n", chunked(parts, b";a=b")
        case _:
            framing, sent = b"", body
    lines = b"".join(b"%b: %b\r\n" % field for field in more)
    raw = b"HTTP/1.1 %d Reason\r\n%b%b\r\n%b" % (status, lines, framing, sent)
    theirs = HTTPResponse(Sent(raw), method="GET")  # type: ignore[arg-type]
    theirs.begin()
    assert read(raw, 1000) == (theirs.status, theirs.read()) == (status, body)
    # More than is wanted is left unread.
    assert read(raw, 7) == (status, body[:7])


@given(bodies, st.booleans(), st.data())
def test_a_cut_answer_is_an_error(parts: list[bytes], by_length: bool, data: st.DataObject) -> None:
    body = b"".join(parts)
    if by_length:
        raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        needed = len(raw)
    else:
        raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(parts)
        # The empty line after the last chunk would follow its trailers, which are not read.
        needed = len(raw) - 2
    with pytest.raises(HTTPError, match="cut"):
        read(raw[: data.draw(st.integers(0, needed - 1))], 1000)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 \r\na:b\r\n\r\n"])
)
def test_bytes_of_any_kind_raise_nothing_else(noise: bytes, before: bytes) -> None:
    try:
        status, body = read(before + noise)
    except HTTPError:
        return
    assert 200 <= status <= 999
    assert len(body) <= BODY_MAX


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-x",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 2x0 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 20",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\ncontent-length: +1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1_0",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX,
        b"\r\n".join([b"HTTP/1.1 200 OK", *[b"x: y"] * (HEAD_BYTES_MAX // 5)]),
        b"\r\n\r\n".join([b"HTTP/1.1 100 Continue"] * INTERIM_ANSWERS_MAX),
    ],
)
def test_an_ambiguous_or_endless_head_is_an_error(head: bytes) -> None:
    with pytest.raises(HTTPError, match="the server"):
        read(head + b"\r\n\r\n1")


@pytest.mark.parametrize("chunk", [b"-1\r\nx", b"0x1\r\nx", b"\r\n", b"1 1\r\nx", b"1\r\nxy\r\n", b"f" * 13])
def test_an_invalid_chunk_is_an_error(chunk: bytes) -> None:
    with pytest.raises(HTTPError, match=r"chunk|too long"):
        read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body_and_interim_ones_are_skipped(status: int) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    head = b"HTTP/1.1 %d \r\ncontent-length: 5\r\n\r\nfive!" % status
    assert read(interim * (INTERIM_ANSWERS_MAX - 1) + head) == (status, b"")


def streamed(raw: bytes) -> tuple[int, bytes]:
    status, pieces = begin_answer(io.BytesIO(raw))
    return status, b"".join(pieces)


@given(bodies, st.booleans(), st.data())
def test_a_body_in_pieces_is_the_whole_one_or_an_error(
    parts: list[bytes], in_chunks: bool, data: st.DataObject
) -> None:
    body = b"".join(parts)
    framing = b"transfer-encoding: chunked" if in_chunks else b"content-length: %d" % len(body)
    head = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n"
    sent = chunked(parts) if in_chunks else body
    assert streamed(head + sent) == (200, body)
    # The last two bytes of a chunked body are the end of its empty trailer, which nothing needs.
    needed = len(sent) - 2 if in_chunks else len(sent)
    if needed:
        cut = data.draw(st.integers(0, needed - 1))
        with pytest.raises(HTTPError):
            streamed(head + sent[:cut])


def test_a_body_in_pieces_needs_an_end_that_no_cut_looks_like() -> None:
    with pytest.raises(HTTPError, match="without a length"):
        streamed(b"HTTP/1.1 200 OK\r\n\r\nbody")
    assert streamed(b"HTTP/1.1 204 No Content\r\n\r\n") == (204, b"")


def test_a_long_piece_is_read_in_parts() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (PIECE_BYTES_MAX + 1)
    _, pieces = begin_answer(io.BytesIO(head + b"x" * (PIECE_BYTES_MAX + 1)))
    assert [len(piece) for piece in pieces] == [PIECE_BYTES_MAX, 1]
