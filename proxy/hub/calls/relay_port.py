"""A stream to a relay as the upstream's port of an exchange: for the hub, which opens it.

OPEN carried the request's head, HEAD brings the answer's, DATA is the body and FIN its clean end. The framing
is checked here: a head that is no final one, or a body of another length than its head promises, ends the
exchange.

A short 403 is read to its end before it passes. The API server words it alike whether the relay's ClusterRole
does not name the agent yet or withholds the verb, so it gets a Warning that names the command that looks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from proxy.exchange.engine import OVER, Exchange
from proxy.hub.calls.explain_403 import Held403, may_be_explained
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import HeadError, RequestHead, ResponseHead, check_switch
from tunnel.stream import Stream, StreamReset

# What a stream passes on in one go; then the other streams of the message have their share of the pass.
SHARE_BYTES = 256 * 1024

_OTHER_LENGTH = "the answer's body has another length than its head says"


class RelayPort:
    """A stream that was opened with the request's head (a Port).

    `rewrite` makes the client's head of the relay's; it raises OutboundBroken for one that fits into none.
    `soon` has something called in a later pass. `on_doubt` is called once where the tunnel is in doubt before
    the answer's head has come.
    """

    __slots__ = (
        "_answered",
        "_body_left",
        "_busy",
        "_cluster",
        "_held",
        "_paused",
        "_request",
        "_rewrite",
        "_soon",
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
        soon: Callable[[Callable[[], None]], None],
        on_doubt: Callable[[], object] | None = None,
    ) -> None:
        self.exchange: Exchange = OVER
        self.bytes_passed = 0
        """Of the answer's body, and of raw bytes behind it."""
        self.stream = stream
        self._request = request
        self._cluster = cluster
        self._rewrite = rewrite
        self._soon = soon
        self._paused = True
        # Something is being passed on, further down this stack.
        self._busy = False
        self._answered = False
        self._body_left: int | None = None
        self._held: Held403 | None = None
        stream.on_answer(None, on_doubt)

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
        """What is in hand for the tunnel, which counts all else by itself."""
        return self.stream.held_up_bytes

    @property
    def evicted(self) -> bool:
        """Whether its stream has made room in memory."""
        return self.stream.evicted

    # -- what the exchange calls

    @property
    def half_closes(self) -> bool:
        """See Port."""
        return True

    def head(self, head: ResponseHead, data: bytes, end: bool) -> bool:
        """See Port."""
        raise AssertionError("an upstream is sent no answer")

    def write(self, data: bytes, end: bool) -> bool:
        """See Port. A relay that takes no more of a body has not failed: the answer will tell."""
        try:
            room = self.stream.write(data, eof=end)
        except StreamReset:
            if end:
                self.exchange.flushed(self)
            # Of a raw stream all is taken, so that its client is heard leaving.
            return self.exchange.spliced
        if end:
            # What waits is the session's from here on: it sends it also after a resumption.
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
        self._pass_on()

    def stop(self) -> None:
        """See Port."""
        self._paused = True

    def cut(self, failure: Failure, drop: bool) -> None:
        """See Port. The relay need not send on what is queued for it, so it is dropped either way."""
        self.stream.reset(failure.code, processed=failure.processed, reason=failure.reason)

    # -- what the stream calls

    def _on_room(self) -> None:
        self._soon(self._has_room)

    def _has_room(self) -> None:
        self.exchange.room(self)

    def _pass_on(self) -> None:
        """Pass on what has come, as long as it is wanted."""
        if self._busy or self._paused or self.exchange.over:
            return
        self._busy = True
        try:
            if self._answered or self._pass_head():
                self._pass_share()
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

    def _pass_head(self) -> bool:
        """Pass on the answer's head, with what is here of the body; whether more may follow now."""
        if self._held is not None:
            return self._explain(self._held)
        encoded = self.stream.receive_head_nowait()
        if encoded is None:
            self.stream.when_input(self._pass_on)
            return False
        head = ResponseHead.decode(encoded)
        if head.status == 101:
            check_switch(head, self._request.upgrade)
            self._answered = True
            self.exchange.answer_head(self._rewrite(head))
            return True
        if head.status < 200:
            self._refuse(f"the relay answered with {head.status}, which is no final answer")
            return False
        self._body_left = left = head.body_length if head.has_body(self._request.method) else 0
        if may_be_explained(head):
            self._held = Held403(head, self._cluster, self._rewrite)
            return self._explain(self._held)
        data, end = (b"", True) if left == 0 else self._take()
        head = self._rewrite(head)
        self._answered = True
        self.exchange.answer_head(head, data or b"", end)
        return data is not None and not end

    def _explain(self, held: Held403) -> bool:
        """Pass on a 403 once its body is here."""
        while True:
            data, end = self._take()
            if data is None:
                return False
            held.add(data)
            if end:
                break
        self._answered = True
        self._held = None
        self.exchange.answer_head(*held.answer(), True)
        return False

    def _take(self) -> tuple[bytes | None, bool]:
        """Return what has come of the body, and whether it ends there; None when nothing has.

        Raises StreamReset, and OutboundBroken where it has another length than promised.
        """
        stream = self.stream
        data = stream.receive_nowait()
        if data is None:
            stream.when_input(self._pass_on)
            return None, False
        end = not data or stream.at_end
        left = self._body_left
        if left is not None and not self.exchange.spliced:
            self._body_left = left = left - len(data)
            if left < 0 or (not data and left):
                raise OutboundBroken(Failure(StreamCode.PROTOCOL, Processed.YES, _OTHER_LENGTH))
            # Bytes that end too early are passed on, and only then the exchange breaks.
            end = not left
        self.bytes_passed += len(data)
        return data, end

    def _pass_share(self) -> None:
        share = SHARE_BYTES
        while not (self._paused or self.exchange.over):
            data, end = self._take()
            if data is None:
                return
            self.exchange.data(self, data, end)
            if end:
                return
            share -= len(data)
            if share <= 0:
                self._soon(self._pass_on)
                return

    def _refuse(self, reason: str) -> None:
        self.exchange.broken(self, Failure(StreamCode.PROTOCOL, Processed.MAYBE, reason))
