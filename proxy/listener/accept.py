"""Opens listening sockets for the hub and the relay, and accepts their connections."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn

import trio

from proxy.process.config import Address
from tunnel.net.connect import NO_NAME
from tunnel.net.loglimit import LogLimit
from tunnel.net.tcp import TCPListener, TCPStream

# Every address of this machine, IPv4 included.
EVERYWHERE = "::"
# Connections that the kernel queues while the event loop is busy.
BACKLOG = 1024
_STEPS = {
    errno.EADDRINUSE: "end what listens there, or give {} another port",
    errno.EADDRNOTAVAIL: "give {} an address of this machine, or [::] for all that it has",
    errno.EACCES: "give {} a port from 1024 on, which needs no privilege",
}
# Errors of an accept at a limit of the process or the machine. They stop once other connections have ended.
_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
RETRY_S = 0.1

_log = logging.getLogger("hawse.listener")


class AddressInUseError(OSError):
    """Another process listens on the address."""


async def open_listeners(address: Address, stated: str) -> list[TCPListener]:
    """Listen on every address that the host resolves to.

    Raises OSError (AddressInUseError). Its text names the address, the setting or flag that `stated` it, and
    the next step. `[::]` means all addresses, and only those of IPv4 where the system has no IPv6.
    """
    try:
        if address.host == EVERYWHERE and socket.has_dualstack_ipv6():
            return [TCPListener(await _open_dual_stack(address.port))]
        host = "0.0.0.0" if address.host == EVERYWHERE else address.host  # noqa: S104 - the configuration asks for every address
        listeners = await trio.open_tcp_listeners(address.port, host=host, backlog=BACKLOG)
    except OSError as error:
        step = _STEPS.get(error.errno or 0, "give {} another address").format(stated)
        kind = AddressInUseError if error.errno == errno.EADDRINUSE else OSError
        raise kind(f"cannot listen on {address} ({stated}): {error.strerror or error}: {step}") from error
    except UnicodeError as error:
        raise OSError(f"cannot listen on {address} ({stated}): {NO_NAME}") from error
    return [TCPListener(listener) for listener in listeners]


async def _open_dual_stack(port: int) -> trio.SocketListener:
    """One socket for both families; trio's own IPv6 listeners accept IPv6 alone."""
    listening = trio.socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await listening.bind((EVERYWHERE, port))
        listening.listen(BACKLOG)
        return trio.SocketListener(listening)
    except BaseException:
        listening.close()
        raise


async def open_sockets(address: Address, stated: str) -> list[socket.socket]:
    """Like open_listeners, but return plain sockets, for another process; raises OSError."""
    listeners = await open_listeners(address, stated)
    return [socket.socket(fileno=listener.socket.detach()) for listener in listeners]


def listen_on(listening: socket.socket) -> TCPListener:
    """Listen on a socket that belongs to the caller, and stays open when the listener is closed."""
    copy = trio.socket.from_stdlib_socket(listening.dup())
    return TCPListener(trio.SocketListener(copy))


async def serve_connections(
    handle: Callable[[TCPStream], Awaitable[None]],
    listeners: Iterable[TCPListener],
    handlers: trio.Nursery,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Accept connections until cancelled; a task of `handlers` runs `handle` for each.

    `handle` closes its connection, also when it is cancelled before its first wait. Closes the listeners in
    the end.
    """
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept_from, listener, handle, handlers)
        task_status.started()
    raise AssertionError("accepting never ends by itself")


async def _accept_from(
    listener: TCPListener, handle: Callable[[TCPStream], Awaitable[None]], handlers: trio.Nursery
) -> NoReturn:
    refused = LogLimit(_log)
    async with listener:
        while True:
            try:
                connection = await listener.accept()
            except OSError as error:
                if error.errno not in _LIMITS:
                    raise
                refused.line(
                    logging.ERROR, f"cannot accept connections: {error.strerror}", trio.current_time()
                )
                await trio.sleep(RETRY_S)
            else:
                handlers.start_soon(handle, connection)
