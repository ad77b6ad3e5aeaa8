"""Requests that are served while their connection's task is parked.

Theory of operation. To wake a task twice for a request costs more than the rest of a small one. So a task
that waits for the next request parks here, and its socket is watched by the connection's `ClientPort`. Input
that arrives between two exchanges comes to `on_idle`. If it begins with a complete head, the request is begun
without a task where that needs no wait (`Begun`). Its exchange runs by the port. After a complete answer the
task stays parked.

The task is woken for everything else: a head in pieces or a long one, a request that cannot begin without a
wait or cannot continue without one (`hand_over`), and every other end. From then on the task reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Protocol

import trio

from proxy.exchange.client_port import ClientPort
from proxy.exchange.deadlines import IDLE_S, Deadlines, Idle
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.http_state import DONE
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE
from proxy.message.head import LONG_HEAD_BYTES, RequestHead
from tunnel.net.fairness import fairness
from tunnel.net.waker import Waker

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_HEAD_BYTES = len(_END_OF_HEAD)


class Begun(Protocol):
    """A request that was begun without a task.

    It ends by a complete answer (`ParkedConnection.complete`), by `give_up`, or in the connection's task.
    """

    @property
    def peer(self) -> Hashable:
        """The fairness key of the peer that causes the task to continue it."""
        ...

    def start(self) -> None:
        """Start it, once it is noted as begun. It may be complete, or handed over, when this returns."""
        ...

    async def carry_on(self) -> None:
        """Continue it in the connection's task, and answer the client."""
        ...

    def give_up(self) -> None:
        """End it, because the client is gone or the connection's task was cancelled. Does not raise."""
        ...


class Readable(Protocol):
    """The stream of a connection: TLS over a socket, or a wrapper of ours around it."""

    @property
    def ended(self) -> bool:
        """See TLSStream."""
        ...

    @property
    def has_unread(self) -> bool:
        """See TLSStream."""
        ...

    def receive_nowait(self, at_once: int) -> bytes | None:
        """See TLSStream."""
        ...


