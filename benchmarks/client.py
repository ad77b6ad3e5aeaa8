"""The load generator, as a process: HTTP/1.1 over many keep-alive TLS connections, closed loop.

Everything is in one thread and one epoll, with a callback a connection and no objects per request, because
this process shares two cores with what it measures. The job comes as a line of JSON on stdin. When all
connections are up and warm, it prints `ready`. Each line `go` starts one run, which ends with a line of JSON,
the report. Runs follow each other over the same connections until stdin ends. What is not as asked for (a
status that is not 2xx, a cut) ends it with one line on stderr.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from itertools import cycle, repeat
from typing import Any

_CONTENT_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
# As much as fits the L2 cache beside what it is copied from; a TLS record is 16 KiB at most.
_BUFFER = memoryview(bytearray(256 * 1024))
_UPLOAD = memoryview(os.urandom(256 * 1024))
# Records read from one connection before the others are served.
_RECORDS_A_TURN = 16
_IDLE_S = 30.0


class Failed(Exception):
    """The other side did not do what the job asked for."""


class Connection:
    """One TLS connection, non-blocking, with the answer under way."""

    def __init__(
        self, loop: Loop, job: dict[str, Any], number: int, *, do_handshake_on_connect: bool = True
    ) -> None:
        endpoint = job["endpoint"]
        plain = socket.create_connection((endpoint["host"], endpoint["port"]), 30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = loop.context.wrap_socket(
            plain,
            server_hostname=endpoint["server_name"],
            do_handshake_on_connect=do_handshake_on_connect,
        )
        self.sock.setblocking(False)
        self.loop = loop
        self.number = number
        self.missing = -1
        """Bytes of the body still to come; -1 before its head is whole."""
        self.head = b""
        self.began_ns = 0
        self.sending = 0
        """Bytes of an upload still to be sent."""
        self.left = 0
        """Exchanges still to be started, where the job counts them."""
        loop.connections[self.sock.fileno()] = self
        loop.epoll.register(self.sock.fileno(), select.EPOLLIN)

    def ask(self, head: bytes, body_bytes: int = 0) -> None:
        """Send a request."""
        self.loop.active += 1
        self.missing = -1
        self.began_ns = time.perf_counter_ns()
        if self.sock.send(head) != len(head):
            raise Failed("a request's head did not fit the socket")
        if body_bytes:
            self.sending = body_bytes
            self.loop.epoll.modify(self.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def read(self) -> None:
        """Take what has come; calls the loop's `answered` at the end of an answer."""
        for _ in range(_RECORDS_A_TURN):
            try:
                size = self.sock.recv_into(_BUFFER)
            except ssl.SSLWantReadError:
                return
            if size == 0:
                raise Failed("the connection was closed")
            if self.missing < 0:
                size = self._read_head(size)
                if self.missing < 0:
                    continue
            self.missing -= size
            self.loop.transferred += size
            if self.missing <= 0:
                self._end_answer()
                return

    def _end_answer(self) -> None:
        if self.missing < 0:
            raise Failed("more came than the answer is long")
        self.loop.active -= 1
        self.loop.answered(self)

    def _read_head(self, size: int) -> int:
        """Look for the head's end in what came; returns how many bytes of the body came with it.

        `missing` tells whether the end was there.
        """
        self.head += _BUFFER[:size]
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return 0
        if not self.head.startswith(b"HTTP/1.1 2"):
            raise Failed(f"answered by {self.head[:600]!r}")
        if found := _CONTENT_LENGTH.search(self.head, 0, end + 2):
            self.missing = int(found[1])
        elif self.head.startswith(b"HTTP/1.1 204"):
            self.missing = 0
        else:
            raise Failed(f"an answer without a length: {self.head[:600]!r}")
        came = len(self.head) - end - 4
        self.head = b""
        return came

    def close(self) -> None:
        """Close it without a farewell, as the end of a client's process does."""
        del self.loop.connections[self.sock.fileno()]
        self.sock.close()

    def write(self) -> None:
        """Send more of an upload."""
        for _ in range(_RECORDS_A_TURN):
            try:
                sent = self.sock.send(_UPLOAD[: self.sending])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            self.sending -= sent
            self.loop.transferred += sent
            if self.sending == 0:
                self.loop.epoll.modify(self.sock.fileno(), select.EPOLLIN)
                return


class ShortConnection(Connection):
    """A connection that is opened for one request: its time starts before the TCP connection does."""

    def __init__(self, loop: Loop, job: dict[str, Any], number: int, head: bytes) -> None:
        began_ns = time.perf_counter_ns()
        super().__init__(loop, job, number, do_handshake_on_connect=False)
        self.began_ns = began_ns
        self.first_head = head
        """The request to send when the handshake is complete; empty afterwards."""
        loop.active += 1
        self.read()

    def read(self) -> None:
        if not self.first_head:
            super().read()
            return
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return
        head, self.first_head, began_ns = self.first_head, b"", self.began_ns
        # `ask` counts the exchange, and starts its clock.
        self.loop.active -= 1
        self.ask(head)
        self.began_ns = began_ns


