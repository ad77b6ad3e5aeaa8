"""Ports without I/O that note what an exchange asks of them, and may fail in each of their methods."""

from __future__ import annotations

import attrs

from proxy.exchange.engine import OVER, Exchange
from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.head import ResponseHead

METHODS = ("head", "write", "pause", "resume", "stop", "cut")
GONE = Failure(StreamCode.CANCEL, Processed.MAYBE, "gone")
LOST = Failure(StreamCode.UPSTREAM_RESET, Processed.MAYBE, "lost")
REVOKED = Failure(StreamCode.REVOKED, Processed.MAYBE, "revoked")
CAPACITY = 16
SWITCH = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))


class Bug(Exception):
    """What a port of ours raises."""


@attrs.define(eq=False, repr=False)
class FakePort:
    """A port in small: what it has to say waits while it is paused, and what is written drains."""

    half_closes: bool = False
    drains_at_once: bool = False
    breaks_at: int = 10**9
    """Its connection breaks with the write that makes it so many bytes."""
    raises_in: str = ""
    """The method that has a bug."""
    raises_at: int = 0
    """Its first so many calls work."""

    exchange: Exchange = OVER
    inbox: list[tuple[int, bytes, bool]] = attrs.Factory(list)
    """A status and bytes and the end for heads; the status is 0 for bytes."""
    said: bytearray = attrs.Factory(bytearray)
    said_end: bool = False
    heads: list[int] = attrs.Factory(list)
    out: bytearray = attrs.Factory(bytearray)
    queue: bytearray = attrs.Factory(bytearray)
    out_end: bool = False
    flushed: bool = False
    full: bool = False
    paused: bool = True
    stopped: bool = False
    was_cut: Failure | None = None
    dropped: bool = False
    broke: bool = False
    delivering: bool = False
    raised: bool = False
    calls: dict[str, int] = attrs.Factory(dict)
    released: bool = False
    """Its exchange is over, and was to be done with it."""
    touched_when_over: int = 0

    def _called(self, method: str) -> None:
        count = self.calls[method] = self.calls.get(method, 0) + 1
        if self.released:
            self.touched_when_over += 1
        if method == self.raises_in and count > self.raises_at:
            self.raised = True
            raise Bug(method)

    # -- what the exchange calls

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        self._called("head")
        assert self.was_cut is None
        assert not self.out_end
        self.heads.append(head.status)
        return self._take(data, end) if data or end or head.status >= 200 else True

    def write(self, data: bytes, end: bool) -> bool:
        self._called("write")
        assert self.was_cut is None
        assert not self.out_end
        return self._take(data, end)

    def _take(self, data: bytes, end: bool) -> bool:
        if self.broke:
            return False
        assert not self.full
        self.out += data
        self.queue += data
        self.out_end = end
        if len(self.out) >= self.breaks_at:
            self.break_off(LOST)
            return False
        self.full = len(self.queue) >= CAPACITY
        full = self.full
        if self.drains_at_once:
            self.drain()
        return not full

    def pause(self) -> None:
        self._called("pause")
        self.paused = True

    def resume(self) -> None:
        self._called("resume")
        assert self.was_cut is None
        assert not self.stopped
        self.paused = False
        self.deliver()

    def stop(self) -> None:
        self._called("stop")
        self.stopped = True
        self.inbox.clear()

    def cut(self, failure: Failure, drop: bool) -> None:
        self._called("cut")
        if self.was_cut is None:
            self.was_cut = failure
            self.dropped = drop
            self.inbox.clear()
            self.queue.clear()

    # -- what happens to it

    def say(self, data: bytes, end: bool, status: int = 0) -> None:
        if self.said_end or self.stopped or self.was_cut or self.broke:
            return
        self.said += data
        self.said_end = end
        self.inbox.append((status, data, end))
        self.deliver()

    def deliver(self) -> None:
        if self.delivering:
            return
        self.delivering = True
        while self.inbox and not (self.paused or self.exchange.over or self.broke):
            status, data, end = self.inbox.pop(0)
            if status:
                self.exchange.answer_head(ResponseHead.of(status), data, end)
            else:
                self.exchange.data(self, data, end)
        self.delivering = False

    def drain(self) -> None:
        if self.broke or self.was_cut:
            return
        self.queue.clear()
        if self.full:
            self.full = False
            self.exchange.room(self)
        if self.out_end and not (self.queue or self.flushed):
            self.flushed = True
            self.exchange.flushed(self)

    def break_off(self, failure: Failure) -> None:
        self.broke = True
        self.exchange.broken(self, failure)


@attrs.define(eq=False, repr=False)
class FakeUpstream(FakePort):
    heads_said: bool = False


@attrs.define(eq=False, repr=False)
class Upstream(FakeUpstream):
    """An upstream whose 101 has the headers of a switch."""

    def deliver(self) -> None:
        if self.delivering:
            return
        self.delivering = True
        while self.inbox and not (self.paused or self.exchange.over or self.broke):
            status, data, end = self.inbox.pop(0)
            if status:
                head = ResponseHead.of(status, b"", SWITCH if status == 101 else ())
                self.exchange.answer_head(head, data, end)
            else:
                self.exchange.data(self, data, end)
        self.delivering = False
