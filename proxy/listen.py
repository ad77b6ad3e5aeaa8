"""Listening for connections, as the hub and the relay do."""

from __future__ import annotations

import socket

import trio

from proxy.configuration import Address
from tunnel.tcp import TCPListener

# Connections the kernel holds for us while the loop is busy.
BACKLOG = 1024


async def open_listeners(address: Address) -> list[TCPListener]:
    """Listen on every address that the host resolves to; raises OSError, whose text names the address."""
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {address}: {error.strerror or error}") from error
    return [TCPListener(listener) for listener in listeners]


async def open_sockets(address: Address) -> list[socket.socket]:
    """The same as plain sockets, which can be given to another process; raises OSError."""
    return [socket.socket(fileno=listener.socket.detach()) for listener in await open_listeners(address)]


def listen_on(listening: socket.socket) -> TCPListener:
    """Accept on a socket that stays open, and its caller's, when the listener is closed."""
    copy = trio.socket.from_stdlib_socket(listening.dup())
    return TCPListener(trio.SocketListener(copy))
