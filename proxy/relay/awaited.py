"""An answer that no task awaits: it is passed on where its bytes are read.

Most requests only ask: there is no body, and whatever is done from then on is to hand bytes from the API
server's connection to the stream. A task for that is a spawn, a switch for each piece and a wait that is
armed anew each time, and it holds its memory while a watch is silent for an hour. So the connection is
watched (tunnel.net.readiness), and each call of the watch takes what has come, and sends it on.

If everything goes well: `begin` sends the request on a kept connection. The watch calls, the answer's head is
here, with it often the whole body, and all of that leaves in one step; or the body goes on, piece by piece,
as it comes. There are many ways otherwise:

- There is no kept connection, or a request that may have an effect must not meet one that was not looked at:
  a task dials and sends, and comes back here (`go_on`).
- The answer has to do with the relay itself (a 401), or breaks before anything of it was passed on, so that
  it may be asked for again: a task goes on from there, by `proxy.exchange.forward`, and does not come back.
- The hub does not take more: the watch ends, and begins again when the stream has room.
- The hub resets the stream, or the session ends: the connection is cut.
- The answer breaks off behind its head: RESET in line, as `proxy.exchange.forward` does it.
- It must not go on (`Call.revoke`): RESET at once, and the connection is cut.

What the stream tells comes out of the midst of the tunnel's work, and nothing may be done there: it is done
`soon`, by the one task that the session has for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from proxy.exchange.client import ClientConnection
from proxy.message.failure import GONE, Failure, OutboundBroken, Processed, StreamCode
from proxy.relay.exchange import Call
from tunnel import Stream
from tunnel.stream import StreamReset

log = logging.getLogger("hawse.relay")

# Of what one read of the connection brings, from where on it is worth the next one at once. It goes on so
# until the stream takes no more (QUEUE_HIGH_BYTES), and so not for long.
MORE_BYTES = 32 * 1024


class Server(Protocol):
    """Whose answers they are; it has them `leave` when it ends."""

    def soon(self, call: Callable[[], None]) -> None:
        """Have something called as soon as nobody is in the midst of anything."""
        ...

    def hand_over(self, stream: Stream, call: Call) -> None:
        """Have a task go on."""
        ...


class AwaitedAnswer:
    """The answer to one call, on its way to one stream; the call has it for as long as it is awaited."""

    __slots__ = ("_begun", "_call", "_connection", "_outbound", "_stream", "server")

    _connection: ClientConnection
    """Where the body comes from, once the head is passed on."""

    def __init__(self, server: Server, stream: Stream, call: Call) -> None:
        self.server = server
        self._stream = stream
        self._call = call
        self._outbound = call.outbound
        # Its head was passed on.
        self._begun = False

    def begin(self) -> None:
        """Send the request, or have a task do it."""
        self._call.awaited = self
        try:
            if self._outbound.start_nowait(self._on_input):
                self._stream.on_reset(self._on_reset)
            else:
                self._hand_over()
        except OutboundBroken as broken:
            self._break_off(broken.failure)
        except Exception:
            self._fail()

    def go_on(self) -> bool:
        """Await the answer to a request that was sent; False when that cannot be done without a task."""
        try:
            if not self._outbound.watch(self._on_input):
                return False
        except Exception:
            # It may have gone wrong in the kernel, which has no memory for it.
            self._fail()
            return True
        self._call.awaited = self
        self._stream.on_reset(self._on_reset)
        # What has come together with the last of the handshake does not show on the socket.
        self.server.soon(self._look)
        return True

    def leave(self) -> None:
        """End it because the relay is going away."""
        self._forget()
        say_leaving(self._stream)
        self._end()

    @property
    def moved_bytes(self) -> int:
        """See Awaited."""
        return self._stream.bytes_sent

    # -- what the connection tells

    def _on_input(self) -> None:
        try:
            if self._begun:
                self._go_on()
            else:
                self._answer()
        except OutboundBroken as broken:
            self._break_off(broken.failure)
        except StreamReset:
            self._leave_it()
        except Exception:
            self._fail()

    def _answer(self) -> None:
        """Pass on the head once it is here, and with it what is here of the body."""
        outbound, stream = self._outbound, self._stream
        try:
            head = outbound.look()
            if head is None:
                return
            connection = outbound.connection
            assert connection is not None, "the head has come on it"
            body = connection.receive_body_nowait()
        except OutboundBroken:
            # It is said again to whoever asks next.
            self._hand_over()
            return
        encoded = self._call.upstream.pass_bytes(head)
        if connection.body_read:
            stream.send_answer_nowait(encoded, body or b"", eof=True)
            self._finish()
        else:
            stream.send_answer_nowait(encoded, body or b"")
            self._connection = connection
            self._begun = True
            outbound.keep_no_request()
            if self._call.long:
                connection.forget_lines()
            if self._has_room():
                self._pass_on(connection.receive_body_nowait())

    def _go_on(self) -> bool:
        """Take in and pass on while more than a little comes; whether there is a wait for the rest of it."""
        connection = self._connection
        while self._has_room():
            piece = connection.take_in_body_nowait()
            if not self._pass_on(piece):
                return False
            if piece is None or len(piece) < MORE_BYTES:
                return True
        return False

    def _pass_on(self, piece: bytes | None) -> bool:
        """Pass on `piece`, for which there is room, and what else is here of the body, a failure behind it,
        while there is room for that; whether more may come."""
        connection, stream = self._connection, self._stream
        while piece is not None:
            end = connection.body_read
            taken = stream.send_nowait(piece, eof=end)
            assert taken, "a stream with room takes one piece more"
            if end:
                self._finish()
                return False
            if not connection.holds_more:
                return True
            if not self._has_room():
                return False
            piece = connection.receive_body_nowait()
        return True

    def _has_room(self) -> bool:
        """Whether the stream takes a piece; if not, nothing is done until it does.

        It is asked before anything is taken from the connection: what the stream holds is counted, what we
        held would not be.
        """
        if self._stream.has_room:
            return True
        self._connection.end_watch()
        self._stream.when_room(self._on_room)
        return False

    # -- what the stream tells, out of the midst of the tunnel's work

    def _on_room(self) -> None:
        self.server.soon(self._resume)

    def _on_reset(self) -> None:
        self.server.soon(self._leave_it)

    # -- and what is done about that soon

    def _resume(self) -> None:
        """Go on where the stream took no more."""
        if self._over:
            return
        try:
            if not self._has_room():
                return
            if self._pass_on(self._connection.receive_body_nowait()) and self._go_on():
                self._outbound.watch(self._on_input)
        except OutboundBroken as broken:
            self._break_off(broken.failure)
        except StreamReset:
            self._leave_it()
        except Exception:
            self._fail()

    def _look(self) -> None:
        # Where the socket had more to tell, the watch has called before, and all was taken in then.
        if not (self._over or self._begun):
            self._on_input()

    def _leave_it(self) -> None:
        """End it because nobody wants the answer any more."""
        if not self._over:
            self._forget()
            self._call.log_failure(GONE, gone=True)
            self._end()

    # -- the ends

    def revoke(self, failure: Failure) -> None:
        """End it because it must not go on."""
        processed = Processed.YES if self._begun else failure.processed
        self._forget()
        self._call.log_failure(failure, gone=False)
        self._stream.reset(failure.code, processed=processed, reason=failure.reason)
        self._end()

    def _finish(self) -> None:
        """The answer is whole, and so is the connection."""
        self._forget()
        self._outbound.release_nowait()
        self._stream.close_nowait()
        self._call.end()

    def _break_off(self, failure: Failure) -> None:
        """The answer has failed behind its head; what came before it still arrives."""
        self._forget()
        self._call.log_failure(failure, gone=False)
        self._stream.reset(failure.code, processed=failure.processed, reason=failure.reason, in_line=True)
        self._end()

    def _hand_over(self) -> None:
        self._forget()
        self._stream.on_reset(None)
        self._outbound.end_watch()
        self.server.hand_over(self._stream, self._call)

    def _fail(self) -> None:
        """A bug in one must not end the others."""
        self._forget()
        fail(self._stream)
        self._end()

    @property
    def _over(self) -> bool:
        """It has ended, or is a task's."""
        return self._call.awaited is not self

    def _forget(self) -> None:
        self._call.awaited = None

    def _end(self) -> None:
        self._outbound.cut_nowait()
        self._stream.close_nowait()
        self._call.end()


def say_leaving(stream: Stream) -> None:
    """Say that there will be no more, behind the last byte: so it is no clean end and takes nothing back."""
    stream.reset(
        StreamCode.DRAINING, processed=Processed.MAYBE, reason="the relay is going away", in_line=True
    )


def fail(stream: Stream) -> None:
    """Say that a bug of ours has ended the stream; for whoever has just caught it."""
    log.exception("%r failed by a fault of ours", stream)
    stream.reset(StreamCode.INTERNAL, reason="the relay failed by a fault of its own", in_line=True)
    stream.close_nowait()
