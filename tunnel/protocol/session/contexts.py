"""The contexts of a session, in both directions (PROTOCOL.md, "Contexts")."""

from __future__ import annotations

import attrs

from tunnel.protocol import frames
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import CloseCode, LocalProtocolError, RemoteProtocolError
from tunnel.protocol.memory import Memory
from tunnel.protocol.schedule import Scheduler
from tunnel.protocol.streams import Context, StreamState

__all__ = ["CONTEXTS_MAX", "Contexts"]

# PROTOCOL.md, "Limits": that are live at once, in each direction.
CONTEXTS_MAX = 4096


@attrs.define(eq=False)
class Contexts:
    memory: Memory
    scheduler: Scheduler[StreamState]
    control: ControlQueue
    own: dict[int, Context] = attrs.field(init=False, factory=dict)
    """Those that we announced, by index."""
    peers: dict[int, Context] = attrs.field(init=False, factory=dict)
    """Those that the peer announced, by index."""
    peers_max: int = attrs.field(init=False, default=CONTEXTS_MAX)
    """How many of the peer's may be live: memory cannot be taken back from them."""
    _next_index: int = attrs.field(init=False, default=1)
    _peers_last_index: int = attrs.field(init=False, default=0)

    # --- ours ---

    def add(self, group: int, payload: bytes) -> Context:
        """Announce a context; its index names it in an OPEN. The frame leaves before any OPEN."""
        if not 1 <= len(payload) <= frames.CONTEXT_BYTES_MAX:
            raise LocalProtocolError(
                f"a context of {len(payload)} bytes; 1 to {frames.CONTEXT_BYTES_MAX} may be sent"
            )
        if not 0 <= group < 2**32:
            raise LocalProtocolError(f"group {group} is not a u32")
        if len(self.own) >= CONTEXTS_MAX:
            raise LocalProtocolError(f"{CONTEXTS_MAX} contexts are live already")
        context = Context(self._next_index, group, payload, share=self.scheduler.enter(group))
        self._next_index += 1
        self.own[context.index] = context
        self.memory.charge(len(payload))
        self.control.contexts.append(frames.context(context.index, group, payload))
        return context

    def retire(self, index: int) -> None:
        """Open nothing under it again. Open streams keep it; OPENs that are queued leave before."""
        context = self.own.get(index)
        if context is None:
            raise LocalProtocolError(f"context {index} is not live")
        context.retiring = True
        self.retire_if_unused(context)

    def retire_if_unused(self, context: Context) -> None:
        """Retire a context of which `retire` was called, once no queued OPEN names it."""
        if context.retiring and not context.queued and self.own.pop(context.index, None) is not None:
            waiting, index, group = self.control.contexts, context.index, context.group
            try:
                # One that has not left is never sent: so what waits is bounded by what is live.
                waiting.remove(frames.context(index, group, context.payload))
            except ValueError:
                waiting.append(frames.context(index, group, b""))
            self._release(context)

    # --- the peer's ---

    def receive(self, index: int, group: int, content: bytes) -> Context | None:
        """Take a CONTEXT of the peer; returns what it adds. The caller charges memory for that."""
        if not content:
            retired = self.peers.pop(index, None)
            if retired is None:
                raise RemoteProtocolError(f"context {index} is retired but not live")
            self._release(retired)
            return None
        if index <= self._peers_last_index:
            raise RemoteProtocolError(f"context {index} after {self._peers_last_index}")
        if len(self.peers) >= self.peers_max:
            raise RemoteProtocolError(f"more than {self.peers_max} live contexts", CloseCode.LIMITS)
        memory = self.memory
        if memory.full:
            memory.relieve()
            if memory.full:
                # Streams have given all that they had, and contexts give nothing back.
                raise RemoteProtocolError("no memory is left for a context", CloseCode.LIMITS)
        self._peers_last_index = index
        context = self.peers[index] = Context(index, group, content, share=self.scheduler.enter(group))
        return context

    # --- the end ---

    def clear(self) -> None:
        """Forget all of them; the session is over."""
        for context in [*self.own.values(), *self.peers.values()]:
            self._release(context)
        self.own.clear()
        self.peers.clear()

    def _release(self, context: Context) -> None:
        self.memory.release(len(context.payload))
        self.scheduler.leave(context.share)
