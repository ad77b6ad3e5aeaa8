"""The core's side of one stream: its two halves, what it holds in each direction, and what it has to send."""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.schedule import OUT, Flow, Group
from tunnel.protocol.state import Half
from tunnel.protocol.window import ReceiveWindow

# Pieces up to this size are joined: a peer or a caller that sends byte by byte would otherwise cost 40 bytes
# of Python object for each byte that is counted.
SMALL_BYTES = 1024


class ByteQueue:
    """Bytes in the pieces in which they came, taken from the front in any size, copied as rarely as
    possible."""

    __slots__ = ("_offset", "_pieces", "size")

    def __init__(self, first: bytes = b"") -> None:
        self.size = len(first)
        # A list, although it is taken from the front: an empty deque has 760 bytes, and every stream has two.
        # Pieces are few, since small ones are joined.
        self._pieces: list[bytes] = [first] if first else []
        # How much of the first piece has been taken.
        self._offset = 0

    @property
    def held_bytes(self) -> int:
        """The bytes that it keeps alive: a piece stays whole until its last byte is taken."""
        return self.size + self._offset

    def append(self, piece: bytes) -> None:
        self.size += len(piece)
        pieces = self._pieces
        if pieces and len(piece) + len(pieces[-1]) <= SMALL_BYTES:
            pieces[-1] += piece
        else:
            pieces.append(piece)

    def prepend(self, piece: bytes) -> None:
        assert self._offset == 0
        self.size += len(piece)
        self._pieces.insert(0, piece)

    def take(self, limit: int) -> bytes:
        """At most `limit` bytes; the first piece as it is, without a copy, when it is at least half of
        that."""
        pieces = self._pieces
        if not pieces:
            return b""
        first = pieces[0]
        size = len(first)
        if self._offset == 0 and size <= limit and (len(pieces) == 1 or size * 2 >= limit):
            del pieces[0]
            self.size -= size
            return first
        taken: list[bytes | memoryview] = []
        self.move(min(limit, self.size), taken)
        return b"".join(taken)

    def take_all(self) -> bytes:
        """Everything; a single piece as it is, which is what `join` makes of it."""
        taken = b"".join(self._pieces)
        if self._offset:
            taken = taken[self._offset :]
        self._pieces.clear()
        self._offset = self.size = 0
        return taken

    def move(self, count: int, parts: list[bytes | memoryview]) -> int:
        """Append exactly `count` bytes to `parts`, by reference; returns how many bytes fewer it keeps
        alive."""
        if count == self.size and not self._offset:
            parts += self._pieces
            self._pieces.clear()
            self.size = 0
            return count
        assert count <= self.size
        held = self.size + self._offset
        self.size -= count
        gone = 0
        for piece in self._pieces:
            if not count:
                break
            available = len(piece) - self._offset
            if available > count:
                parts.append(memoryview(piece)[self._offset : self._offset + count])
                self._offset += count
                break
            parts.append(memoryview(piece)[self._offset :] if self._offset else piece)
            self._offset = 0
            gone += 1
            count -= available
        del self._pieces[:gone]
        return held - self.size - self._offset

    def clear(self) -> int:
        """Drop everything; returns how many bytes that was."""
        dropped = self.size
        self._pieces.clear()
        self._offset = 0
        self.size = 0
        return dropped


class _EmptyQueue(ByteQueue):
    """The queue of every stream that holds nothing yet. It is shared, so nothing may be put into it."""

    def append(self, piece: bytes) -> None:
        raise AssertionError("the shared queue stays empty")

    prepend = append


# Most streams hold bytes in one direction only, and an idle one in none.
EMPTY: Final = _EmptyQueue()


@attrs.define(eq=False)
class Context:
    """Something that many OPENs share, sent once. Opaque here."""

    index: int
    group: int
    payload: bytes
    note: object = None
    """What the user has made of the payload, kept as long as the context is."""
    share: Group[StreamState] = attrs.field(kw_only=True, repr=False)
    queued: int = attrs.field(init=False, default=0)
    """OPENs that name it and were not sent yet; it is retired only after the last of them."""
    retiring: bool = attrs.field(init=False, default=False)


@attrs.frozen
class Farewell:
    """A RESET that waits in line behind the stream's last bytes."""

    code: StreamCode
    processed: Processed
    reason: str


