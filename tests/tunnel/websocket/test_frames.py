from __future__ import annotations

import itertools
import os
import struct
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tunnel.protocol.streams import SMALL_BYTES
from tunnel.websocket.frames import (
    FrameReader,
    _fastest_mask,
    apply_mask,
    apply_mask_slowly,
    encode_binary,
)
from tunnel.websocket.transport import MESSAGE_BYTES_MAX


def reference_mask(data: bytes, key: bytes) -> bytes:
    """RFC 6455 5.3: j = i MOD 4, transformed-octet-i = original-octet-i XOR masking-key-octet-j."""
    return bytes(octet ^ key[i % 4] for i, octet in enumerate(data))


@given(data=st.binary(max_size=300), key=st.binary(min_size=4, max_size=4))
def test_masks_are_those_of_the_rfc(data: bytes, key: bytes) -> None:
    expected = reference_mask(data, key)
    for mask in (apply_mask, apply_mask_slowly):
        assert mask(data, key) == expected
        assert mask(memoryview(data), key) == expected
        assert mask(bytearray(data), key) == expected


def test_the_fast_mask_is_in_use_where_it_is_installed() -> None:
    assert apply_mask is not apply_mask_slowly


def test_without_the_extra_the_slow_mask_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    assert _fastest_mask() is apply_mask_slowly


