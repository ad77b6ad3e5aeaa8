"""The relay's side of a call, and a stream to a relay as the upstream's port of an exchange, at the hub.

OPEN carried the request's head. HEAD carries the answer's, DATA is the body, and FIN its clean end. This port
checks the framing: an interim head, or a body of another length than its head says, ends the exchange.

The port reads a short 403 to its end before it passes the head on. The API server uses the same words for an
agent that the relay's ClusterRole does not name and for a verb that it lacks. So the head gets a Warning with
the command that checks (`explain_403`).

One message of a relay can contain hundreds of heads. Each takes up to 40 µs here, with the rewriting and the
TLS of its client. So a pass has a budget for heads (`NextPass.admits`), and the others follow in later
passes. Bytes behind a head cost less, and the reader of the tunnel bounds them (`tunnel.link`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from proxy.exchange.engine import OVER, SHARE_BYTES, Exchange, Port
from proxy.exchange.next_pass import NextPass
from proxy.hub.calls.explain_403 import Held403, may_be_explained
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import BODILESS_STATUSES, HeadError, RequestHead, ResponseHead, check_switch
from tunnel.stream import Stream, StreamReset

_OTHER_LENGTH = "the answer's body has another length than its head says"


class RelaySide(Port, Protocol):
    """The port of a relay's side in either mode: a stream of a tunnel, or a connection in direct mode.

    With what limits and the trail have to know of it.
    """

    bytes_passed: int
    """The bytes of the answer's body, or the raw bytes after a 101."""
    bytes_dropped: int
    """The client's raw bytes that the relay takes no more."""

    @property
    def peer(self) -> Hashable:
        """The fairness key of the relay."""
        ...

    @property
    def held_bytes(self) -> int:
        """The memory that it uses, without that of a tunnel."""
        ...

    @property
    def evicted(self) -> bool:
        """Whether its stream was evicted for memory."""
        ...

    def close(self) -> None:
        """Free what it uses; its exchange is over. May be called again."""
        ...


class RelayPort:
    """A stream that was opened with the request's head (a Port).

    `rewrite` returns the client's head for the relay's. It raises OutboundBroken for a head that the hub
    cannot forward. `on_doubt` is called at most once, when the tunnel is in doubt before the answer's head.
    """

    __slots__ = (
        "_answered",
        "_awaits_head",
        "_body_left",
        "_busy",
        "_cluster",
        "_held",
        "_passes",
        "_paused",
        "_request",
        "_rewrite",
        "bytes_dropped",
        "bytes_passed",
        "exchange",
        "stream",
    )

    def __init__(
        self,
        stream: Stream,
        request: RequestHead,
        cluster: str,
        rewrite: Callable[[ResponseHead], ResponseHead],
        passes: NextPass,
        on_doubt: Callable[[], object] | None = None,
    ) -> None:
        self.exchange: Exchange = OVER
        self.bytes_passed = 0
        """The delivered bytes of the answer's body, and the raw bytes after a 101."""
        self.bytes_dropped = 0
        """The client's raw bytes that the relay takes no more."""
        self.stream = stream
        self._request = request
        self._cluster = cluster
        self._rewrite = rewrite
        self._passes = passes
        self._paused = True
        # A delivery is in progress, in an outer call.
        self._busy = False
        self._answered = False
        self._body_left: int | None = None
        self._held: Held403 | None = None
        # The stream is still to call `_deliver`, for the answer's head.
        self._awaits_head = True
        stream.when_input(self._deliver, on_doubt)

    def __repr__(self) -> str:
        return repr(self.stream)

    @property
    def peer(self) -> Hashable:
        """The fairness key of the relay's tunnel."""
        return self.stream.peer

    def close(self) -> None:
        """Close the stream; an exchange that is under way must have ended."""
        self.stream.close_nowait()

    @property
    def held_bytes(self) -> int:
        """The bytes of a 403 that is read to its end. The tunnel counts the queued bytes itself."""
        return 0 if self._held is None else self._held.held_bytes

    @property
    def evicted(self) -> bool:
        """Whether the stream was RESET to make room in memory, here or at the relay."""
        failure = self.stream.failure
        return failure is not None and failure.code is StreamCode.OVERLOADED

    # -- calls from the exchange

    @property
    def half_closes(self) -> bool:
        """See Port."""
        return True

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port."""
        raise AssertionError("an upstream is sent no answer")

    def write(self, data: bytes, end: bool) -> bool:
        """See Port. A relay that takes no more of a body may still answer, so that is no failure."""
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
        """See Port. The bytes that are queued for the relay are dropped either way."""
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
            self.exchange.broken(self, Failure(reset.code, reset.processed, reset.reason))
        except HeadError as error:
            self._refuse(f"the relay's head is refused: {error}")
        except OutboundBroken as broken:
            self.exchange.broken(self, broken.failure)
        except Exception as error:
            self.exchange.crash(error)
        finally:
            self._busy = False

    def _deliver_head(self) -> bool:
        """Pass on the answer's head, and received bytes of the body; return whether more may follow now."""
        if self._held is not None:
            return self._explain(self._held)
        encoded = self.stream.receive_head_nowait()
        if encoded is None:
            self._awaits_head = True
            self.stream.when_input(self._deliver)
            return False
        head = ResponseHead.decode(encoded)
        status = head.status
        if status == 101:
            check_switch(head, self._request.upgrade)
            self._answered = True
            self.exchange.answer_head(self._rewrite(head))
            return True
        if status < 200:
            self._refuse(f"the relay answered with {status}, which is no final answer")
            return False
        left = head.body_length
        if left != 0 and (status in BODILESS_STATUSES or self._request.method == b"HEAD"):
            left = 0
        self._body_left = left
        if status == 403 and may_be_explained(head):
            self._held = Held403(head, self._cluster, self._rewrite)
            return self._explain(self._held)
        if left == 0:
            data: bytes | None = b""
            end = True
        elif (rest := self.stream.take_last(left, SHARE_BYTES)) is not None:
            data, end = rest, True
        else:
            data, end = self._take()
        head = self._rewrite(head)
        self._answered = True
        self._paused |= end
        self.bytes_passed = len(data or b"")
        self.exchange.answer_head(head, data or b"", end)
        return data is not None and not end

    def _explain(self, held: Held403) -> bool:
        """Pass on a 403 once its whole body has arrived."""
        while True:
            data, end = self._take()
            if data is None:
                return False
            held.add(data)
            if end:
                break
        head, body = held.answer()
        self._answered = self._paused = True
        self._held = None
        self.bytes_passed = len(body)
        self.exchange.answer_head(head, body, True)
        return False

    def _take(self) -> tuple[bytes | None, bool]:
        """Return received bytes of the body, None without any, and whether the clean end follows them.

        Raises StreamReset, and OutboundBroken for a body of another length than its head says.
        """
        stream = self.stream
        data = stream.receive_nowait()
        if data is None:
            stream.when_input(self._deliver)
            return None, False
        end = not data or stream.at_end
        left = self._body_left
        if left is not None:
            self._body_left = left = left - len(data)
            if left < 0 or (not data and left):
                raise OutboundBroken(Failure(StreamCode.PROTOCOL, Processed.YES, _OTHER_LENGTH))
            # If the stream ends too early, its last bytes are passed on before the exchange breaks.
            end = not left
        return data, end

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

    def _refuse(self, reason: str) -> None:
        self.exchange.broken(self, Failure(StreamCode.PROTOCOL, Processed.MAYBE, reason))
