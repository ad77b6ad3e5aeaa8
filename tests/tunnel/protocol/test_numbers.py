"""The numbers of the code are those of PROTOCOL.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tunnel
from proxy.message.body import BODY_BYTES_MAX
from proxy.process import settings
from tunnel.dialing import backoff, dial
from tunnel.dialing import resumption as redial
from tunnel.driver import QUEUE_HIGH_BYTES
from tunnel.net import tcp
from tunnel.protocol import congestion, frames, ledger, liveness, memory, schedule, window
from tunnel.protocol.connection import deadlines, drain, resumption, stream_feed
from tunnel.protocol.control import CONTROL_RESETS_MAX, PINGS_ANSWERED_MAX, peer_resets_max
from tunnel.protocol.errors import CloseCode, StreamCode
from tunnel.protocol.session import contexts, table
from tunnel.settings import GREETING_S, Settings

TEXT = (Path(tunnel.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")
KIB, MIB = 1024, 1024 * 1024


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_stream_codes() -> None:
    written = {
        name: int(number) for number, name in re.findall(r"\| (\d+) ([A-Z_]+)", section("Stream codes"))
    }
    assert written == {code.name: code.value for code in StreamCode}


def test_close_codes() -> None:
    written = {int(number) for number in re.findall(r"\b(\d{4}) [a-z]", section("Close codes"))}
    assert written == {code.value for code in CloseCode}


def test_frame_types() -> None:
    written = {
        name: int(number, 16) for number, name in re.findall(r"\| (0x\d\d) \| ([A-Z]+)", section("Frames"))
    }
    assert written == {kind.name: kind.value for kind in frames.FrameType}


def test_limits() -> None:
    kib, mib = KIB, MIB
    limits = section("Limits")
    for line, value in (
        ("| WebSocket message | 1 MiB |", mib == frames.MESSAGE_BYTES_MAX),
        ("`max_frame`: 128 KiB, negotiable from 16 KiB to 1 MiB", 128 * kib == frames.MAX_FRAME_BYTES),
        ("| head | 1 MiB |", mib == frames.HEAD_BYTES_MAX),
        ("| greeting | 16 KiB, within 10 s |", (16 * kib, 10) == (frames.GREETING_BYTES_MAX, GREETING_S)),
        ("| reason | 200 bytes |", frames.REASON_BYTES_MAX == 200),
        ("`max_streams`: 16,384", frames.STREAMS_MAX == 16_384),
        ("4,096 live, 8 KiB each", (4096, 8 * kib) == (contexts.CONTEXTS_MAX, frames.CONTEXT_BYTES_MAX)),
        ("window up to 4 MiB", 4 * mib == window.WINDOW_BYTES_MAX),
        (
            "8 MiB + 1 MiB for control",
            (8 * mib, mib) == (ledger.LEDGER_BYTES_MAX, ledger.LEDGER_RESERVE_BYTES),
        ),
        (
            "| RESETs unacknowledged | 65,536; of the peer's streams 4 × `max_streams`, at least 1,024 |",
            (CONTROL_RESETS_MAX, peer_resets_max(300), peer_resets_max(1)) == (65_536, 4 * 300, 1024),
        ),
        ("| PINGs | 10 a second |", liveness.PINGS_PER_S == 10),
    ):
        assert line in limits
        assert value, line


PROSE = {
    "Greeting": [
        ("The listener waits 10 s for HELLO", Settings().hello_timeout_s == 10),
        ("JSON objects of at most 16 KiB", frames.GREETING_BYTES_MAX == 16 * KIB),
        ("16 KiB to 1 MiB", (frames.MIN_FRAME_BYTES, frames.MAX_FRAME_LIMIT_BYTES) == (16 * KIB, MIB)),
        ("1 byte to 4 MiB", window.WINDOW_BYTES_MAX == 4 * MIB),
    ],
    "Opening": [
        ("The largest is 2^31 - 1", table.LAST_STREAM_ID == 2**31 - 1),
        ("fewer than 2^16 left", stream_feed.IDS_LEFT_AT_GOAWAY == 2**16),
    ],
    "Credit": [
        ("above 2^31 - 1", window.CREDIT_MAX == 2**31 - 1),
        ("within three round trips", window.GROWS_WITHIN_RTTS == 3),
        ("of 5 ms at least", window.RTT_FLOOR_S == 0.005),
    ],
    "Memory": [
        ("until 15/16 are left", (memory.RELIEF_NUMERATOR, memory.RELIEF_DENOMINATOR) == (15, 16)),
        ("queue (256 KiB)", QUEUE_HIGH_BYTES + BODY_BYTES_MAX == 256 * KIB),
        ("0.25 MiB message sent", congestion.MESSAGE_MOST_BYTES == 256 * KIB),
    ],
    "Scheduling": [
        ("carries in 10 ms", congestion.MESSAGE_S == 0.010),
        (
            "within 16 and 256 KiB, and 64 KiB before",
            (16 * KIB, 256 * KIB, 64 * KIB)
            == (
                congestion.MESSAGE_LEAST_BYTES,
                congestion.MESSAGE_MOST_BYTES,
                congestion.MESSAGE_FIRST_BYTES,
            ),
        ),
        ("16 KiB to 64 KiB", schedule.QUANTUM_BYTES == 16 * KIB),
        ("never more than 128 KiB of a stream", drain.DATA_BYTES_MOST == 128 * KIB),
        ("at least 32 KiB", congestion.LEAST_BYTES == 32 * KIB),
        ("128 KiB at first", congestion.FIRST_BYTES == 128 * KIB),
        (
            "the greater of 15 ms and a sixth",
            (congestion.QUEUE_S, congestion.LONG_QUEUE_SHARE) == (0.015, 1 / 6),
        ),
        (
            "At most 512 KiB, or 4 ms if that is more, where the round trip is below 2 ms",
            (512 * KIB, 0.004, 0.002)
            == (congestion.NEAR_QUEUE_BYTES, congestion.NEAR_QUEUE_S, congestion.NEAR_S),
        ),
        ("the last six rounds", congestion.ROUNDS == 6),
        ("not a quarter faster", congestion.LEAST_GROWTH == 1.25),
        ("a quarter higher after a round", congestion.PROBE_GROWTH == 1.25),
        ("less than a quarter of the queue", congestion.UNSEEN_SHARE == 0.25),
        ("less than 16 KiB under way", ledger.ACK_SOON_BYTES == 16 * KIB),
        ("a round that is 0.1 s late", congestion.LATE_BY_S == 0.1),
        ("`TCP_NOTSENT_LOWAT` (128 KiB)", tcp.NOTSENT_LOWAT_BYTES == 128 * KIB),
    ],
    "Sequence numbers": [
        (
            "every 64 frames, every 256 KiB",
            (ledger.ACK_EVERY_FRAMES, ledger.ACK_EVERY_BYTES) == (64, 256 * KIB),
        ),
        ("16 KiB are not covered, but not within 10 ms", ledger.ACK_SOON_S == 0.010),
        ("else 1 s after", ledger.ACK_AFTER_S == 1),
        ("the last count is 50 ms old", ledger.ACK_ALONG_S == 0.050),
        ("At most 8 MiB are unacknowledged", ledger.LEDGER_BYTES_MAX == 8 * MIB),
        ("an eighth of what is left", ledger.LEDGER_SHARE == 8),
        ("at least 272 KiB", ledger.LEDGER_LEAST_BYTES == 272 * KIB),
        ("may use 1 MiB more", ledger.LEDGER_RESERVE_BYTES == MIB),
    ],
    "Liveness": [
        ("a PING at once on a transport, every 30 s", liveness.PING_IDLE_S == settings.PING_S == 30),
        (
            "(`tunnel.ping_s`, 5 s to 60 s)",
            (settings.PING_S_MIN, settings.PING_S_MAX) == (liveness.PING_BUSY_S, resumption.RESUME_TTL_S),
        ),
        ("every 5 s while a stream is open", liveness.PING_BUSY_S == 5),
        ("dead 10 s after", liveness.DEAD_AFTER_S == 10),
        ("nothing came from it for 5 s", liveness.DOUBT_AFTER_S == 5),
        ("unanswered for 1 s", liveness.DOUBT_PING_S == 1),
        ("6 s after the loss", liveness.PING_BUSY_S + liveness.DOUBT_PING_S == 6),
        ("at most 15 s after the loss", liveness.PING_BUSY_S + liveness.DEAD_AFTER_S == 15),
        ("the last 16 are answered", PINGS_ANSWERED_MAX == 16),
        ("40 s without", liveness.PING_IDLE_S + liveness.DEAD_AFTER_S == 40),
        (
            "comes 41 s after the loss",
            liveness.PING_IDLE_S + liveness.DEAD_AFTER_S + redial.RESUME_FIRST_S == 41,
        ),
        (
            "three in a row are more than 0.1 s above",
            (liveness.LONGER_PINGS, liveness.LONGER_BY_S) == (3, 0.1),
        ),
    ],
    "Reconnect": [
        ("takes 10 s at most", dial.DIAL_S == 10),
        ("10, 20, 40 and from then on 60 s", backoff.DELAYS_S == (10, 20, 40, 60)),
        ("A session that lived for 10 s", backoff.SESSION_LIVED_S == 10),
        ("within 1 s after a tunnel", backoff.REDIAL_S == 1),
        ("0.75 s to 1.25 s after", backoff.REDIAL_SPREAD == 0.25),
        (
            "a budget of 20, which gains one in 10 s",
            (backoff.REDIALS_MAX, backoff.REDIAL_REFILL_S) == (20, 10),
        ),
        (
            "up to 300 s, with up to 5 s more",
            (backoff.RETRY_AFTER_MAX_S, backoff.RETRY_AFTER_SPREAD_S) == (300, 5),
        ),
    ],
    "Resumption": [
        ("(60 s at most, even if it says more)", resumption.RESUME_TTL_S == 60),
        ("until 2 s after the detach", deadlines.OPEN_WAITS_S == 2),
        (
            "dials within 1 s after the loss, then 1 s to 2 s",
            (redial.RESUME_FIRST_S, redial.RESUME_PAUSE_S) == (1, 1),
        ),
        ("none takes longer than 5 s", redial.RESUME_DIAL_S == 5),
    ],
}


@pytest.mark.parametrize("title", PROSE)
def test_the_numbers_in_the_prose(title: str) -> None:
    text = " ".join(section(title).split())
    for words, holds in PROSE[title]:
        assert words in text
        assert holds, words