@attrs.define(eq=False)
class HeadBuffer:
    """A head that came in parts: its rest is the first of the stream's DATA."""

    missing: int
    received: bytearray

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of the head; returns those behind it."""
        part = data[: self.missing]
        self.received += part
        self.missing -= len(part)
        return data[len(part) :]


class StreamOwner(Protocol):
    """The user of a stream, by the rules of `tunnel.protocol.events`. A stream without one reports
    nothing."""

    def on_head(self) -> None:
        """The acceptor's head is whole, and stands in `answer_head`."""

    def on_data(self) -> None:
        """There are bytes to take, or the clean end behind them."""

    def on_room(self) -> None:
        """The queue of a stream with `drain_wanted` is short again."""

    def on_broken(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> None:
        """The stream was RESET: by the peer, or here for memory, the peer's fault, or the session's end.

        `in_line`: what was received before may still be taken. Otherwise it is gone.
        """

    def on_doubt(self) -> None:
        """Nothing has come from the peer for a while (PROTOCOL.md, "Liveness")."""


@attrs.define(eq=False, init=False)
class StreamState(Flow):
    context: Context
    opened_here: bool
    head: bytes
    """The opener's: at the opener until it is sent, at the acceptor as received."""
    sending: Half
    receiving: Half
    window: ReceiveWindow
    send_credit: int
    moved_at: float
    id: int
    """0 until the OPEN is taken from the queue, so that ids are strictly increasing on the wire."""

    outgoing: ByteQueue
    """Written by `queue` and `queue_first` only."""
    incoming: ByteQueue
    """Written by `hold` only."""
    answer_head: bytes | None
    """The acceptor's head: at the acceptor from `send_head` on, at the opener once it is received whole."""
    partial_head: HeadBuffer | None
    head_waits: bool
    """Our head is unsent: the opener's in the OPEN, the acceptor's in the HEAD."""
    fin_waits: bool
    farewell: Farewell | None
    window_due: int
    drain_wanted: bool
    """The owner waits for the outgoing queue to shrink (`StreamOwner.on_room`)."""

    owner: StreamOwner | None
    """Is called for what happens to the stream."""
    head_bytes: int
    """The bytes of both heads in memory's account, until the stream is forgotten."""
    bytes_sent: int
    bytes_received: int

    # Written out: attrs looks up each default, and each request makes one of these at both ends.
    def __init__(
        self,
        context: Context,
        opened_here: bool,
        head: bytes,
        sending: Half,
        receiving: Half,
        window: ReceiveWindow,
        send_credit: int,
        moved_at: float,
    ) -> None:
        self.deficit = 0
        self.place = OUT
        self.context = context
        self.opened_here = opened_here
        self.head = head
        self.sending = sending
        self.receiving = receiving
        self.window = window
        self.send_credit = send_credit
        self.moved_at = moved_at
        self.id = 0
        self.outgoing = self.incoming = EMPTY
        self.answer_head = None
        self.partial_head = None
        self.head_waits = self.fin_waits = self.drain_wanted = False
        self.farewell = None
        self.owner = None
        self.head_bytes = len(head)
        self.window_due = self.bytes_sent = self.bytes_received = 0

    def queue(self, piece: bytes) -> None:
        """Put bytes behind what waits to be sent."""
        if self.outgoing is EMPTY:
            self.outgoing = ByteQueue(piece)
        else:
            self.outgoing.append(piece)

    def queue_first(self, piece: bytes) -> None:
        if self.outgoing is EMPTY:
            self.outgoing = ByteQueue()
        self.outgoing.prepend(piece)

    def hold(self, piece: bytes) -> None:
        """Put received bytes behind what waits to be taken."""
        if self.incoming is EMPTY:
            self.incoming = ByteQueue(piece)
        else:
            self.incoming.append(piece)

    @property
    def announced(self) -> bool:
        """The session's owner knows of this stream; before, nothing is reported of it."""
        return self.opened_here or self.partial_head is None

    @property
    def ready(self) -> bool:
        """Whether it has something that may be sent now."""
        if self.head_waits:
            return True
        if self.outgoing.size:
            return self.send_credit > 0
        return self.fin_waits or self.farewell is not None

    @property
    def held_bytes(self) -> int:
        return self.outgoing.held_bytes + self.window.held + self.head_bytes

    @property
    def group(self) -> tuple[bool, int]:
        """The key of eviction: the peer's groups are distinct from ours."""
        return self.opened_here, self.context.group

    @property
    def all_said(self) -> bool:
        """Nothing is left to send on this stream, now or later."""
        # FIN and RESET leave last, so when neither waits, nothing does.
        if self.fin_waits or self.farewell is not None:
            return False
        return self.sending.at_rest
