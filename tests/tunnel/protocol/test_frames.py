from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tunnel.protocol.joined import frames_of
from tunnel.protocol import frames, greetings
from tunnel.protocol.errors import Processed, RemoteProtocolError, StreamCode
from tunnel.protocol.frames import FrameType
from tunnel.protocol.greetings import Hello, Resume, Welcome

KIB, MIB = 1024, 1024 * 1024

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
short = st.binary(max_size=300)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
limits = st.integers(frames.MIN_FRAME_BYTES, frames.MAX_FRAME_LIMIT_BYTES)
windows = st.integers(1, 4 * 1024 * 1024)


def only(frame: bytes, frame_type: FrameType, stream_id: int = 0) -> tuple[int, bytes]:
    """The flags and payload of a message of one frame."""
    ((found_type, flags, found_id, payload),) = frames_of(frame)
    assert (found_type, found_id) == (frame_type, stream_id)
    return flags, payload


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (frames.open_prefix(1, 7, 9, 2, frames.FIN), "01 01 0000 00000001 0000000a 00000007 00000009"),
        (frames.head_prefix(2, 9, 2, 0), "02 00 0000 00000002 00000006 00000009"),
        (frames.window(3, 5), "03 00 0000 00000003 00000004 00000005"),
        (
            frames.reset(2, StreamCode.TIMEOUT, Processed.MAYBE, "no", in_line=True),
            "04 04 0000 00000002 00000005 0003 01 6e6f",
        ),
        (frames.context(1, 2, b"t"), "05 00 0000 00000000 00000009 00000001 00000002 74"),
        (frames.ack(258), "12 00 0000 00000000 00000008 0000000000000102"),
        (
            frames.ping(1, 2, 3, answer=True),
            "13 02 0000 00000000 00000018 0000000000000001 0000000000000002 0000000000000003",
        ),
        (
            frames.ping(1, 2, 3, answer=False),
            "13 00 0000 00000000 00000018 0000000000000001 0000000000000002 0000000000000003",
        ),
        (
            frames.goaway(1, 4503, 5, 6, "x"),
            "14 00 0000 00000000 0000000f 00000001 1197 00000005 00000006 78",
        ),
    ],
)
def test_the_bytes_of_each_frame_are_those_of_the_text(frame: bytes, wire: str) -> None:
    """PROTOCOL.md, "Frames": what both ends get wrong alike would come back all the same."""
    assert frame == bytes.fromhex(wire)


@given(u32, u32, u32, short)
def test_open_comes_back(stream_id: int, context: int, length: int, part: bytes) -> None:
    frame = frames.open_prefix(stream_id, context, length, len(part), frames.FIN) + part
    flags, payload = only(frame, FrameType.OPEN, stream_id)
    assert flags == frames.FIN
    assert frames.decode_open(payload) == (context, length, part)


@given(u32, u32, short)
def test_head_comes_back(stream_id: int, length: int, part: bytes) -> None:
    frame = frames.head_prefix(stream_id, length, len(part), 0) + part
    assert frames.decode_head(only(frame, FrameType.HEAD, stream_id)[1]) == (length, part)


@given(u32, u32)
def test_window_comes_back(stream_id: int, delta: int) -> None:
    frame = frames.window(stream_id, delta)
    assert frames.decode_window(only(frame, FrameType.WINDOW, stream_id)[1]) == delta


@example(2, StreamCode.CANCEL, Processed.NO, "x" + "ä" * 100, False)
@given(u32, st.sampled_from(StreamCode), st.sampled_from(Processed), st.text(max_size=400), st.booleans())
def test_reset_comes_back_with_a_reason_cut_at_a_character(
    stream_id: int, code: StreamCode, processed: Processed, reason: str, in_line: bool
) -> None:
    frame = frames.reset(stream_id, code, processed, reason, in_line=in_line)
    flags, payload = only(frame, FrameType.RESET, stream_id)
    found_code, found_processed, found_reason = frames.decode_reset(payload)
    assert (found_code, found_processed) == (code, processed)
    assert bool(flags & frames.IN_LINE) == in_line
    sent = reason.encode("utf-8", "replace").decode()
    assert "".join(c if c.isprintable() else "\ufffd" for c in sent).startswith(found_reason)
    assert frames.REASON_BYTES_MAX >= len(payload) - 3 >= min(len(sent.encode()), frames.REASON_BYTES_MAX - 3)


def test_a_reason_cannot_forge_a_log_line_or_move_a_cursor() -> None:
    assert frames.decode_reason(b"done\r\n\x1b[2Jroot logged in") == "done\ufffd\ufffd\ufffd[2Jroot logged in"


