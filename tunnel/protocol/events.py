"""What a Connection tells its owner. Frozen, and every event of a stream carries the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.frames import Hello, Welcome

if TYPE_CHECKING:
    from tunnel.protocol.streams import Context, StreamState


@attrs.frozen
class HelloReceived:
    hello: Hello


@attrs.frozen
class WelcomeReceived:
    welcome: Welcome


@attrs.frozen
class ContextAdded:
    context: Context


@attrs.frozen
class ContextRetired:
    context: Context


@attrs.frozen
class StreamOpened:
    """The peer opened a stream; its head is whole."""

    stream: StreamState


@attrs.frozen
class HeadReceived:
    """The acceptor's head is whole, and stands in `stream.answer_head`."""

    stream: StreamState


@attrs.frozen
class DataReceived:
    """There are bytes to take, or the clean end behind them."""

    stream: StreamState


@attrs.frozen
class SendQueueDrained:
    """A stream whose queue was too long has room again."""

    stream: StreamState


@attrs.frozen
class StreamBroken:
    """The stream was RESET, by the peer or from inside (memory, the peer's fault, the session's end).

    `in_line`: what was received before may still be taken. Otherwise it is gone.
    """

    stream: StreamState
    code: StreamCode
    processed: Processed
    reason: str
    in_line: bool


@attrs.frozen
class GoAwayReceived:
    last_id: int
    code: int
    drain_ms: int
    retry_after_ms: int
    reason: str


Event: TypeAlias = (
    HelloReceived
    | WelcomeReceived
    | ContextAdded
    | ContextRetired
    | StreamOpened
    | HeadReceived
    | DataReceived
    | SendQueueDrained
    | StreamBroken
    | GoAwayReceived
)
