"""Passes the bytes of connections between clients and backends."""

from __future__ import annotations

import math
import socket
import struct
from contextlib import suppress

import attrs
import trio

from sandbox.balancer.backends import Backend, Backends
from sandbox.balancer.health import HOST

CHUNK_BYTES = 256 * 1024
# From all clients, which one test may open at once.
BACKLOG = 4096
CONNECT_WITHIN_S = 2.0
# With this, a close sends RST and drops what is queued.
_RESET = struct.pack("ii", 1, 0)


@attrs.define(eq=False)
class Connection:
    """A client's connection, and the one to its backend."""

    client: trio.SocketStream
    upstream: trio.SocketStream
    scope: trio.CancelScope
    cut: bool = False


@attrs.define(eq=False)
class Passing:
    """All open connections, by the port of the client."""

    backends: Backends
    _open: dict[int, Connection] = attrs.Factory(dict)

    async def serve(
        self, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept until cancelled."""
        listeners = await trio.open_tcp_listeners(port, host=HOST, backlog=BACKLOG)
        task_status.started()
        await trio.serve_listeners(self._pass, listeners)

    def cut(self, client_port: int) -> bool:
        """Reset a client's connection at both sides; whether there is one."""
        connection = self._open.get(client_port)
        if connection is None:
            return False
        connection.cut = True
        connection.scope.cancel()
        return True

    async def _pass(self, client: trio.SocketStream) -> None:
        try:
            address, client_port = client.socket.getpeername()[:2]
        except OSError:
            return  # it has gone already
        found = await self._connect(address)
        if found is None:
            _reset(client)
            return
        backend, upstream = found
        scope = trio.CancelScope()
        connection = self._open[client_port] = Connection(client, upstream, scope)
        backend.connections += 1
        try:
            async with upstream:
                with scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_copy, client, upstream, connection)
                        nursery.start_soon(_copy, upstream, client, connection)
                if connection.cut:
                    _reset(client)
                    _reset(upstream)
        finally:
            backend.connections -= 1
            if self._open.get(client_port) is connection:
                del self._open[client_port]

    async def _connect(self, address: str) -> tuple[Backend, trio.SocketStream] | None:
        """A connection to the first backend that accepts one, in the order of the policy."""
        for backend in self.backends.in_order(address):
            with trio.move_on_after(CONNECT_WITHIN_S), suppress(OSError):
                # From the client's own address, since a hub limits unauthenticated connections of each.
                stream = await trio.open_tcp_stream(
                    HOST, backend.port, happy_eyeballs_delay=math.inf, local_address=address
                )
                return backend, stream
            # The next check may put it into service again.
            backend.ready = False
            print(f"{HOST}:{backend.port} is out of service: it does not accept", flush=True)
        return None


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, connection: Connection) -> None:
    """Pass one direction on, with its end; a reset of either side resets the other."""
    try:
        while data := await source.receive_some(CHUNK_BYTES):
            await sink.send_all(data)
        await sink.send_eof()
    except trio.BrokenResourceError:
        connection.cut = True
        connection.scope.cancel()


def _reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    stream.socket.close()