class ParkedConnection:
    """Serves requests while the connection's task is in `park`.

    `begin` begins a request, or returns None if that needs the task; then it has done nothing.
    """

    __slots__ = (
        "_begin",
        "_deadlines",
        "_fault",
        "_head",
        "_http",
        "_idle",
        "_stream",
        "_waker",
        "begun",
        "parked",
        "port",
    )

    def __init__(
        self,
        port: ClientPort,
        http: ServerHTTP,
        deadlines: Deadlines | None,
        stream: Readable,
        begin: Callable[[RequestHead], Begun | None],
    ) -> None:
        self.begun: Begun | None = None
        """The request that was begun, and has no complete answer yet."""
        self.parked = False
        """The task is parked, and this reads the connection."""
        self.port = port
        """The connection's port."""
        self._http = http
        self._deadlines = deadlines
        self._waker = Waker("another task waits for this connection's next request")
        # The request that the task is woken for, or the bug that ended it.
        self._head: RequestHead | None = None
        self._fault: Exception | None = None
        self._idle: Idle | None = None
        port.on_idle = self.on_idle
        self.serve(stream, begin)

    def serve(self, stream: Readable, begin: Callable[[RequestHead], Begun | None]) -> None:
        """Receive from this stream, and begin requests in this way, from the next request on."""
        self._stream = stream
        self._begin = begin

    @property
    def may_park(self) -> bool:
        """Whether the next request is still to come."""
        return not (self._http.ended or self._http.held)

    async def park(self, idle: Idle | None, peer: Hashable, idle_s: float = IDLE_S) -> RequestHead | None:
        """Park while requests are served; return the head of one that needs the task.

        None: the connection has input or an end that needs the task. `idle` is the wait for the next request,
        which may last `idle_s`. `peer` is the fairness key of the connection's peer. Raises the bug that
        ended a request. Then, and when cancelled, the begun request is given up.
        """
        self._head = None
        self.parked = True
        self._idle = idle
        if self._deadlines is not None and idle is not None:
            self._deadlines.begin(idle, idle_s)
        try:
            if self._stream.has_unread:
                # The first request came with the end of the handshake.
                self.on_idle()
            if self.parked:
                await self._waker.park()
            common = fairness()
            if self._fault is None and not common.admits():
                # One relay can have hundreds handed over by a single message.
                begun = self.begun
                await common.wait(peer if begun is None else begun.peer)
            fault, self._fault = self._fault, None
            if fault is not None:
                try:
                    raise fault
                finally:
                    # Its traceback refers to this frame. Without `del` that is a reference cycle.
                    del fault
        except BaseException:
            self._give_up()
            raise
        finally:
            self._leave()
            self._idle = None
            if idle is not None:
                idle.due_at = math.inf
        head, self._head = self._head, None
        return head

    def wake(self) -> None:
        """Wake the task. From now on it reads the connection."""
        if self._idle is not None:
            # The connection is not idle until the task runs.
            self._idle.due_at = math.inf
        self._leave()
        self._waker.unpark()

    def close(self) -> None:
        """Wake the task, because the connection was closed. No further request is begun."""
        self.wake()
        # `_begin` refers to the connection. The cycle would last until a garbage collection.
        self.leave_to_task()

    def leave_to_task(self) -> None:
        """Begin no further request here: each one wakes the task."""
        self._begin = _not_begun

    def hand_over(self, fault: Exception | None = None) -> None:
        """Wake the task to continue the begun request, or to raise the bug that ended it.

        A bug is raised even if something else is handed over before the task runs: it must be logged.
        """
        self._fault = fault or self._fault
        self.wake()

    def complete(self) -> None:
        """Note that the begun request has its complete answer."""
        self.begun = self._head = None
        http = self._http
        if (
            http.held
            or http.ended
            # The end arrived with the request, so the socket may have nothing more to report.
            or self._stream.ended
            or not (http.incoming is http.outgoing is DONE and http.persistent)
        ):
            self.wake()
        elif self._deadlines is not None and self._idle is not None:
            self._deadlines.begin(self._idle, IDLE_S)

    def on_idle(self) -> None:
        """Read input that arrives while no exchange runs; begin a request if that needs no task."""
        if not self.parked:
            self.port.unlisten()
            return
        try:
            data = self._stream.receive_nowait(CLIENT_BYTES_AT_ONCE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
            self._give_up()
        if data is None:
            return
        http = self._http
        if not data:
            http.ended = True
            if self.begun is None:
                self.wake()
            else:
                # The exchange notices it as soon as it starts. The client may still read its answer.
                self.port.unlisten()
        elif self.begun is not None:
            # The next request arrives before the answer, and waits for it.
            http.feed(data)
            if http.full:
                self.port.unlisten()
        else:
            end = data.find(_END_OF_HEAD) + _END_OF_HEAD_BYTES
            if _END_OF_HEAD_BYTES <= end <= LONG_HEAD_BYTES:
                self._begin_request(data, end)
            else:
                # A partial head needs a deadline. A long one must not be parsed beside other work.
                http.feed(data)
                self.wake()

    def _begin_request(self, data: bytes, end: int) -> None:
        http = self._http
        try:
            if end == len(data):
                self._head = head = http.begin_request(data)
            else:
                self._head = head = http.begin_request(data[:end])
                http.feed(data[end:])
            self.begun = begun = self._begin(head)
            if begun is None:
                self.wake()
                return
            if self._idle is not None:
                self._idle.due_at = math.inf
            begun.start()
        except Exception as error:
            self.hand_over(error)

    def _give_up(self) -> None:
        begun, self.begun = self.begun, None
        if begun is not None:
            self._head = None
            begun.give_up()

    def _leave(self) -> None:
        if self.parked:
            self.parked = False
            if not self.port.cutting:
                self.port.unwatch()


def _not_begun(_: RequestHead) -> None: ...