@given(u32, u32, short)
def test_context_comes_back(index: int, group: int, payload: bytes) -> None:
    frame = frames.context(index, group, payload)
    assert frames.decode_context(only(frame, FrameType.CONTEXT)[1]) == (index, group, payload)


@given(u64, u64, u64, st.booleans())
def test_ack_and_ping_come_back(opaque: int, received: int, clock_ms: int, answer: bool) -> None:
    assert frames.decode_ack(only(frames.ack(received), FrameType.ACK)[1]) == received
    flags, payload = only(frames.ping(opaque, received, clock_ms, answer=answer), FrameType.PING)
    assert frames.decode_ping(payload) == (opaque, received, clock_ms)
    assert bool(flags & frames.ACK_FLAG) == answer


@given(u32, u16, u32, u32, names)
def test_goaway_comes_back(last_id: int, code: int, drain_ms: int, retry_ms: int, reason: str) -> None:
    payload = only(frames.goaway(last_id, code, drain_ms, retry_ms, reason), FrameType.GOAWAY)[1]
    assert frames.decode_goaway(payload) == (last_id, code, drain_ms, retry_ms, reason)


@pytest.mark.parametrize(
    ("decode", "least", "most"),
    [
        (frames.decode_open, 8, None),
        (frames.decode_head, 4, None),
        (frames.decode_window, 4, 4),
        (frames.decode_reset, 3, 3 + 200),
        (frames.decode_context, 8, 8 + 8 * KIB),
        (frames.decode_ack, 8, 8),
        (frames.decode_ping, 24, 24),
        (frames.decode_goaway, 14, 14 + 200),
    ],
)
def test_a_payload_has_the_length_that_the_text_gives_it(
    decode: Callable[[bytes], object], least: int, most: int | None
) -> None:
    right, wrong = [least], [least - 1]
    if most is not None:
        right.append(most)
        wrong.append(most + 1)
    for size in right:
        decode(bytes(size))
    for size in wrong:
        with pytest.raises(RemoteProtocolError, match=r"of \d+ bytes"):
            decode(bytes(size))


hellos = st.builds(
    Hello,
    versions=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    max_frame=limits,
    initial_window=windows,
    max_streams=st.integers(1, 2**31),
    features=st.lists(names, max_size=3).map(tuple),
    cluster=names,
    instance=names,
    boot_id=names,
    nonce=st.just("") | st.binary(min_size=16, max_size=16).map(bytes.hex),
    software=names,
    resume=st.none() | st.builds(Resume, names, st.integers(0, 2**62), st.integers(0, 2**62)),
)
welcomes = st.builds(
    Welcome,
    version=st.integers(0, 2**40),
    session_id=names,
    resume_ttl_s=st.integers(0, 600),
    max_frame=limits,
    initial_window=windows,
    max_streams=st.integers(1, 2**31),
    features=st.lists(names, max_size=3).map(tuple),
    replica=names,
    tunnels=st.integers(1, 2**63),
    boot_id=names,
    software=names,
    server_time_ms=st.integers(0, 2**50),
    resumed=st.booleans(),
    last_rx=st.integers(0, 2**62),
)


@given(hellos, welcomes)
def test_greetings_come_back(hello: Hello, welcome: Welcome) -> None:
    assert greetings.decode_hello(only(greetings.hello(hello), FrameType.HELLO)[1]) == hello
    assert greetings.decode_welcome(only(greetings.welcome(welcome), FrameType.WELCOME)[1]) == welcome


def test_a_greeting_of_an_older_peer_has_defaults_and_of_a_newer_one_is_read_all_the_same() -> None:
    assert greetings.decode_hello(b"{}") == Hello()
    assert greetings.decode_welcome(b"{}") == Welcome()
    newer = json.dumps({"cluster": "c", "zstd": {"level": 3}, "resume": {"session": "s", "epoch": 7}})
    assert greetings.decode_hello(newer.encode()) == Hello(cluster="c", resume=Resume("s"))


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [("max_frame", 16 * KIB, MIB), ("initial_window", 1, 4 * MIB), ("max_streams", 1, 2**31)],
)
@pytest.mark.parametrize("decode", [greetings.decode_hello, greetings.decode_welcome])
def test_what_a_greeting_agrees_on_is_within_the_bounds_of_the_text(
    decode: Callable[[bytes], Hello | Welcome], key: str, least: int, most: int
) -> None:
    for value in (least, most):
        assert getattr(decode(json.dumps({key: value}).encode()), key) == value
    for wrong in (least - 1, most + 1, True, float(least), str(least), None):
        with pytest.raises(RemoteProtocolError, match=f"greeting's {key} is not"):
            decode(json.dumps({key: wrong}).encode())


