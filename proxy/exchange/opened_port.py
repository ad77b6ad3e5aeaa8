"""A stream that this side opened with the request's head, as the upstream's port of an exchange.

HEAD carries the answer's head, DATA is the body, and FIN its clean end.

One message of a peer can contain hundreds of heads. Each takes up to 40 µs, with the rewriting and the TLS of
its client. So a pass has a budget for heads (`NextPass.admits`), and the others follow in later passes. Bytes
behind a head cost less, and the reader of the tunnel bounds them (`tunnel.link`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

from proxy.exchange.engine import SHARE_BYTES, Exchange
from proxy.exchange.next_pass import NextPass
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import HeadError, ResponseHead
from tunnel.stream import Stream, StreamReset


class OpenedPort(ABC):
    """An opened stream (a Port).

    A subclass sets all attributes in its own `__init__`, since a call of another one would cost each request,
    and then calls `when_input` of the stream with `_deliver`.
    """

    __slots__ = (
        "_answered",
        "_awaits_head",
        "_busy",
        "_passes",
        "_paused",
        "bytes_dropped",
        "bytes_passed",
        "exchange",
        "stream",
    )

    exchange: Exchange
    bytes_passed: int
    """The delivered bytes of the answer's body, and the raw bytes after a 101."""
    bytes_dropped: int
    """The client's raw bytes that the peer takes no more."""
    stream: Stream
    _passes: NextPass
    _paused: bool
    _busy: bool
    """A delivery is in progress, in an outer call."""
    _answered: bool
    _awaits_head: bool
    """The stream is still to call `_deliver`, for the answer's head."""

    def __repr__(self) -> str:
        return repr(self.stream)

    @property
    def peer(self) -> Hashable:
        """The fairness key of the tunnel."""
        return self.stream.peer

    def close(self) -> None:
        """Close the stream; an exchange that is under way must have ended."""
        self.stream.close_nowait()

    @property
    def evicted(self) -> bool:
        """Whether the stream was evicted for memory."""
        return self.stream.evicted

    # -- calls from the exchange

    @property
    def half_closes(self) -> bool:
        """See Port."""
        return True

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port."""
        raise AssertionError("an upstream is sent no answer")

    def write(self, data: bytes, end: bool) -> bool:
        """See Port. A peer that takes no more of a body may still answer, so that is no failure."""
        try:
            room = self.stream.write(data, eof=end)
        except StreamReset:
            if end:
                self.exchange.flushed(self)
            if not self.exchange.spliced:
                return False
            # Further bytes are read and dropped, so that the client's end is noticed.
            self.bytes_dropped += len(data)
            return True
        if end:
            # The session owns the queued bytes now, and sends them even after a resumption.
            self.exchange.flushed(self)
        elif not room:
            self.stream.when_room(self._on_room)
        return room

    def pause(self) -> None:
        """See Port."""
        self._paused = True

    def resume(self) -> None:
        """See Port."""
        self._paused = False
        if not self._awaits_head:
            self._deliver()

    def stop(self) -> None:
        """See Port."""
        self._paused = True

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port. The bytes that are queued for the peer are dropped either way."""
        self.stream.reset(failure.code, processed=failure.processed, reason=failure.reason)

    # -- calls from the stream

    def _on_room(self) -> None:
        self._passes.soon(self.stream.peer, self._has_room)

    # -- the reactions

    def _has_room(self) -> None:
        self.exchange.room(self)

    def _deliver(self) -> None:
        """Pass on the received bytes until the port is paused; a head in a pass that has room for it."""
        if self._awaits_head:
            self._awaits_head = False
            if not self._passes.admits():
                self._passes.soon(self.stream.peer, self._deliver)
                return
        if self._busy or self._paused or self.exchange.over:
            return
        self._busy = True
        try:
            if self._answered or self._deliver_head():
                self._deliver_share()
        except StreamReset as reset:
            self._broken_by(reset)
        except HeadError as error:
            self._refuse(f"the relay's head is refused: {error}")
        except OutboundBroken as broken:
            self.exchange.broken(self, broken.failure)
        except Exception as error:
            self.exchange.crash(error)
        finally:
            self._busy = False

    def _refuse(self, reason: str) -> None:
        self.exchange.broken(self, Failure(StreamCode.PROTOCOL, Processed.MAYBE, reason))

    def _broken_by(self, reset: StreamReset) -> None:
        self.exchange.broken(self, Failure(reset.code, reset.processed, reset.reason))

    @abstractmethod
    def _deliver_head(self) -> bool:
        """Pass on the answer's head, and received bytes of the body; return whether more may follow now.

        Raises StreamReset, HeadError, and OutboundBroken for a head that cannot be passed on.
        """

    @abstractmethod
    def _take(self) -> tuple[bytes | None, bool]:
        """Return received bytes of the body, None without any, and whether the clean end follows them.

        Raises StreamReset, and OutboundBroken for a body that cannot be passed on.
        """

    def _deliver_share(self) -> None:
        share = SHARE_BYTES
        while not (self._paused or self.exchange.over):
            if share <= 0 and self.stream.has_input:
                self._passes.soon(self.stream.peer, self._deliver)
                return
            data, end = self._take()
            if data is None:
                return
            share -= len(data)
            # Another call of `_deliver` may be scheduled, and would find the end again.
            self._paused |= end
            self.bytes_passed += len(data)
            self.exchange.data(self, data, end)
