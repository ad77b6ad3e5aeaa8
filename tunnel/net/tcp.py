"""A lean TCP stream and its listener: a non-blocking socket and trio's wait for it, and nothing between.

Why not trio.SocketStream: each of its calls passes the scheduler, also when the kernel took or had everything
at once (2.6 µs, up to eight times in a request), and reaches the socket through five layers.

The deviation. trio asks of every call to pass the scheduler, whether it had to wait or not. Here:

- `receive_some` waits first, and that is a pass. Only when the last one filled its buffer, so that there is
  probably more, it asks the kernel first, at most RECEIVES_PER_PASS - 1 times in a row.
- `send_all` asks the kernel first, and passes when that does not take everything, and before every
  SENDS_PER_PASS-th send.

So a task that sends or receives in a loop lets the others run after so many calls at the latest, which is a
millisecond or two of work; a cancellation reaches it then. With both numbers at 1 this is trio's contract to
the letter, and that is how the tests put it through trio's conformance suite.
"""

from __future__ import annotations

import errno
import operator
import socket
import struct
import sys
import weakref
from contextlib import suppress
from typing import Final

import trio
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

__all__ = ["Bonds", "TCPListener", "TCPStream", "bind_socket_to_peer", "tune_socket"]

# The default size of a read: from 128 KiB on memory comes from mmap, unless malloc is set otherwise, and
# page faults then cost more than the bytes.
RECEIVE_BYTES_MAX: Final = 64 * 1024

# A peer that vanished without a word holds a socket open for good. The tunnel has its own, faster liveness;
# this is the net below idle client connections: found dead 60 + 4 x 15 s after the last byte.
KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4

# Where TCP is all that tells of the peer (direct mode), a live stream must not outlive it by more than 30 s.
# It is found dead by probes while nothing is sent, by TCP_USER_TIMEOUT while something is; 5 s are left then.
CUT_S: Final = 25
PROBE_IDLE_S: Final = 10
PROBE_INTERVAL_S: Final = 5
PROBES: Final = 3
# A peer that is there answers each probe of its closed window: after so many without an answer it is not.
SILENT_PROBES: Final = 3
# Of Linux' struct tcp_info: tcpi_probes, tcpi_unacked, tcpi_notsent_bytes.
_TCP_INFO: Final = struct.Struct("@3xB20xI116xI")

# How much of what was sent may wait in the kernel before the first byte of it is on the wire. More only
# adds delay to what is sent next (a keystroke behind a download); less (trio sets 16 KiB) costs a wakeup
# for each record.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024

_TCP_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


RECEIVES_PER_PASS = 16
SENDS_PER_PASS = 16
# Each begins a task that takes 0.1 ms up to its first wait.
ACCEPTS_PER_PASS = 16

# Errors of an accept that concern one connection only (accept(2)): the next one may succeed.
_CONNECTION_ERRNOS: Final = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "EWOULDBLOCK",
        "ECONNABORTED",
        "EPERM",
        "EPROTO",
        "ENETDOWN",
        "ENOPROTOOPT",
        "EHOSTDOWN",
        "ENONET",
        "EHOSTUNREACH",
        "EOPNOTSUPP",
        "ENETUNREACH",
        "ENOSR",
        "ESOCKTNOSUPPORT",
        "EPROTONOSUPPORT",
        "ETIMEDOUT",
        "ECONNRESET",
    )
    if hasattr(errno, name)
)


