"""What the owner of a stream may do with it.

None of it waits, and none of it raises for a reason that the peer gave: a stream that the peer broke swallows
what is still queued for it. What the owner must not do at the time is LocalProtocolError.
"""

from __future__ import annotations

import attrs

from tunnel.protocol import frames
from tunnel.protocol.errors import IllegalTransition, LocalProtocolError, Processed, StreamCode
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import OUT, Scheduler
from tunnel.protocol.session.credit import Credit
from tunnel.protocol.session.goaways import GoAways
from tunnel.protocol.session.status import DETACHED, OPEN, Status
from tunnel.protocol.session.table import StreamTable
from tunnel.protocol.state import BROKEN, ENDED, FLOWING, FRESH, Step, after
from tunnel.protocol.streams import Farewell, StreamState

__all__ = ["StreamActions"]


@attrs.define(eq=False)
class StreamActions:
    status: Status
    memory: Memory
    scheduler: Scheduler[StreamState]
    goaways: GoAways
    table: StreamTable
    credit: Credit

    @property
    def may_open(self) -> bool:
        if self.goaways.opens_no_more or self.table.opened_here >= self.status.peer.max_streams:
            return False
        return self.status.phase is OPEN or self.status.phase is DETACHED

    def open(self, head: bytes, context_index: int, eof: bool, now: float) -> StreamState:
        """Queue an OPEN. With `eof` nothing follows the head."""
        table = self.table
        if not self.may_open:
            self.status.check_open()
            raise LocalProtocolError("the peer takes no more streams now")
        context = table.contexts.own.get(context_index)
        if context is None or context.retiring:
            raise LocalProtocolError(f"context {context_index} is not live")
        if len(head) > frames.HEAD_BYTES_MAX:
            raise _too_long(head)
        sending = ENDED if eof else FLOWING
        stream = table.new(context, head, sending, FRESH, now, True)
        stream.head_waits = True
        stream.fin_waits = eof
        context.queued += 1
        table.opened_here += 1
        table.unsent[stream] = None
        self.scheduler.activate(context.share, stream)
        if self.memory.charge(len(head)):
            self.memory.relieve()
        return stream

    # --- sending ---

    def send_head(self, stream: StreamState, head: bytes, eof: bool, data: bytes = b"") -> None:
        """Answer with a head: once, before any data, and only on a stream that the peer opened.

        With `data` and `eof` it is the whole answer in one step.
        """
        if stream.sending is not FRESH:
            if stream.sending is BROKEN:
                return
            if stream.opened_here:
                raise LocalProtocolError("the opener's head is in its OPEN")
            _step(stream, Step.HEAD)
        size = len(head)
        if size > frames.HEAD_BYTES_MAX:
            raise _too_long(head)
        stream.sending = ENDED if eof else FLOWING
        stream.answer_head = head
        stream.head_waits = True
        stream.fin_waits = eof
        stream.head_bytes += size
        if data:
            stream.queue(data)
        full = self.memory.charge(size + len(data))
        if stream.place is OUT:
            # A head that waits needs no credit.
            self.scheduler.activate(stream.context.share, stream)
        if full:
            self.memory.relieve()

    def send_data(self, stream: StreamState, data: bytes, *, eof: bool = False) -> None:
        """Queue bytes and, with `eof`, the end. The owner bounds how many: see `StreamState.drain_wanted`."""
        if stream.sending is not FLOWING:
            # No bytes are no DATA, so the head may still come.
            if stream.sending is BROKEN or (stream.sending is FRESH and not (data or eof)):
                return
            _step(stream, Step.DATA if data else Step.FIN)
        full = False
        if data:
            stream.queue(data)
            full = self.memory.charge(len(data))
        if eof:
            stream.sending = ENDED
            stream.fin_waits = True
        if stream.place is OUT and (data or eof):
            self.table.activate(stream)
        if full:
            self.memory.relieve()

    # --- receiving ---

    def take(self, stream: StreamState, limit: int, now: float) -> bytes:
        """Take at most `limit` of the received bytes, which grants them to the peer again; b"": none yet."""
        data = stream.incoming.take(limit)
        count = len(data)
        if count:
            stream.moved_at = now
            due = stream.window.consume(count)
            self.memory.release(count)
            if not stream.receiving.at_rest:
                if due:
                    self.credit.grant(stream, now)
            elif stream in self.table.lingering:
                self.table.forget_if_taken(stream)
        return data

    def take_rest(self, stream: StreamState) -> bytes:
        """Take all that was received, of a peer that has said its end: there is nothing to grant it again."""
        data = stream.incoming.take_all()
        stream.window.held = 0
        if stream in self.table.lingering:
            del self.table.lingering[stream]
            self.table.forget(stream, len(data))
        else:
            self.memory.release(len(data))
        return data

    def discard_received(self, stream: StreamState) -> None:
        """Drop what was received and not taken, and grant none of it: nothing reads this stream any more."""
        self.table.drop_incoming(stream)
        if stream in self.table.lingering:
            self.table.forget_if_taken(stream)

    # --- the end ---

    def reset(
        self,
        stream: StreamState,
        code: StreamCode,
        processed: Processed,
        reason: str,
        *,
        in_line: bool = False,
    ) -> None:
        """Close both halves; a stream that is over already stays as it is.

        `in_line`: what is queued goes out before the RESET; otherwise it is dropped. What was received and
        not taken is dropped either way.
        """
        table = self.table
        if table.is_over(stream):
            self.discard_received(stream)
            return
        stream.sending = after(stream.sending, Step.RESET)
        stream.receiving = after(stream.receiving, Step.RESET)
        table.drop_incoming(stream)
        stream.partial_head = None
        if in_line:
            stream.farewell = Farewell(code, processed, reason)
            if stream.receiving is BROKEN and stream.id:
                self.credit.grant(stream, stream.moved_at)
            table.activate(stream)
            return
        stream.window_due = 0
        table.drop_outgoing(stream)
        if stream.id:
            table.resets.send(stream.id, code, processed, reason)
        table.close(stream)


def _step(stream: StreamState, step: Step) -> None:
    try:
        stream.sending = after(stream.sending, step)
    except IllegalTransition as exc:
        raise LocalProtocolError(f"stream {stream.id}: {exc}") from exc


def _too_long(head: bytes) -> LocalProtocolError:
    return LocalProtocolError(f"a head of {len(head)} bytes exceeds {frames.HEAD_BYTES_MAX}")
