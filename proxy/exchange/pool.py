"""HTTPS connections to one server, kept while they are clean.

A connection that has carried an upgrade request is never kept, regardless of its answer. After a refusal the
other side may still treat the connection as a raw stream. The next request on it would then reach that stream
with our own identity (CVE-2018-1002105). The other way round there is no such risk: an upgrade may use a kept
connection, on which every earlier exchange ended cleanly.

So each upgrade uses up a connection. `keep_spare` dials the next one ahead, because a dial to an API server
takes a quarter of the time until `kubectl exec` has its first byte.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from proxy.exchange.client import ClientConnection
from proxy.message.failure import Failure, OutboundBroken, Processed, StreamCode
from proxy.message.head import SAFE_METHODS, RequestHead
from tunnel.net.connect import HandshakeFailed, has_input, os_reason, tls_socket
from tunnel.net.readiness import Readiness

# kube-apiserver closes a connection after 90 s idle. This is lower, with a margin for a slow network.
IDLE_S = 60.0
# kube-apiserver closes a connection whose first request has not arrived within 32 s (ReadHeaderTimeout).
UNUSED_S = 25.0
# From an upgrade's answer to the dial ahead. At once, it would delay the first bytes of the session by 0.3 to
# 0.9 ms on two busy cores. kubectl takes longer than this wait and a dial until it has another upgrade.
SPARE_AFTER_S = 0.01
# The interval of checks for connections that were idle too long.
SWEEP_S = 10.0
# A burst of 200 requests leaves that many; further ones are closed. One costs some 60 KiB.
IDLE_CONNECTIONS_MAX = 200
# Name lookup, TCP and TLS. A user waits for this.
DIAL_DEADLINE_S = 10.0


class Connections:
    """The kept connections to one server. `dial` connects; `server` names the server in errors.

    Kept connections are watched, and closed on any input. They can be acquired without a wait.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[trio.abc.Stream]],
        server: str,
        readiness: Readiness,
    ) -> None:
        self._dial = dial
        self._server = server
        self.readiness = readiness
        # trio.current_time() looks the clock up on each call, which costs more than reading it.
        self._now = trio.lowlevel.current_clock().current_time
        self._idle: list[ClientConnection] = []
        self._closed = False
        # Set when an upgrade has used up a connection.
        self._used_up = trio.Event()

    @property
    def idle_count(self) -> int:
        """The number of connections kept for reuse."""
        return len(self._idle)

    async def acquire(self, *, fresh: bool) -> tuple[ClientConnection, bool]:
        """Return a connection for a request, and whether it was used before; raises OutboundBroken."""
        if not fresh:
            kept, doomed = self._take(self._now())
            if doomed:
                # Shielded: a cancelled close would leave these connections open. It waits for no peer.
                with trio.CancelScope(shield=True):
                    await _close(doomed)
            if kept is not None:
                return kept, True
        try:
            with trio.fail_after(DIAL_DEADLINE_S):
                stream = await self._dial()
        except trio.TooSlowError as exc:
            raise self._dial_failed(f"no connection within {DIAL_DEADLINE_S:.0f} s") from exc
        except (OSError, HandshakeFailed) as exc:
            raise self._dial_failed(_one_line(exc)) from exc
        return ClientConnection(stream), False

    def acquire_watched(self, on_input: Callable[[], None]) -> ClientConnection | None:
        """Return a kept connection whose watch calls `on_input` from now on; None when there is none.

        Give it back by `release_watched`. Once its watch is ended, it is like one from `acquire`.
        """
        if not self._idle:
            return None
        connection = self._idle[-1]
        watch = connection.watch
        # Unsolicited input may not have reached the watch yet. It would be taken for the answer.
        if watch is None or self._now() >= connection.idle_until or watch.has_input():
            return None
        self._idle.pop()
        watch.call = on_input
        return connection

    def release_watched(self, connection: ClientConnection) -> None:
        """Take a watched connection back: keep it if it is clean and there is room; else cut it."""
        if not self._keep(connection):
            connection.cut_nowait()

    async def sweep(self) -> None:
        """Close connections that were idle too long, until `aclose`."""
        while not self._closed:
            await trio.sleep(SWEEP_S)
            now = self._now()
            doomed = [idle for idle in self._idle if idle.idle_until <= now]
            self._idle = [idle for idle in self._idle if idle.idle_until > now]
            await _close(doomed)

    def upgraded(self) -> None:
        """Note that an upgrade has used up a connection."""
        self._used_up.set()

    async def keep_spare(self) -> None:
        """After an upgrade, dial one connection ahead if none is kept, until cancelled.

        At most one dial for each upgrade: an unused connection that the server closes is not replaced.
        Cancelled, it leaves no connection open.
        """
        while True:
            await self._used_up.wait()
            await trio.sleep(SPARE_AFTER_S)
            self._used_up = trio.Event()
            if self._idle:
                continue
            try:
                connection, _ = await self.acquire(fresh=True)
            except OutboundBroken:
                # The next request dials again, and reports the failure.
                continue
            if self._closed:
                connection.cut_nowait()
            else:
                self._add(connection, UNUSED_S)

    async def aclose(self) -> None:
        """Close every kept connection, and keep none from now on."""
        self._closed = True
        doomed, self._idle = self._idle, []
        await _close(doomed)

    def watch(self, connection: ClientConnection, on_input: Callable[[], None]) -> None:
        """Watch a connection: `on_input` is called on input. The connection must be TLS over a socket."""
        watch = connection.watch
        if watch is not None:
            watch.call = on_input
            if not watch.listening:
                # The port of the last exchange was paused before it read the end of the answer.
                watch.listen(True)
            return
        socket = tls_socket(connection.stream)
        assert socket is not None, "a connection of the pool is TLS over a socket"
        connection.watch = self.readiness.watch(socket.fileno(), on_input)

    def _keep(self, connection: ClientConnection) -> bool:
        """Keep a connection if it is clean and there is room; return whether it is kept."""
        if self._closed or len(self._idle) >= IDLE_CONNECTIONS_MAX or not connection.end_exchange():
            return False
        self._add(connection, IDLE_S)
        return True

    def _add(self, connection: ClientConnection, idle_s: float) -> None:
        connection.idle_until = self._now() + idle_s
        self.watch(connection, partial(self._drop, connection))
        self._idle.append(connection)

    def _drop(self, connection: ClientConnection) -> None:
        """Close a kept connection that has input: its end, or unsolicited bytes."""
        try:
            if not connection.take_in_nowait():
                # The session tickets of TLS 1.3, which a server sends right after the handshake.
                return
        except OutboundBroken:
            pass
        self._idle.remove(connection)
        connection.cut_nowait()

    def _take(self, now: float) -> tuple[ClientConnection | None, list[ClientConnection]]:
        """Return the most recently used connection that seems alive, and the connections to close."""
        doomed: list[ClientConnection] = []
        while self._idle:
            # Last in, first out: the other connections age, so a quiet process keeps few.
            connection = self._idle.pop()
            connection.end_watch()
            if now < connection.idle_until and not has_input(connection.stream):
                return connection, doomed
            doomed.append(connection)
        return None, doomed

    def _dial_failed(self, reason: str) -> OutboundBroken:
        return OutboundBroken(
            Failure(StreamCode.DIAL_FAILED, Processed.NO, f"cannot reach {self._server}: {reason}")
        )


def may_send_again(head: RequestHead, failure: Failure) -> bool:
    """Whether to send a request again that failed on a kept connection: it cannot have had an effect.

    The server had already closed the connection: no answer had begun, and no malformed one has arrived. An
    unsafe request is not repeated: it may have been carried out just before the connection broke. An upgrade
    is unsafe too: `kubectl exec` runs its command by a GET.
    """
    return (
        head.body_length == 0
        and head.fields.upgrade is None
        and head.method in SAFE_METHODS
        and failure.code is StreamCode.UPSTREAM_RESET
        and failure.processed is Processed.MAYBE
    )


async def _close(doomed: list[ClientConnection]) -> None:
    for connection in doomed:
        connection.end_watch()
    for connection in doomed:
        await trio.aclose_forcefully(connection.stream)


def _one_line(error: BaseException) -> str:
    text = (
        os_reason(error) if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else str(error)
    )
    return " ".join((text or type(error).__name__).split())[:160]
