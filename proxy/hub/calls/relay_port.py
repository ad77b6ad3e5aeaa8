"""A stream to a relay as the upstream's port of an exchange, at the hub.

This port checks the framing: an interim head, or a body of another length than its head says, ends the
exchange.

The port reads a short 403 to its end before it passes the head on. The API server uses the same words for an
agent that the relay's ClusterRole does not name and for a verb that it lacks. So the head gets a Warning with
the command that checks (`explain_403`).
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.exchange.engine import OVER, SHARE_BYTES
from proxy.exchange.next_pass import NextPass
from proxy.exchange.opened_port import OpenedPort
from proxy.hub.calls.explain_403 import Held403, may_be_explained
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import BODILESS_STATUSES, RequestHead, ResponseHead, check_switch
from tunnel.stream import Stream

_OTHER_LENGTH = "the answer's body has another length than its head says"


class RelayPort(OpenedPort):
    """A stream to a relay under a call of this hub.

    `rewrite` returns the client's head for the relay's. It raises OutboundBroken for a head that the hub
    cannot forward. `on_doubt` is called at most once, when the tunnel is in doubt before the answer's head.
    """

    __slots__ = ("_body_left", "_cluster", "_held", "_request", "_rewrite")

    def __init__(
        self,
        stream: Stream,
        request: RequestHead,
        cluster: str,
        rewrite: Callable[[ResponseHead], ResponseHead],
        passes: NextPass,
        on_doubt: Callable[[], object] | None = None,
    ) -> None:
        self.exchange = OVER
        self.bytes_passed = 0
        self.bytes_dropped = 0
        self.stream = stream
        self._request = request
        self._cluster = cluster
        self._rewrite = rewrite
        self._passes = passes
        self._paused = True
        self._busy = False
        self._answered = False
        self._body_left: int | None = None
        self._held: Held403 | None = None
        self._awaits_head = True
        stream.when_input(self._deliver, on_doubt)

    @property
    def held_bytes(self) -> int:
        """The bytes of a 403 that is read to its end. The tunnel counts the queued bytes itself."""
        return 0 if self._held is None else self._held.held_bytes

    def _deliver_head(self) -> bool:
        """See OpenedPort."""
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
        """See OpenedPort. A body of another length than its head says is refused."""
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
