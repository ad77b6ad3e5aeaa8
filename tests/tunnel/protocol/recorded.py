"""A connection whose owner writes down what is reported to it, in order, for a test to look at."""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import attrs

from tunnel.protocol import frames
from tunnel.protocol.connection import Connection, Role
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.events import GoAway
from tunnel.protocol.liveness import PING_IDLE_S
from tunnel.protocol.memory import Memory
from tunnel.protocol.streams import Context, StreamState


@attrs.frozen
class ContextAdded:
    context: Context


@attrs.frozen
class StreamOpened:
    stream: StreamState


@attrs.frozen
class HeadReceived:
    stream: StreamState


@attrs.frozen
class DataReceived:
    stream: StreamState


@attrs.frozen
class SendQueueDrained:
    stream: StreamState


@attrs.frozen
class StreamBroken:
    stream: StreamState
    code: StreamCode
    processed: Processed
    reason: str
    in_line: bool


@attrs.frozen
class Doubted:
    stream: StreamState


Event: TypeAlias = (
    ContextAdded
    | StreamOpened
    | HeadReceived
    | DataReceived
    | SendQueueDrained
    | StreamBroken
    | Doubted
    | GoAway
)


class StreamRecorder:
    def __init__(self, stream: StreamState, happened: list[Event]) -> None:
        self.on_head = partial(self._note, HeadReceived(stream))
        self.on_data = partial(self._note, DataReceived(stream))
        self.on_room = partial(self._note, SendQueueDrained(stream))
        self.on_doubt = partial(self._note, Doubted(stream))
        self._stream = stream
        self._happened = happened

    def _note(self, event: Event) -> None:
        self._happened.append(event)

    def on_broken(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> None:
        self._note(StreamBroken(self._stream, code, processed, reason, in_line))


class Recorder:
    def __init__(self) -> None:
        self.happened: list[Event] = []
        self.evictions = 0

    def on_stream(self, stream: StreamState) -> None:
        stream.owner = StreamRecorder(stream, self.happened)
        self.happened.append(StreamOpened(stream))

    def on_context(self, context: Context) -> None:
        self.happened.append(ContextAdded(context))

    def on_goaway(self, goaway: GoAway) -> None:
        self.happened.append(goaway)

    def on_eviction(self) -> None:
        self.evictions += 1


class Recorded(Connection):
    def __init__(
        self,
        role: Role,
        *,
        now: float,
        memory: Memory | None = None,
        wall_offset_s: float = 0.0,
        ping_s: float = PING_IDLE_S,
    ) -> None:
        self.recorder = Recorder()
        super().__init__(
            role,
            owner=self.recorder,
            now=now,
            memory=memory,
            wall_offset_s=wall_offset_s,
            ping_s=ping_s,
        )

    def open(self, head: bytes, context_index: int, eof: bool, now: float) -> StreamState:
        """Open a stream; what happens to it is recorded."""
        stream = self.streams.open(head, context_index, eof, now)
        stream.owner = StreamRecorder(stream, self.recorder.happened)
        return stream

    def take_events(self) -> list[Event]:
        """What has happened since it was asked last."""
        taken = self.recorder.happened[:]
        self.recorder.happened.clear()
        return taken

    def receive(self, message: bytes, now: float, frames_max: int = frames.MESSAGE_BYTES_MAX) -> list[Event]:
        """Feed a message; returns what has happened by it."""
        self.receive_message(message, now, frames_max)
        return self.take_events()