@pytest.mark.parametrize("suffix", [".py", EXTENSION_SUFFIXES[0]])
def test_the_extra_without_an_extension_that_loads_leaves_the_slow_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (tmp_path / "websockets").mkdir()
    (tmp_path / "websockets" / "__init__.py").write_text("")
    (tmp_path / "websockets" / f"speedups{suffix}").write_text("")
    monkeypatch.delitem(sys.modules, "websockets", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _fastest_mask() is apply_mask_slowly


def test_each_frame_has_a_mask_of_its_own() -> None:
    frames = {encode_binary(bytes(40), masked=True) for _ in range(20)}
    assert len(frames) == 20


def reader(role: ConnectionType) -> FrameReader:
    return FrameReader(Connection(role))


def frame(first: int, payload: bytes, *, masked: bool, length_code: int | None = None) -> bytes:
    """Any frame, right or wrong: `length_code` forces a form of the length."""
    size = len(payload)
    code = length_code if length_code is not None else (size if size < 126 else 126 if size < 65536 else 127)
    extended = struct.pack("!H", size) if code == 126 else struct.pack("!Q", size) if code == 127 else b""
    header = bytes([first, (0x80 if masked else 0) | code]) + extended
    key = b"\x01\x02\x03\x04"
    return header + key + reference_mask(payload, key) if masked else header + payload


Outcome = list[tuple[str, object]]


def outcome(role: ConnectionType, chunks: list[bytes]) -> Outcome:
    """What the reader makes of the bytes."""
    frames = reader(role)
    seen: Outcome = []
    for chunk in chunks:
        frames.feed(chunk)
        while not frames.drained and (event := frames.next_event()) is not None:
            if isinstance(event, bytes):
                seen.append(("message", event))
            elif isinstance(event, CloseConnection):
                seen.append(("close", event.code))
            elif isinstance(event, Ping):
                seen.append(("ping", bytes(event.payload)))
            else:
                # Only to be counted.
                assert isinstance(event, Pong) or not event.message_finished
    return seen


def outcome_of_wsproto(role: ConnectionType, chunks: list[bytes]) -> Outcome:
    """What is to be made of the bytes: wsproto's events, with our limit and for binary messages only."""
    connection = Connection(role)
    seen: Outcome = []
    message = b""
    for chunk in chunks:
        connection.receive_data(chunk)
        for event in connection.events():
            match event:
                case BytesMessage():
                    message += event.data
                    if len(message) > MESSAGE_BYTES_MAX:
                        return [*seen, ("close", 1009)]
                    if event.message_finished:
                        seen.append(("message", message))
                        message = b""
                case TextMessage():
                    return [*seen, ("close", 1003)]
                case CloseConnection():
                    return [*seen, ("close", event.code)]
                case Ping():
                    seen.append(("ping", bytes(event.payload)))
    return seen


# (first byte, size, masked as the role has it, form of the length)
FRAMES = st.tuples(
    st.sampled_from([0x82] * 6 + [0x02, 0x00, 0x80, 0x81, 0x01, 0x89, 0x8A, 0x88, 0xC2, 0x83, 0x09]),
    st.sampled_from([0, 1, 60, 125, 126, 70_000]),
    st.sampled_from([True] * 9 + [False]),
    st.sampled_from([None] * 9 + [126, 127]),
)


PLAIN = (0x82, 60, True, None)
LONG = (0x82, 70_000, True, None)
# So that bytes which are lost, doubled or out of their order show; and text, where it is to be text.
PATTERN = bytes(range(32, 127)) * 740


# Messages torn in three; a whole one between fragments; a length in a longer form than it needs; a message
# behind a violation.
@example(ConnectionType.SERVER, [LONG, LONG], [1, 9, 12, 10_000, 20_000, 80_000, 90_000])
@example(ConnectionType.CLIENT, [LONG, LONG], [1, 9, 12, 10_000, 20_000, 80_000, 90_000])
@example(ConnectionType.SERVER, [(0x02, 1, True, None), PLAIN, (0x80, 1, True, None)], [])
@example(
    ConnectionType.CLIENT, [(0x02, 1, True, None), (0x89, 0, True, None), (0x80, 1, True, None), PLAIN], []
)
@example(ConnectionType.SERVER, [(0x02, 1, True, None), (0x89, 0, True, None), PLAIN], [])
@example(ConnectionType.CLIENT, [(0x02, 70_000, True, None), (0x80, 60, True, None), PLAIN], [9, 20_000])
@example(ConnectionType.CLIENT, [(0x82, 60, True, 126), PLAIN], [])
@example(ConnectionType.SERVER, [(0x82, 126, True, 127), PLAIN], [])
@example(ConnectionType.SERVER, [(0xC2, 1, True, None), PLAIN], [])
@example(ConnectionType.SERVER, [PLAIN, (0x88, 0, True, None), PLAIN], [20])
@given(
    role=st.sampled_from(list(ConnectionType)),
    frames=st.lists(FRAMES, max_size=6),
    cuts=st.lists(st.integers(0, 150_000) | st.integers(0, 300), max_size=6),
)
def test_it_judges_any_bytes_as_wsproto_does(
    role: ConnectionType, frames: list[tuple[int, int, bool, int | None]], cuts: list[int]
) -> None:
    from_client = role is ConnectionType.SERVER
    wire = b"".join(
        frame(
            first,
            PATTERN[:size],
            masked=from_client is honest,
            length_code=None if code == 126 and size > 65535 else code,
        )
        for first, size, honest, code in frames
    )
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    chunks = [wire[start:end] for start, end in itertools.pairwise(edges) if end > start]
    assert outcome(role, chunks) == outcome_of_wsproto(role, chunks)


@given(payloads=st.lists(st.sampled_from([b"", b"a", b"b" * 125, b"c" * 126, b"d" * 65535, b"e" * 65536])))
@pytest.mark.parametrize("sender", list(ConnectionType))
def test_its_messages_are_wsprotos(sender: ConnectionType, payloads: list[bytes]) -> None:
    receiver = ConnectionType.SERVER if sender is ConnectionType.CLIENT else ConnectionType.CLIENT
    expected: Outcome = [("message", payload) for payload in payloads]
    ours = [encode_binary(payload, masked=sender is ConnectionType.CLIENT) for payload in payloads]
    assert outcome_of_wsproto(receiver, ours) == expected
    theirs = [bytes(Connection(sender).send(BytesMessage(data=payload))) for payload in payloads]
    assert outcome(receiver, theirs) == expected


@pytest.mark.parametrize("role", list(ConnectionType))
def test_a_message_above_the_limit_is_refused(role: ConnectionType) -> None:
    masked = role is ConnectionType.SERVER
    for begun, wire in (
        (b"", frame(0x82, bytes(MESSAGE_BYTES_MAX + 1), masked=masked)),
        (frame(0x02, b"x", masked=masked), frame(0x80, bytes(MESSAGE_BYTES_MAX), masked=masked)),
    ):
        frames = reader(role)
        frames.feed(begun + wire)
        if begun:
            assert isinstance(frames.next_event(), BytesMessage)
        closed = frames.next_event()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1009
        frames.feed(wire)
        assert frames.next_event() is None
        assert frames._data == b""


@pytest.mark.parametrize("role", list(ConnectionType))
@pytest.mark.parametrize("fragments", [[MESSAGE_BYTES_MAX], [1, MESSAGE_BYTES_MAX - 1]])
def test_a_message_of_just_the_limit_is_taken(role: ConnectionType, fragments: list[int]) -> None:
    first, *others = [bytes(size) for size in fragments]
    masked = role is ConnectionType.SERVER
    wire = frame(0x02 if others else 0x82, first, masked=masked)
    wire += b"".join(frame(0x80, payload, masked=masked) for payload in others)
    assert outcome(role, [wire]) == [("message", bytes(MESSAGE_BYTES_MAX))]


@pytest.mark.parametrize("role", list(ConnectionType))
def test_only_bytes_of_a_message_are_told_as_the_peers_own(role: ConnectionType) -> None:
    frames = reader(role)
    masked = role is ConnectionType.SERVER
    message = frame(0x82, bytes(1000), masked=masked)
    control = [frame(first, b"", masked=masked) for first in (0x89, 0x8A)]
    for wire, own in (
        *((wire, False) for wire in control),
        (message[:3], False),
        (message[3:500], True),
        (message[500:600], True),
        (message[600:], True),
        (frame(0x02, b"x", masked=masked), True),
        *((wire, False) for wire in control),
        (frame(0x80, b"y", masked=masked), True),
    ):
        frames.of_messages = False
        frames.feed(wire)
        while frames.next_event() is not None:
            pass
        assert frames.of_messages is own


@pytest.mark.parametrize("role", list(ConnectionType))
def test_what_was_read_is_not_kept(role: ConnectionType) -> None:
    frames = reader(role)
    wire = encode_binary(bytes(1000), masked=role is ConnectionType.SERVER)
    frames.feed(wire)
    assert frames.next_event() == bytes(1000)
    assert frames.drained
    assert frames._data == b""
    assert frames.next_event() is None
    # A torn message as well, once it is whole.
    frames.feed(wire[:100])
    assert frames.next_event() is None
    frames.feed(wire[100:])
    assert not frames.drained
    assert frames.next_event() == bytes(1000)
    assert frames.next_event() is None
    assert frames._data == b""


@pytest.mark.parametrize("role", list(ConnectionType))
def test_a_message_that_comes_byte_by_byte_costs_little_more_than_its_bytes(role: ConnectionType) -> None:
    frames = reader(role)
    payload = os.urandom(20_000)
    wire = encode_binary(payload, masked=role is ConnectionType.SERVER)
    for at in range(len(wire) - 1):
        frames.feed(wire[at : at + 1])
        assert frames.next_event() is None
    assert len(frames._parts) < 2 * len(wire) / SMALL_BYTES
    frames.feed(wire[-1:])
    assert frames.next_event() == payload