class TCPStream(trio.abc.HalfCloseableStream):
    """A connected stream socket, which it owns from now on.

    One task may send while another receives; a second one in the same direction gets BusyResourceError.
    """

    __slots__ = ("_eof_sent", "_fd", "_receives_left", "_sending", "_sends_left", "peer", "socket")

    def __init__(
        self, sock: socket.socket, peer: tuple[str, int] | None = None, *, tuned: bool = False
    ) -> None:
        """`tuned`: the socket has the options of `tune_socket` already."""
        sock.setblocking(False)
        if not tuned:
            tune_socket(sock)
        self.socket: Final = sock
        self.peer = peer
        """The client's address: the one that was accepted, or the one that a load balancer states."""
        # Below zero once it is closed.
        self._fd = sock.fileno()
        self._receives_left = 0
        self._sends_left = SENDS_PER_PASS
        # While a sender waits, and only then: no other task runs between two waits.
        self._sending = False
        self._eof_sent = False

    @classmethod
    def take_over(cls, stream: trio.SocketStream) -> TCPStream:
        """Make one of a trio stream, which is as good as closed from then on."""
        old = stream.socket
        family, kind, protocol = old.family, old.type, old.proto
        return cls(socket.socket(family, kind, protocol, fileno=old.detach()))

    def __repr__(self) -> str:
        return f"<TCPStream {'closed' if self._fd < 0 else self._fd}>"

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has come, at most `max_bytes`; b"" at the peer's end.

        Raises BrokenResourceError when the connection broke. Nothing is lost when it is cancelled.
        """
        if max_bytes is None:
            max_bytes = RECEIVE_BYTES_MAX
        elif operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes is {max_bytes}, it must be at least 1")
        fd = self._fd
        if fd < 0:
            raise trio.ClosedResourceError("this connection was closed before")
        left = self._receives_left
        wait = left <= 0
        while True:
            if wait:
                # A second task that waits for the same socket is refused here.
                await wait_readable(fd)
                left = RECEIVES_PER_PASS
            try:
                data = self.socket.recv(max_bytes)
            except BlockingIOError:
                self._receives_left = 0
                wait = True
                continue
            except OSError as exc:
                raise self._failed(exc) from exc
            self._receives_left = left - 1 if len(data) == max_bytes else 0
            return data

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Return what has come, b"" at the peer's end, None when nothing has. Raises as receive_some does."""
        if self._fd < 0:
            raise trio.ClosedResourceError("this connection was closed before")
        try:
            return self.socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; when cancelled, an unknown part of it. Raises BrokenResourceError."""
        if self._sending or self._fd < 0 or self._eof_sent:
            self._check_may_send()
        self._sends_left -= 1
        if self._sends_left <= 0:
            self._sends_left = SENDS_PER_PASS
            self._sending = True
            try:
                await checkpoint()
            finally:
                self._sending = False
            self._check_may_send()
        sent = self._send(data)
        if sent != len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, rest: memoryview) -> None:
        self._sending = True
        try:
            while rest:
                await wait_writable(self._fd)
                rest = rest[self._send(rest) :]
        finally:
            self._sending = False
        self._sends_left = SENDS_PER_PASS

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes at once, and return how many bytes that were.

        Raises BusyResourceError while another task sends, BrokenResourceError when the connection broke.
        """
        if self._sending or self._fd < 0 or self._eof_sent:
            self._check_may_send()
        return self._send(data)

    # Who sends looks first whether there is anything to raise: that nearly never is, and a call costs more.
    def _check_may_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this connection")
        if self._fd < 0:
            raise trio.ClosedResourceError("this connection was closed before")
        if self._eof_sent:
            raise trio.ClosedResourceError("nothing can be sent after the end was")

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._failed(exc) from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes more."""
        self._check_may_send()
        self._sending = True
        try:
            await wait_writable(self._fd)
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will come; a second call does nothing. Raises as send_all does."""
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this connection")
        await checkpoint()
        if self._fd < 0:
            raise trio.ClosedResourceError("this connection was closed before")
        if self._eof_sent:
            return
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise self._failed(exc) from exc
        self._eof_sent = True

    async def aclose(self) -> None:
        """Close the connection; a task that waits on it gets ClosedResourceError."""
        self.close_nowait()
        await checkpoint()

    def close_nowait(self) -> None:
        """aclose without its schedule point."""
        if self._fd >= 0:
            notify_closing(self._fd)
            self._fd = -1
            self.socket.close()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option of the socket."""
        self.socket.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        """Return an option of the socket."""
        return self.socket.getsockopt(level, option)

    def _failed(self, exc: OSError) -> trio.BrokenResourceError:
        return trio.BrokenResourceError(f"the connection broke: {exc.strerror or exc}")


def tune_socket(sock: socket.socket | trio.socket.SocketType) -> None:
    """Set what all our TCP connections want; any other socket is left as it is."""
    if sock.family in _TCP_FAMILIES:
        _set(sock, _TUNED)


def bind_socket_to_peer(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the kernel give a connection up once its peer has been out of reach for CUT_S."""
    if sock.family in _TCP_FAMILIES:
        _set(
            sock,
            _options(
                ("TCP_KEEPIDLE", PROBE_IDLE_S),
                ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
                ("TCP_KEEPCNT", PROBES),
                ("TCP_USER_TIMEOUT", CUT_S * 1000),
            ),
        )


