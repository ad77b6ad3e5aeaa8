from __future__ import annotations

import itertools
import struct
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Request, TextMessage

from tunnel.transport import MESSAGE_BYTES_MAX
from tunnel.websocket_frames import (
    FastWSConnection,
    _fastest_mask,
    apply_mask,
    apply_mask_slowly,
    encode_binary,
)


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
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    assert _fastest_mask() is apply_mask_slowly


def test_each_frame_has_a_mask_of_its_own() -> None:
    frames = {encode_binary(bytes(40), masked=True) for _ in range(20)}
    assert len(frames) == 20


def opened(client: WSConnection, server: WSConnection) -> tuple[WSConnection, WSConnection]:
    server.receive_data(client.send(Request(host="hub.test", target="/")))
    list(server.events())
    client.receive_data(server.send(AcceptConnection()))
    assert [type(event) for event in client.events()] == [AcceptConnection]
    return client, server


def pair(kind: type[WSConnection]) -> dict[ConnectionType, WSConnection]:
    client, server = opened(kind(ConnectionType.CLIENT), kind(ConnectionType.SERVER))
    return {ConnectionType.CLIENT: client, ConnectionType.SERVER: server}


def frame(first: int, payload: bytes, *, masked: bool, length_code: int | None = None) -> bytes:
    """Any frame, right or wrong: `length_code` forces a form of the length."""
    size = len(payload)
    code = length_code if length_code is not None else (size if size < 126 else 126 if size < 65536 else 127)
    extended = struct.pack("!H", size) if code == 126 else struct.pack("!Q", size) if code == 127 else b""
    header = bytes([first, (0x80 if masked else 0) | code]) + extended
    key = b"\x01\x02\x03\x04"
    return header + key + reference_mask(payload, key) if masked else header + payload


def outcome(connection: WSConnection, chunks: list[bytes]) -> list[object]:
    """What the connection makes of the bytes, with the pieces of a message joined."""
    seen: list[object] = []
    parts: list[int | str] = []
    for chunk in chunks:
        connection.receive_data(chunk)
        for event in connection.events():
            if isinstance(event, (BytesMessage, TextMessage)):
                parts += event.data
                if event.message_finished:
                    seen.append(("message", bytes(p for p in parts if isinstance(p, int)) or parts))
                    parts = []
            elif isinstance(event, CloseConnection):
                seen.append(("close", event.code))
            else:
                seen.append(event)
    return seen


# (first byte, size, masked as the role has it, form of the length)
FRAMES = st.tuples(
    st.sampled_from([0x82] * 6 + [0x02, 0x00, 0x80, 0x81, 0x01, 0x89, 0x8A, 0x88, 0xC2, 0x83, 0x09]),
    st.sampled_from([0, 1, 60, 125, 126, 70_000]),
    st.sampled_from([True] * 9 + [False]),
    st.sampled_from([None] * 9 + [126, 127]),
)


PLAIN = (0x82, 60, True, None)


# A whole message between fragments; a length in a longer form than it needs; a message behind a violation.
@example(ConnectionType.SERVER, [(0x02, 1, True, None), PLAIN, (0x80, 1, True, None)], [])
@example(
    ConnectionType.CLIENT, [(0x02, 1, True, None), (0x89, 0, True, None), (0x80, 1, True, None), PLAIN], []
)
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
            b"y" * size,
            masked=from_client is honest,
            length_code=None if code == 126 and size > 65535 else code,
        )
        for first, size, honest, code in frames
    )
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    chunks = [wire[start:end] for start, end in itertools.pairwise(edges) if end > start]
    assert outcome(pair(FastWSConnection)[role], chunks) == outcome(pair(WSConnection)[role], chunks)


@given(
    sender=st.sampled_from(list(ConnectionType)),
    payloads=st.lists(st.sampled_from([b"", b"a", b"b" * 125, b"c" * 126, b"d" * 65535, b"e" * 65536])),
    kinds=st.sampled_from([(FastWSConnection, WSConnection), (WSConnection, FastWSConnection)]),
)
def test_its_messages_are_wsprotos(
    sender: ConnectionType, payloads: list[bytes], kinds: tuple[type[WSConnection], type[WSConnection]]
) -> None:
    client, server = opened(kinds[0](ConnectionType.CLIENT), kinds[1](ConnectionType.SERVER))
    near, far = (client, server) if sender is ConnectionType.CLIENT else (server, client)
    wire = [near.send(BytesMessage(data=payload)) for payload in payloads]
    assert outcome(far, wire) == [("message", payload or []) for payload in payloads]


def test_frames_that_come_with_the_answer_are_not_lost() -> None:
    for cut in range(1, 160):
        client, server = FastWSConnection(ConnectionType.CLIENT), FastWSConnection(ConnectionType.SERVER)
        server.receive_data(client.send(Request(host="hub.test", target="/")))
        list(server.events())
        wire = (
            server.send(AcceptConnection()) + server.send(BytesMessage(data=b"early")) + server.send(Ping())
        )
        events: list[Event] = []
        for chunk in (wire[:cut], wire[cut:]):
            client.receive_data(chunk)
            events += client.events()
        accepted, message, ping = events
        assert isinstance(accepted, AcceptConnection)
        assert message == BytesMessage(data=b"early")
        assert isinstance(ping, Ping)


def test_fragments_of_our_own_go_the_long_way() -> None:
    ends = pair(FastWSConnection)
    client, server = ends[ConnectionType.CLIENT], ends[ConnectionType.SERVER]
    wire = [
        client.send(BytesMessage(data=b"one ", message_finished=False)),
        client.send(BytesMessage(data=b"two ", message_finished=False)),
        client.send(BytesMessage(data=b"three", message_finished=True)),
        client.send(BytesMessage(data=b"next")),
    ]
    assert outcome(server, wire) == [("message", b"one two three"), ("message", b"next")]


@pytest.mark.parametrize("role", list(ConnectionType))
def test_a_frame_above_the_limit_is_not_collected(role: ConnectionType) -> None:
    connection = pair(FastWSConnection)[role]
    assert isinstance(connection, FastWSConnection)
    masked = role is ConnectionType.SERVER
    wire = frame(0x82, bytes(MESSAGE_BYTES_MAX + 1), masked=masked)
    pieces = 0
    for start in range(0, len(wire), 65536):
        connection.receive_data(wire[start : start + 65536])
        pieces += len(list(connection.events()))
        assert not connection._received
    assert pieces > 10
