"""The numbers of the code are those of PROTOCOL.md."""

from __future__ import annotations

import re
from pathlib import Path

import tunnel
from tunnel.protocol import core, frames, ledger, liveness, window
from tunnel.protocol.control import CONTROL_RESETS_MAX
from tunnel.protocol.errors import CloseCode, StreamCode

TEXT = (Path(tunnel.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")


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
    kib, mib = 1024, 1024 * 1024
    limits = section("Limits")
    for line, value in (
        ("| WebSocket message | 1 MiB |", mib == frames.MESSAGE_BYTES_MAX),
        ("`max_frame`: 128 KiB, negotiable from 16 KiB to 1 MiB", 128 * kib == frames.MAX_FRAME_BYTES),
        ("| head | 1 MiB |", mib == frames.HEAD_BYTES_MAX),
        ("| greeting | 16 KiB, within 10 s |", 16 * kib == frames.GREETING_BYTES_MAX),
        ("| reason | 200 bytes |", frames.REASON_BYTES_MAX == 200),
        ("`max_streams`: 16,384", frames.STREAMS_MAX == 16_384),
        ("4,096 live, 8 KiB each", (4096, 8 * kib) == (core.CONTEXTS_MAX, frames.CONTEXT_BYTES_MAX)),
        ("window up to 4 MiB", 4 * mib == window.WINDOW_BYTES_MAX),
        (
            "8 MiB + 1 MiB for control",
            (8 * mib, mib) == (ledger.LEDGER_BYTES_MAX, ledger.LEDGER_RESERVE_BYTES),
        ),
        ("| RESETs unacknowledged | 65,536 |", CONTROL_RESETS_MAX == 65_536),
        ("| PINGs | 10 a second |", liveness.PINGS_PER_S == 10),
    ):
        assert line in limits
        assert value, line
