"""Clients that arrive at a given rate, however long the answers take, as a process.

Each makes a TLS connection from one of some loopback addresses (127.0.0.1, 127.0.0.2, …), sends a GET, reads
the answer, and closes. The job comes as a line of JSON on stdin, and the report is a line of JSON on stdout.
A client that is not served is counted by what it saw: `refused` (no TCP connection), `cut` (reset or closed
before an answer), `status` (another answer than 2xx), `late` (no answer within `deadline_s`). One thread and
one epoll; the certificate is not verified, since that is the client's cost alone.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import ssl
import sys
import time
from collections import Counter, deque
from typing import Any

from proxy.process.lifecycle.filelimit import raise_file_limit

# Between two looks at the clock.
EVENTS_MAX = 64
IN_PROGRESS = (errno.EINPROGRESS, errno.EAGAIN)


class Arrival:
    """One client's connection."""

    __slots__ = ("began_ns", "head", "plain", "sent", "tls")

    def __init__(self, address: tuple[str, int], source: str) -> None:
        self.began_ns = time.perf_counter_ns()
        self.plain = socket.socket()
        self.plain.setblocking(False)
        # The port is chosen at the connect, among those that are free for this destination.
        self.plain.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        self.plain.bind((source, 0))
        self.tls: ssl.SSLSocket | None = None
        self.sent = False
        self.head = b""
        failed = self.plain.connect_ex(address)
        if failed not in (0, *IN_PROGRESS):
            raise OSError(failed, "connect")

    def fileno(self) -> int:
        return (self.tls or self.plain).fileno()

    def proceed(self, context: ssl.SSLContext, request: bytes) -> str:
        """Continue as far as the socket allows; returns the outcome, or "" while it is open."""
        try:
            if self.tls is None:
                if failed := self.plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return "refused" if failed == errno.ECONNREFUSED else "cut"
                self.tls = context.wrap_socket(self.plain, do_handshake_on_connect=False)
            if not self.sent:
                self.tls.do_handshake()
                self.tls.send(request)
                self.sent = True
            while data := self.tls.recv(65536):
                self.head = self.head or data
                head, found, _ = self.head.partition(b"\r\n\r\n")
                if found:
                    return "served" if head.startswith(b"HTTP/1.1 2") else "status"
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return ""
        except OSError:
            return "cut"
        return "cut"

    def close(self) -> None:
        (self.tls or self.plain).close()


def arrive(job: dict[str, Any]) -> dict[str, object]:
    """Run the job: `rate` clients a second for `seconds`, or `count` at once when the rate is 0."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address, request = (job["host"], job["port"]), job["head"].encode()
    epoll, open_ones = select.epoll(), dict[int, Arrival]()
    waiting, outcomes, latencies_ns = deque[Arrival](), Counter[str](), list[int]()
    began_ns = time.perf_counter_ns()
    count, started = job["count"], 0

    def end(arrival: Arrival, outcome: str) -> None:
        outcomes[outcome] += 1
        if outcome == "served":
            latencies_ns.append(time.perf_counter_ns() - arrival.began_ns)
        del open_ones[arrival.fileno()]
        arrival.close()

    while started < count or open_ones:
        now_ns = time.perf_counter_ns()
        due = count if not job["rate"] else min(count, int((now_ns - began_ns) / 1e9 * job["rate"]) + 1)
        for _ in range(due - started):
            arrival = Arrival(address, f"127.0.0.{1 + started % job['sources']}")
            started += 1
            open_ones[arrival.fileno()] = arrival
            waiting.append(arrival)
            epoll.register(arrival.fileno(), select.EPOLLOUT)
        for descriptor, _ in epoll.poll(0.001 if started < count else 0.1, EVENTS_MAX):
            arrival = open_ones[descriptor]
            connecting = arrival.tls is None
            outcome = arrival.proceed(context, request)
            if outcome:
                end(arrival, outcome)
            elif connecting:
                epoll.modify(arrival.fileno(), select.EPOLLIN)
        while waiting and now_ns - waiting[0].began_ns > job["deadline_s"] * 1e9:
            arrival = waiting.popleft()
            if open_ones.get(arrival.fileno()) is arrival:
                end(arrival, "late")
    return {
        "wall_s": (time.perf_counter_ns() - began_ns) / 1e9,
        "cpu_s": time.process_time(),
        "outcomes": outcomes,
        "latencies_ns": sorted(latencies_ns),
    }


def main() -> None:
    raise_file_limit()
    print(json.dumps(arrive(json.loads(sys.stdin.readline()))), flush=True)


if __name__ == "__main__":
    main()