@pytest.mark.parametrize("key", ["last_rx", "first_tx", "next_tx", "attempt"])
def test_what_a_dialer_resumes_with_are_numbers_from_0_to_2_63(key: str) -> None:
    for value in (0, 2**63):
        resume = greetings.decode_hello(json.dumps({"resume": {key: value}}).encode()).resume
        assert getattr(resume, key) == value
    for wrong in (-1, 2**63 + 1, True, 1.0):
        with pytest.raises(RemoteProtocolError, match=f"greeting's {key} is not"):
            greetings.decode_hello(json.dumps({"resume": {key: wrong}}).encode())


@pytest.mark.parametrize("key", ["resume_ttl_s", "server_time_ms", "last_rx", "next_tx", "resumed"])
def test_a_welcome_has_a_value_of_its_kind_or_none(key: str) -> None:
    right = True if key == "resumed" else 2**63
    assert getattr(greetings.decode_welcome(json.dumps({key: right}).encode()), key) == right
    for wrong in (int(right) + 2, -1, "1", None):
        with pytest.raises(RemoteProtocolError, match=f"greeting's {key} is n"):
            greetings.decode_welcome(json.dumps({key: wrong}).encode())


def test_a_dialer_is_asked_for_one_session_or_more() -> None:
    for value in (1, 2**63):
        assert greetings.decode_welcome(json.dumps({"tunnels": value}).encode()).tunnels == value
    for wrong in (0, 2**63 + 1, True, 2.0, "2", None):
        with pytest.raises(RemoteProtocolError, match="greeting's tunnels is not"):
            greetings.decode_welcome(json.dumps({"tunnels": wrong}).encode())


@pytest.mark.parametrize(
    ("decode", "key"),
    [(greetings.decode_hello, key) for key in ("cluster", "instance", "boot_id", "software")]
    + [(greetings.decode_welcome, key) for key in ("session", "replica", "boot_id", "software")],
)
def test_a_text_of_a_greeting_is_short_since_it_is_said_again_and_again(
    decode: Callable[[bytes], Hello | Welcome], key: str
) -> None:
    decode(json.dumps({key: "x" * frames.TEXT_CHARACTERS_MAX}).encode())
    with pytest.raises(RemoteProtocolError, match=f"greeting's {key} is not printable ASCII of at most 256"):
        decode(json.dumps({key: "x" * (frames.TEXT_CHARACTERS_MAX + 1)}).encode())


def test_a_nonce_is_16_bytes_in_lower_hexadecimal_or_none() -> None:
    nonce = "0123456789abcdef" * 2
    assert greetings.decode_hello(json.dumps({"nonce": nonce}).encode()).nonce == nonce
    assert greetings.decode_hello(b"{}").nonce == greetings.decode_hello(b'{"nonce": ""}').nonce == ""
    for wrong in (nonce[:-1], nonce + "0", nonce.upper(), "g" * 32, nonce + "\n", 7, None, [nonce]):
        with pytest.raises(RemoteProtocolError, match="greeting's nonce is not"):
            greetings.decode_hello(json.dumps({"nonce": wrong}).encode())


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b'{"max_frame": "many"}',
        b'{"max_frame": 100}',
        b'{"max_frame": 1048577}',
        b'{"initial_window": 0}',
        b'{"max_streams": true}',
        b'{"max_streams": ' + b"9" * 5000 + b"}",
        b'{"versions": [1.5]}',
        b'{"versions": [true]}',
        b'{"versions": 1}',
        b'{"features": "resume"}',
        b'{"cluster": 7}',
        b'{"cluster": "\xc3\xa4"}',
        b'{"features": [7]}',
        b'{"features": ["\\ud800"]}',
        b'{"cluster": "a\\nb"}',
        b'{"resume": 1}',
        b'{"version": null}',
    ],
)
def test_a_greeting_that_cannot_be_meant_is_refused(greeting: bytes) -> None:
    refused = 0
    for decode in (greetings.decode_hello, greetings.decode_welcome):
        try:
            decode(greeting)
        except RemoteProtocolError:
            refused += 1
    assert refused >= 1


@given(st.binary(max_size=400))
def test_decoders_raise_nothing_but_remote_protocol_error(payload: bytes) -> None:
    for decode in (
        frames.decode_open,
        frames.decode_head,
        frames.decode_window,
        frames.decode_reset,
        frames.decode_context,
        frames.decode_ack,
        frames.decode_ping,
        frames.decode_goaway,
        greetings.decode_hello,
        greetings.decode_welcome,
    ):
        with contextlib.suppress(RemoteProtocolError):
            decode(payload)


def test_a_code_of_a_later_version_is_internal_and_keeps_its_number() -> None:
    code, processed, reason = frames.decode_reset(b"\x03\xe7\x03new")
    assert (code, processed, reason) == (StreamCode.INTERNAL, Processed.MAYBE, "code 999: new")
