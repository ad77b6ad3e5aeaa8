"""The hub itself as the client of an exchange: a body from memory, and an answer into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.exchange.engine import OVER, Exchange
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead

# As a client's connection delivers at most in one read.
_PIECE_BYTES: Final = 64 * 1024

TOO_LONG: Final = Failure(StreamCode.TOO_LARGE, Processed.YES, "the answer is too long for a preview")


class AnswerPort:
    """The client's side of one exchange (a Port). `on_done` is for the Exchange that is made with it."""

    def __init__(self, body: bytes, bytes_max: int, on_done: Callable[[], None]) -> None:
        """An answer with a body of more than `bytes_max` ends the exchange with TOO_LONG."""
        self.exchange: Exchange = OVER
        self.answer: ResponseHead | None = None
        """The answer's head."""
        self.body = bytearray()
        """The answer's body, as far as it has arrived."""
        self.done = False
        self.failure: Failure | None = None
        """Why the exchange failed."""
        self._request = memoryview(body)
        self._bytes_max = bytes_max
        self._on_done = on_done
        self._paused = True
        self._delivering = False

    def ended(self, failure: Failure | None) -> None:
        """Note the end of the exchange; to be called once by it."""
        self.done, self.failure = True, failure
        self._on_done()

    # -- calls from the exchange

    @property
    def half_closes(self) -> bool:
        """See Port."""
        return False

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port. Interim heads have nothing for a preview."""
        if head.status < 200:
            return True
        self.answer = head
        return self.write(data, end)

    def write(self, data: bytes, end: bool) -> bool:
        """See Port."""
        if len(self.body) + len(data) > self._bytes_max:
            self.exchange.broken(self, TOO_LONG)
            return False
        self.body += data
        if end:
            self.exchange.flushed(self)
        return True

    def pause(self) -> None:
        """See Port."""
        self._paused = True

    def resume(self) -> None:
        """See Port."""
        self._paused = False
        if self._delivering:
            return
        self._delivering = True
        while self._request and not (self._paused or self.exchange.over):
            piece, self._request = self._request[:_PIECE_BYTES], self._request[_PIECE_BYTES:]
            self.exchange.data(self, bytes(piece), not self._request)
        self._delivering = False

    def stop(self) -> None:
        """See Port."""
        self._request = self._request[:0]

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port. There is no connection to be cut."""
