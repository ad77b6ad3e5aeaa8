"""Reads what two connections say to each other by PROTOCOL.md alone, and knows no code of theirs.

Both ends of a test are the same core, and what it misreads it also miswrites: no end complains of a WINDOW
that the text forbids, or of an id that is not used as the text has it. The author of another peer will.
"""

from __future__ import annotations

import json
import struct
from collections import deque

import attrs

from tests.tunnel.protocol.joined import Joined
from tests.tunnel.protocol.recorded import Recorded

KIB = 1024
MIB = 1024 * KIB
DATA, OPEN, HEAD, WINDOW, RESET, CONTEXT, HELLO, WELCOME, ACK, PING, GOAWAY = (*range(6), *range(0x10, 0x15))
FIN, ANSWER, IN_LINE = 0x01, 0x02, 0x04
FLAGS = {OPEN: FIN, HEAD: FIN, DATA: FIN, PING: ANSWER, RESET: IN_LINE}


@attrs.define
class Half:
    """What a side may still send on a stream."""

    credit: int
    fresh: bool
    head_left: int = 0
    ended: bool = False
    reset: bool = False
    """By this side."""
    reset_at_once: bool = False
    told: bool = False
    """That the other side has reset the stream."""


@attrs.define
class Side:
    """What one end has said and heard, and so what it may say."""

    first_id: int
    greeting: int
    other: Side = attrs.field(init=False, repr=False)
    limits: dict[str, int] = attrs.Factory(dict)
    greeted: bool = False
    last_id: int = 0
    contexts: set[int] = attrs.Factory(set)
    last_context: int = 0
    halves: dict[int, Half] = attrs.Factory(dict)
    sent: int = 0
    received: int = 0
    counted: int = 0
    """What it has acknowledged last."""
    unacknowledged: deque[int] = attrs.Factory(deque)
    """The sizes of the sequenced frames that the other side has not acknowledged."""
    unacknowledged_bytes: int = 0

    # --- what it says ---

    def says(self, message: bytes) -> None:
        assert len(message) <= MIB
        data_seen, windows = False, set()
        for kind, flags, stream, payload in parsed(message):
            assert flags & ~FLAGS.get(kind, 0) == 0
            assert (stream == 0) == (kind == CONTEXT or kind >= HELLO)
            assert self.greeted == (kind not in (HELLO, WELCOME))
            if kind in (OPEN, HEAD, DATA) or (kind == RESET and flags & IN_LINE):
                data_seen = True
            else:
                assert not data_seen, "control goes first"
            if kind == WINDOW:
                assert stream not in windows, "all of a stream in one"
                windows.add(stream)
            if kind < HELLO:
                self.sent += 1
                self.unacknowledged.append(12 + len(payload))
                self.unacknowledged_bytes += 12 + len(payload)
                assert self.unacknowledged_bytes <= 9 * MIB
            if self.other.greeted:
                assert len(payload) <= self.other.limits["max_frame"]
            self.say(kind, flags, stream, payload)

    def say(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == self.greeting:
            assert len(payload) <= 16 * KIB
            self.limits = json.loads(payload)
            self.greeted = True
        elif kind == OPEN:
            context, length = struct.unpack_from(">II", payload)
            assert stream % 2 == self.first_id % 2
            assert self.last_id < stream < 2**31
            assert context in self.contexts, "a context goes out before any OPEN that names it"
            self.last_id = stream
            self.halves[stream] = Half(self.other.limits["initial_window"], fresh=False)
            self.send_head(self.halves[stream], flags, length, len(payload) - 8)
        elif kind == CONTEXT:
            index, _ = struct.unpack_from(">II", payload)
            assert len(payload) <= 8 + 8 * KIB
            if len(payload) > 8:
                assert index > self.last_context
                self.last_context = index
                self.contexts.add(index)
            else:
                self.contexts.remove(index)
        elif kind in (ACK, PING):
            *_, count = struct.unpack_from(">Q" if kind == ACK else ">QQ", payload)
            assert len(payload) == (8 if kind == ACK else 24)
            assert self.counted <= count <= self.received
            self.counted = count
        elif kind == GOAWAY:
            assert 14 <= len(payload) <= 214
        else:
            self.say_on(self.halves[stream], kind, flags, stream, payload)

    def say_on(self, half: Half, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW:
            (credit,) = struct.unpack(">I", payload)
            assert not half.reset_at_once, "no WINDOW after an immediate RESET"
            assert 0 < credit <= 4 * MIB
        elif kind == RESET:
            assert 3 <= len(payload) <= 203
            assert not half.reset, "a stream is reset once"
            half.reset, half.reset_at_once = True, not flags & IN_LINE
        else:
            assert not half.ended
            assert not half.reset
            assert not half.told
            if kind == HEAD:
                assert half.fresh
                assert stream % 2 != self.first_id % 2, "HEAD comes from the acceptor"
                (length,) = struct.unpack_from(">I", payload)
                self.send_head(half, flags, length, len(payload) - 4)
            else:
                assert len(payload) <= min(half.credit, 128 * KIB)
                half.credit -= len(payload)
                half.head_left = max(0, half.head_left - len(payload))
                half.ended = bool(flags & FIN)
                assert not (half.ended and half.head_left)
            half.fresh = False

    def send_head(self, half: Half, flags: int, length: int, part: int) -> None:
        assert part <= length <= MIB
        half.head_left = length - part
        half.ended = bool(flags & FIN)
        assert not (half.ended and half.head_left)

    # --- what it hears ---

    def hears(self, message: bytes) -> None:
        for kind, _, stream, payload in parsed(message):
            self.received += kind < HELLO
            if kind == OPEN:
                self.halves[stream] = Half(self.other.limits["initial_window"], fresh=True)
            elif kind == WINDOW:
                self.halves[stream].credit += struct.unpack(">I", payload)[0]
            elif kind == RESET:
                self.halves[stream].told = True
            elif kind in (ACK, PING):
                (count,) = struct.unpack_from(">Q", payload, 0 if kind == ACK else 8)
                while self.sent - len(self.unacknowledged) < count:
                    self.unacknowledged_bytes -= self.unacknowledged.popleft()


def parsed(message: bytes) -> list[tuple[int, int, int, bytes]]:
    found, at = [], 0
    while at < len(message):
        kind, flags, reserved, stream, length = struct.unpack_from(">BBHII", message, at)
        assert reserved == 0
        at += 12 + length
        assert at <= len(message), "a frame is never cut"
        found.append((kind, flags, stream, message[at - length : at]))
    return found


class Watched(Joined):
    """Two connections, and an onlooker that fails the test at the first word that the text does not allow."""

    _side_of: dict[bool, Side] | None = None

    def side(self, connection: Recorded) -> Side:
        if self._side_of is None:
            dialer, listener = Side(1, HELLO), Side(2, WELCOME)
            dialer.other, listener.other = listener, dialer
            self._side_of = {True: dialer, False: listener}
        return self._side_of[connection is self.dialer]

    def send(self, connection: Recorded, limit: int = 64 * KIB) -> bytes:
        message = super().send(connection, limit)
        self.side(connection).says(message)
        return message

    def deliver(self, connection: Recorded) -> bool:
        queue = self.to_listener if connection is self.listener else self.to_dialer
        if queue:
            self.side(connection).hears(queue[0])
        return super().deliver(connection)
