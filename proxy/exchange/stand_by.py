"""Requests that are served while their connection's task sleeps.

Theory of operation. Most requests of a hub are small, and to wake a task twice for one costs more than the
rest of the request. So a task that waits for the next request parks in `sleep`, and its client's socket is
watched instead. The callback of the socket reads. If the bytes are exactly one head, the request is begun
where that needs no wait (`begun`), and it ends where its answer arrives (`send_answer`). The task stays
parked meanwhile.

The task is woken for everything else: other bytes than exactly one head, a request that cannot begin without
a wait, one that has to go on in a task (`hand_over`), and every end. From then on the task reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import trio

from proxy.exchange.deadlines import IDLE_S, Deadlines, Idle
from proxy.exchange.http_server import ServerHTTP
from proxy.exchange.wire import CLIENT_BYTES_AT_ONCE
from proxy.message.head import LONG_HEAD_BYTES, RequestHead
from tunnel.net.connect import TLSStream
from tunnel.net.fairness import fairness
from tunnel.net.readiness import Readiness, Watch
from tunnel.net.waker import Waker

# An answer up to this size is sent without a wait: about what the kernel takes of one at once, and no more to
# hold for a client that does not read than a task would hold.
QUICK_ANSWER_BYTES_MAX = 64 * 1024

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_HEAD_BYTES = len(_END_OF_HEAD)


class Begun(Protocol):
    """An exchange that was begun without a wait, and that has no task.

    It ends by its answer, or by `give_up`, or a task goes on with it.
    """

    @property
    def peer(self) -> Hashable:
        """The fairness key of the client, for the task that goes on with it."""
        ...

    async def carry_on(self) -> None:
        """Go on with it, in the connection's task, and answer the client."""
        ...

    def give_up(self) -> None:
        """End it: the client is gone, or the connection's task was cancelled."""
        ...


class Sleeper(Protocol):
    """A connection whose task sleeps."""

    @property
    def peer(self) -> Hashable:
        """Whose doing it is that something comes (`turns`)."""
        ...


SleeperT = TypeVar("SleeperT", bound=Sleeper)


class StandBy(Generic[SleeperT]):
    """What a connection needs to serve requests while its task sleeps.

    `begin` begins to answer a request without a body, if that needs no wait; it returns None when it does, or
    is no such one.
    """

    __slots__ = (
        "_begin",
        "_deadlines",
        "_descriptor",
        "_fault",
        "_head",
        "_http",
        "_idle",
        "_readiness",
        "_sleeper",
        "_spot",
        "_tls",
        "_watch",
        "begun",
    )

    def __init__(
        self,
        tls: TLSStream,
        descriptor: int,
        http: ServerHTTP,
        begin: Callable[[SleeperT, RequestHead], Begun | None],
        readiness: Readiness,
        deadlines: Deadlines | None,
    ) -> None:
        self.begun: Begun | None = None
        """The exchange that was begun, and is neither answered nor given up; its task takes it from here."""
        self._tls = tls
        self._descriptor = descriptor
        self._http = http
        self._begin = begin
        self._readiness = readiness
        self._deadlines = deadlines
        self._watch: Watch | None = None
        # Where the connection's task sleeps.
        self._spot = Waker("another task waits for this connection's next request")
        # What the task is woken for: a request that was read and is not answered, or what went wrong with it.
        self._head: RequestHead | None = None
        self._fault: Exception | None = None
        # Only while the task sleeps, since the connection has this object: two that have each other are kept
        # until a garbage collection.
        self._sleeper: SleeperT | None = None
        self._idle: Idle | None = None

    @property
    def may_sleep(self) -> bool:
        """Whether the next request is still to come, and its first bytes can be noticed without the task."""
        return not (self._http.ended or self._http.held or self._tls.has_unread)

    async def sleep(self, sleeper: SleeperT, idle: Idle | None) -> RequestHead | None:
        """Sleep while requests are served; returns the head of one that the task is needed for.

        None: look again at what has come, or at what has become of the connection. `idle` is the wait between
        two requests. Raises what went wrong with a request. Then, and cancelled, what was begun is given up.
        """
        self._head = None
        self._watch = self._readiness.watch(self._descriptor, self._serve)
        self._sleeper, self._idle = sleeper, idle
        if self._deadlines is not None and idle is not None:
            self._deadlines.begin(idle, IDLE_S)
        try:
            await self._spot.park()
            common = fairness()
            if not common.admits():
                # One relay can have hundreds handed over by what it answers at once.
                begun = self.begun
                await common.wait(sleeper.peer if begun is None else begun.peer)
            fault, self._fault = self._fault, None
            if fault is not None:
                try:
                    raise fault
                finally:
                    # Its traceback holds this frame, which must not hold it in turn.
                    del fault
        except BaseException:
            self._give_up()
            raise
        finally:
            self._end_watch()
            self._sleeper = self._idle = None
            if idle is not None:
                idle.due_at = math.inf
        head, self._head = self._head, None
        return head

    def wake(self) -> None:
        """Let the task look; what comes from now on is its own to take."""
        if self._idle is not None:
            # Until the task has its turn this is no idle connection.
            self._idle.due_at = math.inf
        self._end_watch()
        self._spot.unpark()

    def hand_over(self, fault: Exception | None) -> None:
        """Wake the task to go on with what was begun, or to raise the fault that came of it.

        A fault is raised also when something else is handed over before the task runs: the log must have it.
        """
        self._fault = fault or self._fault
        self.wake()

    def send_answer(self, data: bytes) -> bool:
        """End what was begun by its whole answer; False when a part of that is not out yet.

        Raises trio.BrokenResourceError or ClosedResourceError when the client is gone; the task is woken.
        """
        try:
            if not self._tls.send_nowait(data):
                return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.begun = self._head = None
            self.wake()
            raise
        self.begun = self._head = None
        if not self._http.persistent or self._http.held:
            self.wake()
        elif self._deadlines is not None and self._idle is not None:
            self._deadlines.begin(self._idle, IDLE_S)
        return True

    def _serve(self) -> None:
        """Take in what has come while the task sleeps, and begin to answer it if that needs no wait."""
        try:
            data = self._tls.receive_nowait(CLIENT_BYTES_AT_ONCE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
            self._give_up()
        if data is None:
            return
        http = self._http
        if not data:
            # One that has said all and still listens gets its answer, from the task.
            http.ended = True
            self.wake()
        elif self.begun is not None:
            # The next request comes before the answer, and waits for it.
            http.feed(data)
            if http.full:
                self._end_watch()
        elif (
            not _END_OF_HEAD_BYTES <= (size := len(data)) <= LONG_HEAD_BYTES
            or data.find(_END_OF_HEAD) != size - _END_OF_HEAD_BYTES
        ):
            # Not whole, or more than a head, or one that must not be read where others wait.
            http.feed(data)
            self.wake()
        else:
            self._begin_request(data)

    def _begin_request(self, raw: bytes) -> None:
        sleeper = self._sleeper
        assert sleeper is not None, "it is watched only while the task sleeps"
        try:
            self._head = head = self._http.begin_request(raw)
            if head.fields.only_asks:
                self.begun = self._begin(sleeper, head)
        except Exception as exc:
            # It is raised where the connection's task waits.
            self._fault = exc
        if self.begun is None:
            self.wake()
        elif self._idle is not None:
            self._idle.due_at = math.inf

    def _give_up(self) -> None:
        begun, self.begun = self.begun, None
        if begun is not None:
            self._head = None
            begun.give_up()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()
            self._watch = None
