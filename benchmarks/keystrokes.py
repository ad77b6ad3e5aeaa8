"""Keys typed into `kubectl exec -it`, as a process: `python -m benchmarks.keystrokes`.

The first line on stdin is the job, JSON: endpoint, path, count, pause_s. Once the WebSocket is open and the
first keys have come back it prints `ready`; after the line `go` it types `count` keys, each once the one
before has come back and `pause_s` later, and answers with the ns that each took. The other end must repeat on
stdout what comes on stdin.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    RejectConnection,
    Request,
)

from benchmarks.upstream.streams import PROTOCOL, STDIN, STDOUT, SUCCESS

ANSWER_S = 20.0
READ_BYTES = 64 * 1024
WARM_UP = 20


class Failed(Exception):
    """There is no terminal at the other end."""


class Terminal:
    """A WebSocket of v5.channel.k8s.io to a command in a container."""

    def __init__(self, endpoint: dict[str, Any], path: str, context: ssl.SSLContext) -> None:
        plain = socket.create_connection((endpoint["host"], endpoint["port"]), ANSWER_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = context.wrap_socket(plain, server_hostname=endpoint["server_name"])
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._happened: list[Event] = []
        headers = [(name.encode(), value.encode()) for name, value in endpoint["headers"]]
        request = Request(
            host=f"{endpoint['host']}:{endpoint['port']}",
            target=endpoint["prefix"] + path,
            subprotocols=[PROTOCOL],
            extra_headers=headers,
        )
        self._sock.sendall(self._websocket.send(request))
        answer = self._next()
        if isinstance(answer, RejectConnection):
            raise Failed(f"the upgrade was answered by {answer.status_code}")
        if not isinstance(answer, AcceptConnection) or answer.subprotocol != PROTOCOL:
            raise Failed(f"the upgrade was answered by {answer}")

    def type(self, key: bytes) -> int:
        """Send a key; returns the ns until it is back."""
        began_ns = time.perf_counter_ns()
        self._sock.sendall(self._websocket.send(BytesMessage(bytes([STDIN]) + key)))
        echo = self._next()
        took_ns = time.perf_counter_ns() - began_ns
        if not isinstance(echo, BytesMessage) or bytes(echo.data) != bytes([STDOUT]) + key:
            raise Failed(f"{key!r} was answered by {echo}")
        return took_ns

    def end(self) -> None:
        """Wait for the command's status and for the end that the server sends behind it."""
        status, end = self._next(), self._next()
        if not isinstance(status, BytesMessage) or bytes(status.data) != SUCCESS:
            raise Failed(f"the command ended with {status}")
        if not isinstance(end, CloseConnection):
            raise Failed(f"the status was followed by {end}")

    def close(self) -> None:
        """Close the connection without waiting for the server, as kubectl does."""
        self._sock.close()

    def _next(self) -> Event:
        while not self._happened:
            data = self._sock.recv(READ_BYTES)
            if not data:
                raise Failed("the connection was closed")
            self._websocket.receive_data(data)
            self._happened += self._websocket.events()
        return self._happened.pop(0)


def main() -> None:
    job = json.loads(sys.stdin.readline())
    try:
        context = ssl.create_default_context(cafile=job["endpoint"]["ca"])
        terminal = Terminal(job["endpoint"], job["path"], context)
        for _ in range(WARM_UP):
            terminal.type(b"w")
        print("ready", flush=True)
        while sys.stdin.readline():
            took_ns = []
            for number in range(job["count"]):
                took_ns.append(terminal.type(b"%c" % (97 + number % 26)))
                time.sleep(job["pause_s"])
            print(json.dumps(took_ns), flush=True)
    except (Failed, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
