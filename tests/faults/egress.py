"""The only way out of a network: a proxy that wants a password, and may look into what passes.

with open_egress({HOST: "127.0.0.1"}, password="s3cret") as egress:
    ...                                 # HTTPS_PROXY=egress.url() leads to HOST, and to nowhere else
    egress.cut()                        # every connection, at both sides

One that intercepts ends TLS and begins it anew, under a certificate of its own for whatever host is asked
for. Its TLS is trio's and not the one that is tested.
"""

from __future__ import annotations

import base64
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import trio
import trustme

USER: Final = "relay"
DEADLINE_S: Final = 10.0
_RECEIVE_BYTES: Final = 65536
_HEAD_BYTES_MAX: Final = 16 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define(eq=False)
class Interceptor:
    """What a proxy that looks into TLS has."""

    authority: trustme.CA
    upstream_ca: Path
    """Whom it trusts itself."""


@attrs.define(eq=False)
class Egress:
    """The running proxy."""

    hosts: Mapping[str, str]
    """The names that it knows, and their addresses."""
    password: str
    interceptor: Interceptor | None = None
    port: int = 0
    asked: list[str] = attrs.Factory(list)
    """Whom it has connected to, as they were asked for."""
    refused: int = 0
    """For want of a password, or of the right one."""
    _token: trio.lowlevel.TrioToken | None = None
    _stop: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _open: set[trio.CancelScope] = attrs.Factory(set)

    def url(self, password: str | None = None, address: str = "127.0.0.1") -> str:
        """What HTTPS_PROXY is to say: with the right password, another one, or "" for none."""
        chosen = self.password if password is None else password
        return f"http://{USER}:{chosen}@{address}:{self.port}" if chosen else f"http://{address}:{self.port}"

    def cut(self) -> int:
        """Reset every connection; returns how many there were."""
        assert self._token is not None
        return trio.from_thread.run_sync(self._cut, trio_token=self._token)

    def _cut(self) -> int:
        for scope in self._open:
            scope.cancel()
        return len(self._open)

    # --- in its thread ---

    async def run(self, listener: socket.socket, started: queue.Queue[None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        started.put(None)
        with self._stop:
            await trio.serve_listeners(self._serve, [listening])

    def stop(self) -> None:
        assert self._token is not None
        trio.from_thread.run_sync(self._stop.cancel, trio_token=self._token)

    async def _serve(self, near: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._open.add(scope)
            try:
                with suppress(*_LOST, OSError, ssl.SSLError):
                    await self._talk(near)
            finally:
                self._open.discard(scope)
                if scope.cancel_called:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                await trio.aclose_forcefully(near)

    async def _talk(self, near: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES_MAX:
            data = await near.receive_some(_RECEIVE_BYTES)
            if not data:
                return
            head += data
        request, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = request.split(" ")
        host, _, port = target.rpartition(":")
        if method != "CONNECT" or host not in self.hosts:
            await near.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        known = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        if f"proxy-authorization: basic {known}".lower() not in (line.lower() for line in lines):
            self.refused += 1
            await near.send_all(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="way out"\r\nContent-Length: 0\r\n\r\n'
            )
            return
        far: trio.abc.Stream = await trio.open_tcp_stream(self.hosts[host], int(port))
        self.asked.append(target)
        try:
            await near.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self.interceptor is None:
                await _copy_both_ways(near, far)
            else:
                await self._intercept(self.interceptor, near, far, host)
        finally:
            await trio.aclose_forcefully(far)

    async def _intercept(
        self, interceptor: Interceptor, near: trio.abc.Stream, far: trio.abc.Stream, host: str
    ) -> None:
        shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        interceptor.authority.issue_cert(host).configure_cert(shown)
        trusts = ssl.create_default_context(cafile=str(interceptor.upstream_ca))
        outside = trio.SSLStream(far, trusts, server_hostname=host, https_compatible=True)
        inside = trio.SSLStream(near, shown, server_side=True, https_compatible=True)
        await inside.do_handshake()
        await outside.do_handshake()
        await _copy_both_ways(inside, outside)


async def _copy_both_ways(one: trio.abc.Stream, other: trio.abc.Stream) -> None:
    """Until either of them ends: a tunnel has no half-close."""
    async with trio.open_nursery() as nursery:

        async def copy(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
            with suppress(*_LOST):
                while data := await source.receive_some(_RECEIVE_BYTES):
                    await sink.send_all(data)
            nursery.cancel_scope.cancel()

        nursery.start_soon(copy, one, other)
        nursery.start_soon(copy, other, one)


@contextmanager
def open_egress(
    hosts: Mapping[str, str],
    *,
    password: str,
    listen: str = "127.0.0.1",
    interceptor: Interceptor | None = None,
) -> Iterator[Egress]:
    """Run a proxy for the block."""
    egress = Egress(hosts, password, interceptor)
    listener = socket.create_server((listen, 0))
    egress.port = listener.getsockname()[1]
    started: queue.Queue[None] = queue.Queue()
    thread = threading.Thread(target=trio.run, args=(egress.run, listener, started))
    thread.start()
    started.get(timeout=DEADLINE_S)
    try:
        yield egress
    finally:
        egress.stop()
        thread.join(DEADLINE_S)
