"""Connections through the fault proxy, and the one loop that moves their bytes.

Each connection is two sockets, near (whoever connected) and far (the target), with a pipe in each direction:
`up` from near to far, `down` back. Everything is done by one thread that waits for sockets, commands and the
clock; only a wrong answer to a dial is given by a thread of its own, because it may want a TLS handshake.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from tests.faults.impostor import Impostor
from tests.faults.pipe import End, Pipe, Road

BACKLOG: Final = 1024
# A peer that was sent FIN may still send; closing at once would turn the FIN into a reset.
LINGER_S: Final = 2.0
# With the segments of 64 KiB that loopback has, a receive buffer as small as ours never opens by a whole one,
# and the sender waits for its persist timer each time. On a real road a segment is so small.
SEGMENT_BYTES: Final = 1400
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@attrs.define(eq=False)
class Connection:
    """One connection through a link."""

    number: int
    link: Link
    near: socket.socket
    far: socket.socket
    opened_at: float
    up: Pipe
    down: Pipe
    moved_at: float
    connecting: bool = True
    """The far end has not answered yet."""
    cut_how: End = End.RST
    """When a pipe comes to where it is to be cut."""
    half: bool = False
    """One end was killed; the other one hears nothing of it, ever."""
    closed: bool = False
    blocked: set[socket.socket] = attrs.Factory(set)
    """Sockets that took no more when last written to."""

    def pipes(self) -> Iterable[tuple[Pipe, socket.socket, socket.socket]]:
        yield self.up, self.near, self.far
        yield self.down, self.far, self.near


@attrs.define(eq=False)
class Link:
    """One listening port, and what befalls the connections that come by it."""

    name: str
    port: int
    target: int
    buffer_bytes: int
    holder: socket.socket
    """Keeps the port ours while nothing listens on it."""
    listener: socket.socket | None = None
    impostor: Impostor | None = None
    up: Road = attrs.Factory(Road)
    down: Road = attrs.Factory(Road)
    stalled_ways: set[str] = attrs.Factory(set)
    """Of connections to come."""
    plans: deque[tuple[str, int, End]] = attrs.Factory(deque)
    """Where to cut the next connections, one each."""
    age_limit: tuple[float, End] | None = None
    idle_limit: tuple[float, End | None] | None = None
    """None for the end: nobody is told, nothing moves any more."""
    connections: dict[int, Connection] = attrs.Factory(dict)
    opened: int = 0
    cut: int = 0
    live_max: int = 0
    silence_max_s: float = 0.0
    passed: dict[str, int] = attrs.Factory(lambda: {"up": 0, "down": 0})
    """By the connections that are over."""

    def roads(self, way: str) -> list[Road]:
        return [road for name, road in (("up", self.up), ("down", self.down)) if way in (name, "both")]


class Engine:
    """All links, and the loop that moves their bytes."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._links: dict[str, Link] = {}
        self._numbers = 0
        self._wakes: dict[Connection, float] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._interest: dict[socket.socket, int] = {}
        self._lingering: dict[socket.socket, float] = {}

    # --- the loop ---

    def watch(self, source: int, on_input: Callable[[], None]) -> None:
        self._selector.register(source, _READ, lambda _: on_input())

    def turn(self) -> None:
        """Wait for something to happen, and do what follows."""
        wake_at = min(
            (*self._wakes.values(), *(at for at, _ in self._timers), *self._lingering.values()),
            default=math.inf,
        )
        timeout = None if wake_at == math.inf else max(0.0, wake_at - time.monotonic())
        for key, mask in self._selector.select(timeout):
            key.data(mask)
        now = time.monotonic()
        for at, act in [timer for timer in self._timers if timer[0] <= now]:
            self._timers.remove((at, act))
            act()
        for end in [end for end, until in self._lingering.items() if until <= now]:
            self._bury(end)
        for connection in [each for each, at in self._wakes.items() if at <= now]:
            self._move(connection, now)

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + delay_s, act))

    # --- links ---

    def open_link(self, name: str, target: int, buffer_bytes: int) -> Link:
        holder = _bound(0, buffer_bytes)
        link = Link(name, holder.getsockname()[1], target, buffer_bytes, holder)
        self._links[name] = link
        self.listen(link)
        return link

    def link(self, name: str) -> Link:
        return self._links[name]

    def listen(self, link: Link) -> None:
        if link.listener is None:
            link.listener = _bound(link.port, link.buffer_bytes)
            link.listener.listen(BACKLOG)
            link.listener.setblocking(False)
            self._selector.register(link.listener, _READ, lambda _: self._accept(link))

    def refuse(self, link: Link) -> None:
        """Whoever connects from now on is refused by the kernel."""
        if link.listener is not None:
            self._selector.unregister(link.listener)
            link.listener.close()
            link.listener = None

    def _accept(self, link: Link) -> None:
        if link.listener is None:
            # It was refused by what was done just before, in the same turn.
            return
        while True:
            try:
                near, _ = link.listener.accept()
            except BlockingIOError:
                return
            link.opened += 1
            if link.impostor is not None:
                link.impostor.answer(near)
                continue
            self._connect(link, near)

    def _connect(self, link: Link, near: socket.socket) -> None:
        far = socket.socket()
        _shrink(far, link.buffer_bytes)
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            far.connect(("127.0.0.1", link.target))
        now = time.monotonic()
        self._numbers += 1
        connection = Connection(
            self._numbers, link, near, far, now, Pipe(link.up), Pipe(link.down), moved_at=now
        )
        connection.up.stalled = "up" in link.stalled_ways
        connection.down.stalled = "down" in link.stalled_ways
        if link.plans:
            way, after, how = link.plans.popleft()
            self.plan_cut(connection, way, after, how)
        link.connections[connection.number] = connection
        link.live_max = max(link.live_max, len(link.connections))
        self._move(connection, now)

    # --- moving bytes ---

    def _ready(self, connection: Connection, end: socket.socket, mask: int) -> None:
        # What happened before, in the same turn, may have ended it.
        if connection.closed or connection.half:
            return
        now = time.monotonic()
        if connection.connecting and end is connection.far:
            connection.connecting = False
            if end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.cut(connection, End.RST)
                return
        if mask & _WRITE:
            connection.blocked.discard(end)
        if mask & _READ:
            for pipe, source, _ in connection.pipes():
                if source is end and pipe.wants_at() <= now:
                    self._read(connection, pipe, source, now)
        self._move(connection, now)

    def _read(self, connection: Connection, pipe: Pipe, source: socket.socket, now: float) -> None:
        try:
            data = source.recv(pipe.road.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            pipe.end(End.RST, now)
            return
        if data:
            pipe.put(data, now)
        else:
            pipe.end(End.FIN, now)

    def _move(self, connection: Connection, now: float) -> None:
        """Write what has arrived, see to the limits, and wait for what comes next."""
        if connection.closed:
            return
        if not connection.connecting:
            for pipe, _, sink in connection.pipes():
                if not self._write(connection, pipe, sink, now):
                    return
        if connection.up.over and connection.down.over:
            self.cut(connection, End.FIN, counts=False)
            return
        limit_at = self._check_limits(connection, now)
        if limit_at is not None:
            self._wait(connection, now, limit_at)

    def _write(self, connection: Connection, pipe: Pipe, sink: socket.socket, now: float) -> bool:
        """Write what has arrived; returns whether the connection lives on."""
        while sink not in connection.blocked and pipe.arrives_at() <= now:
            what = pipe.front()
            if what is End.FIN:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                pipe.finish()
                return True
            if what is End.RST:
                self.cut(connection, End.RST, counts=False)
                return False
            assert isinstance(what, bytes)
            try:
                sent = sink.send(what)
            except BlockingIOError:
                connection.blocked.add(sink)
                return True
            except OSError:
                self.cut(connection, End.RST, counts=False)
                return False
            link = connection.link
            link.silence_max_s = max(link.silence_max_s, now - connection.moved_at)
            connection.moved_at = now
            pipe.advance(sent)
            if pipe.cut_is_due:
                self.cut(connection, connection.cut_how)
                return False
            if sent < len(what):
                connection.blocked.add(sink)
            elif pipe.road.piece_bytes:
                # The other end shall see this piece before the next one.
                return True
        return True

    def _check_limits(self, connection: Connection, now: float) -> float | None:
        """Cut the connection when it is too old or too quiet, None then; else when to look again."""
        link, look_at = connection.link, math.inf
        if link.age_limit is not None:
            age_s, how = link.age_limit
            if now >= connection.opened_at + age_s:
                self.cut(connection, how)
                return None
            look_at = connection.opened_at + age_s
        if link.idle_limit is not None and not connection.half:
            idle_s, end = link.idle_limit
            if now < connection.moved_at + idle_s:
                look_at = min(look_at, connection.moved_at + idle_s)
            elif end is not None:
                self.cut(connection, end)
                return None
            elif not connection.up.stalled:
                link.cut += 1
                connection.up.stalled = connection.down.stalled = True
        return look_at

    def _wait(self, connection: Connection, now: float, wake_at: float) -> None:
        wanted = {connection.near: 0, connection.far: 0}
        if connection.connecting:
            wanted[connection.far] = _WRITE
        elif not connection.half:
            for pipe, source, sink in connection.pipes():
                wants_at = pipe.wants_at()
                if wants_at <= now:
                    wanted[source] |= _READ
                else:
                    wake_at = min(wake_at, wants_at)
                if sink in connection.blocked and not pipe.stalled:
                    wanted[sink] |= _WRITE
                else:
                    wake_at = min(wake_at, pipe.arrives_at())
        for end, mask in wanted.items():
            self._want(connection, end, mask)
        if wake_at < math.inf:
            self._wakes[connection] = wake_at
        else:
            self._wakes.pop(connection, None)

    def _want(self, connection: Connection, end: socket.socket, mask: int) -> None:
        had = self._interest.get(end, 0)
        if end.fileno() < 0 or mask == had:
            return
        if not mask:
            self._selector.unregister(end)
            del self._interest[end]
            return

        def ready(happened: int) -> None:
            self._ready(connection, end, happened)

        if had:
            self._selector.modify(end, mask, ready)
        else:
            self._selector.register(end, mask, ready)
        self._interest[end] = mask

    # --- cutting ---

    def plan_cut(self, connection: Connection, way: str, after: int, how: End) -> None:
        """Cut when `after` more bytes have passed in one direction."""
        pipe = connection.up if way == "up" else connection.down
        pipe.cut_at = pipe.passed + after
        connection.cut_how = how

    def cut(self, connection: Connection, how: End, side: str = "both", *, counts: bool = True) -> None:
        """End a connection at both sides, or at one: the other side is then not told, and nothing moves."""
        link = connection.link
        link.cut += counts
        for name, end in (("near", connection.near), ("far", connection.far)):
            if side in (name, "both"):
                self._want(connection, end, 0)
                self._close(end, how)
        self._wakes.pop(connection, None)
        if side != "both":
            connection.half = True
            connection.up.stalled = connection.down.stalled = True
            self._wait(connection, time.monotonic(), math.inf)
            return
        connection.closed = True
        link.passed["up"] += connection.up.passed
        link.passed["down"] += connection.down.passed
        del link.connections[connection.number]

    def _close(self, end: socket.socket, how: End) -> None:
        if end.fileno() < 0 or end in self._lingering:
            return
        if how is End.RST:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.close()
            return
        try:
            end.shutdown(socket.SHUT_WR)
        except OSError:
            end.close()
            return
        self._lingering[end] = time.monotonic() + LINGER_S

        def drain(_: int) -> None:
            try:
                while end.recv(65536):
                    pass
            except BlockingIOError:
                return
            except OSError:
                pass
            self._bury(end)

        self._selector.register(end, _READ, drain)

    def _bury(self, end: socket.socket) -> None:
        del self._lingering[end]
        self._selector.unregister(end)
        end.close()

    def touch(self, link: Link) -> None:
        """Look at every connection of a link anew: something about the link was changed."""
        now = time.monotonic()
        for connection in list(link.connections.values()):
            if not connection.half:
                self._move(connection, now)


def _bound(port: int, buffer_bytes: int) -> socket.socket:
    bound = socket.socket()
    # Two sockets may hold the port, as long as the first one to be bound does not listen.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _shrink(bound, buffer_bytes)
    bound.bind(("127.0.0.1", port))
    return bound


def _shrink(end: socket.socket, buffer_bytes: int) -> None:
    """Keep the kernel from holding what the road should; to be called before there is a connection."""
    if buffer_bytes:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
