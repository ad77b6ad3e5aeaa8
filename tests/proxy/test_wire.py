from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from proxy.wire import BODY_BYTES_MAX, BodyEnd, RawStream, pull_body
from tests.proxy.legs import tls_pair


def receiving(framing: bytes) -> h11.Connection:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    return connection


def test_many_small_chunks_that_came_together_go_on_together():
    connection = receiving(b"Transfer-Encoding: chunked")
    end = BodyEnd()
    connection.receive_data(b"1\r\na\r\n" * 100 + b"0\r\n\r\n")
    assert pull_body(connection, end) == b"a" * 100
    assert end.reached
    assert not end.trailers
    assert pull_body(connection, end) == b""


def test_nothing_yet_is_told_from_the_end():
    connection = receiving(b"Content-Length: 3")
    end = BodyEnd()
    assert pull_body(connection, end) is None
    connection.receive_data(b"ab")
    assert pull_body(connection, end) == b"ab"
    assert pull_body(connection, end) is None
    connection.receive_data(b"c")
    assert pull_body(connection, end) == b"c"
    assert pull_body(connection, end) == b""


def test_trailers_are_seen_and_dropped():
    connection = receiving(b"Transfer-Encoding: chunked")
    end = BodyEnd()
    connection.receive_data(b"0\r\nImpersonate-User: root\r\n\r\n")
    assert pull_body(connection, end) == b""
    assert end.trailers


@given(st.lists(st.binary(min_size=1, max_size=3 * BODY_BYTES_MAX), max_size=6), st.integers(1, 100_000))
def test_a_body_survives_whatever_its_chunks(chunks, step):
    wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    connection = receiving(b"Transfer-Encoding: chunked")
    end = BodyEnd()
    received = b""
    for at in range(0, len(wire), step):
        connection.receive_data(wire[at : at + step])
        while part := pull_body(connection, end):
            assert len(part) < BODY_BYTES_MAX + max(step, BODY_BYTES_MAX)
            received += part
    assert received == b"".join(chunks)
    assert end.reached


async def test_a_raw_stream_gives_what_was_read_too_far_first():
    here, there = memory_stream_pair()
    raw = RawStream(here, b"first")
    await there.send_all(b"second")
    assert await raw.receive_some() == b"first"
    assert await raw.receive_some() == b"second"
    await there.send_eof()
    assert await raw.receive_some() == b""
    assert await raw.receive_some() == b""
    await raw.send_all(b"back")
    await raw.send_eof()
    assert await there.receive_some() == b"back"
    assert await there.receive_some() == b""
    await here.aclose()
    await there.aclose()


async def test_a_raw_stream_that_had_ended_ends_behind_its_first_bytes():
    here, there = memory_stream_pair()
    raw = RawStream(here, b"first", ended=True)
    assert await raw.receive_some() == b"first"
    assert await raw.receive_some() == b""
    await here.aclose()
    await there.aclose()


async def test_half_close_is_what_the_transport_can():
    here, there = tls_pair()
    assert not RawStream(here).can_half_close
    with pytest.raises(AssertionError):
        await RawStream(here).send_eof()
    await here.aclose()
    await there.aclose()
