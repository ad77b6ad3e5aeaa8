"""What a session holds in memory, and how memory takes it back (`memory.Evictor`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.events import SessionOwner
from tunnel.protocol.ledger import SentLedger
from tunnel.protocol.liveness import Liveness
from tunnel.protocol.memory import Holder, Memory
from tunnel.protocol.session.status import CLOSED, DETACHED, Status
from tunnel.protocol.session.table import StreamTable
from tunnel.protocol.streams import StreamState

__all__ = ["Holdings"]


@attrs.define(eq=False)
class Holdings:
    """The evictor of a session; and a holder itself, of what the ledger keeps."""

    status: Status
    memory: Memory
    table: StreamTable
    sent: SentLedger
    liveness: Liveness
    owner: SessionOwner
    close: Callable[[StreamCode, str], None]
    """Ends the session."""

    @property
    def held_bytes(self) -> int:
        """What the session holds for itself, as `Holder` counts it."""
        return self.sent.kept_bytes

    @property
    def moved_at(self) -> float:
        return self.liveness.received_at

    @property
    def group(self) -> Holdings:
        """What is kept to be sent again is of all its groups, and goes as a whole."""
        return self

    def holders(self) -> Iterable[Holder]:
        table = self.table
        streams: list[Holder] = [*table.by_id.values(), *table.unsent, *table.lingering]
        if self.status.phase is DETACHED:
            # Its ledger moves again only if the peer comes back. Of a session that is attached the peer's
            # acknowledgements free it, and `squeeze` bounds it.
            streams.append(self)
        return streams

    def evict(self, holder: Holder) -> None:
        if holder is self:
            self.close(StreamCode.OVERLOADED, "memory is full, and the tunnel is away")
            self.owner.on_eviction()
            return
        assert isinstance(holder, StreamState)
        table = self.table
        code, reason = StreamCode.OVERLOADED, "memory is full"
        processed = Processed.MAYBE if holder.id else Processed.NO
        if holder in table.lingering:
            table.drop_incoming(holder)
            if holder.owner is not None:
                holder.owner.on_broken(code, processed, reason, in_line=False)
            table.forget_if_taken(holder)
        elif not table.is_over(holder):
            if holder.id:
                table.resets.send(holder.id, code, processed, reason)
            table.break_stream(holder, code, processed, reason, in_line=False)
        self.owner.on_eviction()

    def leave_if_done(self) -> None:
        """Leave the accounts, once the session is over and nothing of it is held: what is never taken must
        stay within reach of an eviction."""
        table = self.table
        if self.status.phase is CLOSED and not (table.by_id or table.unsent or table.lingering):
            self.memory.leave(self)
