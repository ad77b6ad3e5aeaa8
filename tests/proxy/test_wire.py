from __future__ import annotations

import pytest
from trio.testing import memory_stream_pair

from proxy.wire import RawStream
from tests.proxy.legs import tls_pair


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