class Bonds:
    """The sockets that are bound to their peers, so that none is cut because what reads there stands still.

    TCP_USER_TIMEOUT counts the time in which a peer's window is closed as well, though the peer answers every
    probe (by RFC 1122 section 4.2.2.17 such a connection would stay open): a log whose reader
    has paused, an exec whose command does not read its input yet. So it is lifted for as long as that lasts.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket | trio.socket.SocketType] = weakref.WeakSet()

    def bind(self, sock: socket.socket | trio.socket.SocketType) -> None:
        """See `bind_socket_to_peer`."""
        bind_socket_to_peer(sock)
        self._sockets.add(sock)

    async def run(self) -> None:
        """Look at all of them several times within CUT_S, until cancelled."""
        while True:
            await trio.sleep(CUT_S / 5)
            for sock in list(self._sockets):
                # One that is closed is forgotten soon.
                with suppress(OSError):
                    _set(sock, _options(("TCP_USER_TIMEOUT", 0 if _stands_still(sock) else CUT_S * 1000)))


def _stands_still(sock: socket.socket | trio.socket.SocketType) -> bool:
    """Whether the peer takes nothing for now, and answers that it is there."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO.size)
    if len(info) < _TCP_INFO.size:
        return False
    probes, unacknowledged, unsent = _TCP_INFO.unpack(info)
    return bool(unacknowledged == 0 and unsent > 0 and probes < SILENT_PROBES)


_Options = tuple[tuple[int, int, int], ...]


def _options(*named: tuple[str, int]) -> _Options:
    """Return the options of TCP that this platform has by that name. They only sharpen the defaults."""
    return tuple(
        (socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in named if hasattr(socket, name)
    )


def _set(sock: socket.socket | trio.socket.SocketType, options: _Options) -> None:
    # macOS refuses each of them (EINVAL) once the peer has gone, which the next read reports.
    with suppress(OSError):
        for level, option, value in options:
            sock.setsockopt(level, option, value)


# Linux copies all of the options below from a listening socket to each connection that it accepts.
_INHERITED: Final = sys.platform == "linux"
# Computed once: each new connection needs them. The option that the fewest systems have comes last,
# because a refusal skips the options after it.
_TUNED: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *_options(
        ("TCP_NODELAY", 1),
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_NOTSENT_LOWAT", NOTSENT_LOWAT_BYTES),
    ),
)


class TCPListener(trio.abc.Listener[TCPStream]):
    """Accepts the connections of a trio listener, which is as good as closed from then on.

    Why not `trio.SocketListener.accept`: it tries the kernel before each wait, makes two sockets and two
    streams for each connection, and sets options that are set again here, in 130 function calls.
    """

    def __init__(self, listener: trio.SocketListener) -> None:
        old = listener.socket
        family, kind, protocol = old.family, old.type, old.proto
        self.socket: Final = socket.socket(family, kind, protocol, fileno=old.detach())
        """The listening socket."""
        tune_socket(self.socket)
        self._accepts_left = 0

    async def accept(self) -> TCPStream:
        """Wait for the next connection; raises OSError when the process is at a limit of its own."""
        listening = self.socket
        while True:
            if self._accepts_left <= 0:
                if listening.fileno() < 0:
                    raise trio.ClosedResourceError("this listener was closed before")
                await wait_readable(listening)
                self._accepts_left = ACCEPTS_PER_PASS
            self._accepts_left -= 1
            try:
                sock, peer = listening.accept()
            except OSError as exc:
                # No connection is waiting, another process has accepted it, or it has failed.
                self._accepts_left = 0
                if exc.errno not in _CONNECTION_ERRNOS:
                    raise
            else:
                # macOS has no address of a client that has gone already.
                return TCPStream(sock, peer[:2] if peer else None, tuned=_INHERITED)

    async def aclose(self) -> None:
        """Listen no more."""
        self._accepts_left = 0
        if self.socket.fileno() >= 0:
            notify_closing(self.socket)
            self.socket.close()
        await checkpoint()
