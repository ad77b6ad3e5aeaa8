"""A TLS reverse proxy as one would write it first: trio.SSLStream, h11 for every byte, a task a connection.

    python -m benchmarks.plain PORT FOLDER UPSTREAM_HOST UPSTREAM_PORT UPSTREAM_CA

FOLDER has server.pem and server.key. It is made of what Hawse is made of and imports nothing of it: only the
interpreter and the libraries change it. So it says what a machine, or an hour, makes of such a program.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Final

import h11
import trio

RECEIVE_BYTES: Final = 64 * 1024


class Leg:
    """One connection and what h11 makes of it."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], connection: h11.Connection) -> None:
        self.stream = stream
        self.connection = connection

    async def next_event(self) -> h11.Event:
        """Return what comes next of a message; ConnectionClosed when nothing does."""
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                self.connection.receive_data(bytes(await self.stream.receive_some(RECEIVE_BYTES)))
            else:
                assert isinstance(event, h11.Event), "one exchange begins when the one before is over"
                return event

    async def send(self, event: h11.Event) -> None:
        """Send it, as h11 writes it."""
        data = self.connection.send(event)
        if data:
            await self.stream.send_all(data)


async def copy(source: Leg, target: Leg) -> bool:
    """Carry one message over; False when there is none."""
    while True:
        event = await source.next_event()
        if isinstance(event, h11.ConnectionClosed):
            return False
        await target.send(event)
        if isinstance(event, h11.EndOfMessage):
            return True


async def serve(
    client: trio.SSLStream[trio.SocketStream], upstream: trio.SSLStream[trio.SocketStream]
) -> None:
    """Exchange after exchange, until the client closes its connection."""
    ours, theirs = Leg(client, h11.Connection(h11.SERVER)), Leg(upstream, h11.Connection(h11.CLIENT))
    while await copy(ours, theirs) and await copy(theirs, ours):
        ours.connection.start_next_cycle()
        theirs.connection.start_next_cycle()


async def main(port: int, folder: Path, host: str, upstream_port: int, ca: Path) -> None:
    """Listen, say so, and serve for ever."""
    certificate = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.load_cert_chain(folder / "server.pem", folder / "server.key")
    trusted = ssl.create_default_context(cafile=ca)

    async def handle(client: trio.SSLStream[trio.SocketStream]) -> None:
        async with client:
            upstream = await trio.open_ssl_over_tcp_stream(host, upstream_port, ssl_context=trusted)
            async with upstream:
                try:
                    await serve(client, upstream)
                except (trio.BrokenResourceError, h11.ProtocolError) as error:
                    print(f"an exchange failed: {error!r}", file=sys.stderr, flush=True)

    listeners = await trio.open_ssl_over_tcp_listeners(port, certificate, host="127.0.0.1", backlog=1024)
    print("ready", flush=True)
    await trio.serve_listeners(handle, listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
