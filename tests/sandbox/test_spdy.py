"""SPDY/3.1 frames: the constants of the protocol, bytes of the real client, and round trips in any chunks."""

from __future__ import annotations

import contextlib
import itertools
import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import spdy

names = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=12)
values = st.text(st.characters(codec="latin-1"), max_size=40)
headers = st.dictionaries(names, values, max_size=5)
stream_ids = st.integers(min_value=1, max_value=spdy.STREAM_ID_MAX)


def chunks_of(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return (data[start:end] for start, end in itertools.pairwise(bounds))


def joined(events: list[spdy.Event]) -> list[spdy.Event]:
    """Join adjacent DATA of one stream, since chunking splits it anywhere."""
    result: list[spdy.Event] = []
    for event in events:
        last = result[-1] if result else None
        if (
            isinstance(event, spdy.DataReceived)
            and isinstance(last, spdy.DataReceived)
            and event.stream_id == last.stream_id
            and not last.fin
        ):
            result[-1] = spdy.DataReceived(event.stream_id, last.data + event.data, event.fin)
        else:
            result.append(event)
    return result


def test_the_dictionary_is_that_of_the_protocol() -> None:
    # Every zlib stream with a preset dictionary identifies it by this checksum.
    assert len(spdy.DICTIONARY) == 1423
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2


frames: st.SearchStrategy[spdy.Event] = st.one_of(
    st.builds(spdy.StreamOpened, stream_ids, headers, st.booleans()),
    st.builds(spdy.StreamReplied, stream_ids, headers, st.booleans()),
    st.builds(spdy.DataReceived, stream_ids, st.binary(max_size=300), st.booleans()),
    st.builds(spdy.StreamReset, stream_ids, st.integers(1, 11)),
    st.builds(spdy.PingReceived, st.integers(1, 2**32 - 1)),
    st.builds(spdy.GoneAway, stream_ids, st.integers(0, 2)),
)


def encoded(codec: spdy.Codec, event: spdy.Event) -> bytes:
    match event:
        case spdy.StreamOpened(stream_id, fields, fin):
            return codec.syn_stream(stream_id, fields, fin=fin)
        case spdy.StreamReplied(stream_id, fields, fin):
            return codec.syn_reply(stream_id, fields, fin=fin)
        case spdy.DataReceived(stream_id, payload, fin):
            return spdy.data(stream_id, payload, fin=fin)
        case spdy.StreamReset(stream_id, status):
            return spdy.rst_stream(stream_id, status)
        case spdy.PingReceived(ping_id):
            return spdy.ping(ping_id)
        case spdy.GoneAway(stream_id, status):
            return spdy.goaway(stream_id, status)


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 5000), max_size=20))
def test_what_one_codec_writes_another_reads_in_any_chunks(sent: list[spdy.Event], cuts: list[int]) -> None:
    writer, reader = spdy.Codec(), spdy.Codec()
    wire = b"".join(encoded(writer, event) for event in sent)
    received = [event for chunk in chunks_of(wire, cuts) for event in reader.receive(chunk)]
    assert joined(received) == joined(sent)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_arbitrary_bytes_raise_nothing_but_spdy_error(garbage: bytes, cuts: list[int]) -> None:
    codec = spdy.Codec()
    with contextlib.suppress(spdy.SpdyError):
        for chunk in chunks_of(garbage, cuts):
            list(codec.receive(chunk))


@given(st.integers(0, 10), st.binary(max_size=60))
def test_arbitrary_control_frames_raise_nothing_but_spdy_error(kind: int, body: bytes) -> None:
    with contextlib.suppress(spdy.SpdyError):
        list(spdy.Codec().receive(struct.pack("!HHI", 0x8003, kind, len(body)) + body))


def test_frames_of_flow_control_and_settings_are_passed_over() -> None:
    window_update = struct.pack("!HHIII", 0x8003, spdy.WINDOW_UPDATE, 8, 1, 65536)
    settings = struct.pack("!HHIIII", 0x8003, spdy.SETTINGS, 12, 1, 7, 65536)
    assert list(spdy.Codec().receive(window_update + settings + spdy.ping(1))) == [spdy.PingReceived(1)]


def test_a_headers_frame_is_ignored_but_keeps_the_compression_in_step() -> None:
    writer, reader = spdy.Codec(), spdy.Codec()
    opening = writer.syn_stream(1, {"streamtype": "error"})
    block = writer.syn_reply(1, {"more": "headers"})[8:]
    more = struct.pack("!HHI", 0x8003, spdy.HEADERS, len(block)) + block
    second = writer.syn_stream(3, {"streamtype": "data"})
    assert [*reader.receive(opening + more + second)] == [
        spdy.StreamOpened(1, {"streamtype": "error"}),
        spdy.StreamOpened(3, {"streamtype": "data"}),
    ]


def test_data_is_passed_on_before_its_frame_is_whole_and_fin_comes_last() -> None:
    codec = spdy.Codec()
    frame = spdy.data(5, b"abcdef", fin=True)
    assert list(codec.receive(frame[:10])) == [spdy.DataReceived(5, b"ab")]
    assert list(codec.receive(frame[10:])) == [spdy.DataReceived(5, b"cdef", fin=True)]


def test_a_header_block_that_grows_beyond_its_bound_is_refused() -> None:
    codec = spdy.Codec()
    bomb = spdy.Codec().syn_stream(1, {"x": "a" * (spdy.HEADER_BLOCK_BYTES_MAX + 1)})
    assert len(bomb) < 2000
    with pytest.raises(spdy.SpdyError, match="limit"):
        list(codec.receive(bomb))


def test_a_control_frame_beyond_its_bound_is_refused_before_it_has_come() -> None:
    with pytest.raises(spdy.SpdyError, match="limit"):
        list(spdy.Codec().receive(struct.pack("!HHI", 0x8003, 1, 0xFFFFFF)))


@pytest.mark.parametrize("version", [2, 4])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(spdy.SpdyError, match="version"):
        list(spdy.Codec().receive(struct.pack("!HHII", 0x8000 | version, spdy.PING, 4, 1)))
