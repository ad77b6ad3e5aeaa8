"""A client with many open watches, as a process: `python -m benchmarks.watchers`, commands on stdin.

    open {"endpoint": …, "path": …, "count": N}    N more watches, each on a TLS connection of its own
    listen SECONDS                                  takes events for so long; answers with their times
    end {}                                          ends all of them; answers with how many there were

One thread and one epoll, because it shares two cores with what it measures. A watch that is refused or cut
ends it with one line on stderr.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from benchmarks.upstream.events import take_times
from proxy.process.lifecycle.filelimit import raise_file_limit

READ_BYTES = 64 * 1024
ANSWER_S = 30.0
# Close with a reset: no linger, in struct linger of socket(7).
RESET = struct.pack("ii", 1, 0)


class Failed(Exception):
    """A watch was not answered as one is, or ended."""


class Watches:
    """All of them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._open: dict[int, ssl.SSLSocket] = {}
        self._partial: dict[int, bytes] = {}
        self._since_ns = 0

    def open(self, endpoint: dict[str, Any], path: str, count: int) -> int:
        """Open more of them, each answered before the next one; returns how many there are."""
        context = ssl.create_default_context(cafile=endpoint["ca"])
        headers = "".join(f"{name}: {value}\r\n" for name, value in endpoint["headers"])
        request = (
            f"GET {endpoint['prefix']}{path} HTTP/1.1\r\nHost: {endpoint['host']}:{endpoint['port']}\r\n"
            f"User-Agent: kubectl/v1.37.0\r\nAccept: application/json\r\n{headers}\r\n"
        ).encode()
        for _ in range(count):
            plain = socket.create_connection((endpoint["host"], endpoint["port"]), ANSWER_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = context.wrap_socket(plain, server_hostname=endpoint["server_name"])
            sock.sendall(request)
            self._take_head(sock)
            sock.setblocking(False)
            self._open[sock.fileno()] = sock
            self._partial[sock.fileno()] = b""
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        return len(self._open)

    def _take_head(self, sock: ssl.SSLSocket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(READ_BYTES)
            if not data:
                raise Failed(f"cut after {head!r}")
            head += data
        if not head.startswith(b"HTTP/1.1 200"):
            raise Failed(f"answered by {head[:600]!r}")

    def listen(self, seconds: float) -> list[int]:
        """Take events; returns the ns that each was under way that has been sent since."""
        took_ns: list[int] = []
        self._since_ns = time.monotonic_ns()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in self._epoll.poll(left):
                self._read(descriptor, took_ns)
        return took_ns

    def _read(self, descriptor: int, took_ns: list[int]) -> None:
        sock, partial = self._open[descriptor], self._partial[descriptor]
        while True:
            try:
                data = sock.recv(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            if not data:
                raise Failed("a watch ended")
            sent_at, partial = take_times(partial + data)
            now_ns = time.monotonic_ns()
            # An event sent before `listen` has waited here for it, so its time says nothing of the system.
            took_ns += [now_ns - at_ns for at_ns in sent_at if at_ns >= self._since_ns]
        self._partial[descriptor] = partial

    def end(self) -> int:
        """End all of them, every second one abruptly; returns how many there were."""
        for number, sock in enumerate(self._open.values()):
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            else:
                # Sends its close_notify, and does not wait for the other.
                with suppress(ssl.SSLError):
                    sock.unwrap()
            sock.close()
        count = len(self._open)
        self._open.clear()
        self._partial.clear()
        return count


def main() -> None:
    raise_file_limit()
    watches = Watches()
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        try:
            if command == "open":
                print(f"opened {watches.open(**json.loads(argument))}", flush=True)
            elif command == "end":
                print(f"ended {watches.end()}", flush=True)
            else:
                print(json.dumps(watches.listen(float(argument))), flush=True)
        except (Failed, OSError) as error:
            sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