class Loop:
    """All connections of a job, and what they count."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.context = ssl.create_default_context(cafile=job["endpoint"]["ca"])
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.answered: Callable[[Connection], None] = lambda connection: None
        self.active = 0
        self.requests = 0
        self.transferred = 0
        self.latencies_ns: list[int] = []
        if job.get("kind") != "connections":
            for number in range(job["connections"]):
                Connection(self, job, number)

    def head(self, method: str, path: str, body_bytes: int | None = None) -> bytes:
        endpoint = self.job["endpoint"]
        lines = [
            f"{method} {endpoint['prefix']}{path} HTTP/1.1",
            f"Host: {endpoint['host']}:{endpoint['port']}",
            "User-Agent: kubectl/v1.37.0 (linux/amd64) kubernetes/8f1cd3a",
            "Accept: application/json",
            *(f"{name}: {value}" for name, value in endpoint["headers"]),
            *([f"Content-Length: {body_bytes}"] if body_bytes is not None else []),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def run(self, *, until: int | None = None) -> None:
        """Serve the connections while an answer is under way, or until `until` (a descriptor) is readable."""
        if until is not None:
            self.epoll.register(until, select.EPOLLIN)
        poll, connections = self.epoll.poll, self.connections
        while self.active or until is not None:
            events = poll(_IDLE_S)
            if not events:
                raise Failed(f"{self.active} answers are under way, and nothing has come for {_IDLE_S:.0f} s")
            for descriptor, event in events:
                if descriptor == until:
                    self.epoll.unregister(until)
                    return
                connection = connections[descriptor]
                if event & select.EPOLLOUT:
                    connection.write()
                if event & ~select.EPOLLOUT:
                    connection.read()

    def reset(self) -> None:
        """Start counting again."""
        self.requests = self.transferred = 0
        self.latencies_ns = []


def request_for(loop: Loop, seconds: float) -> None:
    """Requests by every connection, one after the other; the last ones start before `seconds` have passed.

    With a `size` they are PUTs of so many bytes, each connection's to a path of its own, or one such PUT and
    then GETs of that path, in every `write_every` requests. Head and body leave in one piece, as those of a
    small write do in every usual client.
    """
    job = loop.job
    path, size, gets = job["path"], job["size"], job.get("write_every", 1) - 1
    asked = [
        cycle([loop.head("PUT", of, size) + bytes(_UPLOAD[:size]), *[loop.head("GET", of)] * gets])
        if size
        else repeat(loop.head("GET", path))
        for of in (f"{path}{number}" for number in range(job["connections"]))
    ]
    clock = time.perf_counter_ns
    end_ns = clock() + int(seconds * 1e9)

    def answered(connection: Connection) -> None:
        now_ns = clock()
        loop.latencies_ns.append(now_ns - connection.began_ns)
        loop.requests += 1
        if now_ns < end_ns:
            connection.ask(next(asked[connection.number]))

    loop.answered = answered
    for connection in loop.connections.values():
        connection.ask(next(asked[connection.number]))
    loop.run()


def connect_for(loop: Loop, seconds: float) -> None:
    """GETs, each over a connection of its own, `connections` of them at a time, for so long."""
    job = loop.job
    head = loop.head("GET", job["path"])
    clock = time.perf_counter_ns
    end_ns = clock() + int(seconds * 1e9)

    def answered(connection: Connection) -> None:
        now_ns = clock()
        loop.latencies_ns.append(now_ns - connection.began_ns)
        loop.requests += 1
        connection.close()
        if now_ns < end_ns:
            ShortConnection(loop, job, connection.number, head)

    loop.answered = answered
    for number in range(job["connections"]):
        ShortConnection(loop, job, number, head)
    loop.run()


def transfer(loop: Loop, bodies: int) -> None:
    """So many whole bodies by every connection, down or up by the job's kind; endless when there are 0."""
    job = loop.job
    size = job["size"] if job["kind"] == "upload" else 0

    def start(connection: Connection) -> None:
        if size:
            connection.ask(loop.head("PUT", f"{job['path']}{connection.number}", size), size)
        else:
            connection.ask(loop.head("GET", job["path"]))

    def answered(connection: Connection) -> None:
        loop.requests += 1
        connection.left -= 1
        if connection.left > 0:
            start(connection)

    loop.answered = answered
    for connection in loop.connections.values():
        connection.left = bodies or sys.maxsize
        start(connection)
    loop.run(until=None if bodies else sys.stdin.fileno())


def stall(loop: Loop) -> None:
    """Read the first bytes of an answer, and never more."""
    head = loop.head("GET", loop.job["path"])
    for connection in loop.connections.values():
        connection.ask(head)
        while connection.missing < 0:
            select.select([connection.sock], [], [], _IDLE_S)
            connection.read()


def serve(job: dict[str, Any]) -> None:
    """Connect, warm up, and run the job after each line of stdin."""
    loop = Loop(job)
    match job["kind"]:
        case "requests":
            request_for(loop, job["warmup_s"])
        case "connections":
            connect_for(loop, job["warmup_s"])
        case "stall":
            stall(loop)
        case _:
            transfer(loop, 1)
    print("ready", flush=True)
    while sys.stdin.readline():
        print(json.dumps(run_once(loop)), flush=True)


def run_once(loop: Loop) -> dict[str, object]:
    """Do the job once, and report it."""
    job = loop.job
    loop.reset()
    began_s, cpu_s = time.perf_counter(), time.process_time()
    match job["kind"]:
        case "requests":
            request_for(loop, job["seconds"])
        case "connections":
            connect_for(loop, job["seconds"])
        case "stall":
            sys.stdin.readline()
        case _:
            transfer(loop, job["bodies"])
            if not job["bodies"]:
                # The line that ended it.
                sys.stdin.readline()
    return {
        "wall_s": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - cpu_s,
        "requests": loop.requests,
        "transferred": loop.transferred,
        "latencies_ns": loop.latencies_ns,
    }


def main() -> None:
    job = json.loads(sys.stdin.readline())
    try:
        serve(job)
    except (Failed, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
