"""Noticing that a client leaves while its request is under way.

Theory of operation. The connection of a client that waits for its answer is not read, so a client that left
would go unnoticed, and its request would go on. An exchange goes through up to three stages, each dearer
than the one before, and most are over before the second.

At first nothing is done: `Deadlines` knows since when it is under way. After QUIET_S its client's socket is
watched without a task: a task would have 4 KB, and most exchanges that take their time are watches, which
take hours. What the client sends meanwhile is the next request, and is kept for that. A task comes last,
because telling of the end may wait: once the client has left, or has sent so much that it is not read any
further, and where the socket cannot be watched otherwise, or was cut before.

Only one task may read a stream. So `end` returns only when this task has ended.
"""

from __future__ import annotations

import logging

import trio

from proxy.exchange.deadlines import Deadlines
from proxy.exchange.ports import OnGone
from proxy.exchange.received import Received
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE
from proxy.message.failure import GONE
from tunnel.net.connect import TLSStream, tls_socket
from tunnel.net.readiness import Readiness, Watch

_log = logging.getLogger("hawse")


class Attendance:
    """The look after one exchange (an Attended), from here to `end`.

    `on_gone` is called once the client is gone, up to QUIET_S from now or later. Without `readiness` the look
    takes a task; `tls` is what `received` comes from, if that is TLS.
    """

    __slots__ = ("_deadlines", "_on_gone", "_readiness", "_received", "_task", "_tls", "_watch")

    def __init__(
        self,
        received: Received,
        on_gone: OnGone,
        deadlines: Deadlines,
        tls: TLSStream | None,
        readiness: Readiness | None,
    ) -> None:
        self._received = received
        self._on_gone = on_gone
        self._deadlines = deadlines
        self._tls = tls
        self._readiness = readiness
        self._watch: Watch | None = None
        self._task: _Task | None = None
        deadlines.attend_later(self)

    async def end(self) -> None:
        """The exchange is over; on return `on_gone` does not run, and will not.

        Waits even when cancelled: the stream must not be read before the task has ended.
        """
        self.stop()
        if self._task is not None:
            self._task.scope.cancel()
            with trio.CancelScope(shield=True):
                await self._task.left.wait()

    def stop(self) -> None:
        """Begin nothing more, because the connection ends: its descriptor may soon be reused."""
        self._deadlines.forget(self)
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def begin_attendance(self, nursery: trio.Nursery) -> None:
        """See Attended."""
        fields = self._received.http.fields
        if fields is not None:
            fields.forget_parts()
        if not self._watch_client():
            self._task = task = _Task()
            nursery.start_soon(self._attend, task)

    def _watch_client(self) -> bool:
        """Have the client heard without a task; False where that takes one."""
        tls, readiness, http = self._tls, self._readiness, self._received.http
        if tls is None or readiness is None or tls.has_unread or http.ended or http.full:
            return False
        socket = tls_socket(tls)
        if socket is None or socket.fileno() < 0:
            return False
        self._watch = readiness.watch(socket.fileno(), self._hear_client)
        return True

    def _hear_client(self) -> None:
        """Take in what the client sends while it is to be answered; its end is the task's."""
        assert self._tls is not None, "it is watched"
        try:
            data = self._tls.receive_nowait(CLIENT_BYTES_AT_ONCE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        except Exception:
            # Raised further it would end the watch over all connections; so this one goes as if it had left.
            _log.exception("a client's connection failed by a fault of ours")
            data = b""
        if data is None:
            return
        http = self._received.http
        if data:
            http.feed(data)
            if not http.full:
                return
        else:
            http.ended = True
        self.stop()
        self._deadlines.attend_now(self)

    async def _attend(self, task: _Task) -> None:
        """Wait for the client to leave, and say so."""
        try:
            with task.scope:
                await self._received.wait_end()
                await self._on_gone(GONE)
        finally:
            task.left.set()


class _Task:
    """The task beside an exchange."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.left = trio.Event()
