"""The link as a process: `python -m benchmarks.link --to PORT --rtt-ms 20 [--mbit 100]`, on loopback.

It prints `listening PORT`, and carries each connection to the given port. Every byte takes half the round
trip; each direction carries at most the rate, over all connections.

It delays bytes, not segments. The TCP connections at its two ends see no delay, so there is no slow start, no
loss, and no handshake that takes a round trip. It measures how the programs cope with a long link: their
windows, their fairness, their buffers. Its own buffers add delay behind a busy sender:
the line's queue, and a receive buffer of SOCKET_BYTES, together about 10 ms at 100 Mbit/s.
"""

from __future__ import annotations

import argparse
import math
import select
import socket
import time
from contextlib import suppress
from typing import Final

import attrs

from benchmarks.link.line import Flow, Line

READ_BYTES: Final = 16 * 1024
# The kernel doubles it for its bookkeeping. What a sender has in here is not yet on the line.
SOCKET_BYTES: Final = 64 * 1024
BACKLOG: Final = 64


@attrs.define(eq=False)
class Lane:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    flow: Flow
    blocked: bool = False
    """The sink takes no more for now."""

    def read(self, now: float) -> None:
        try:
            data = self.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.flow.put(data, now)

    def deliver(self, now: float) -> None:
        """Deliver the bytes that have arrived."""
        self.blocked = False
        while self.flow.arrives_at() <= now:
            data = self.flow.take()
            try:
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    return
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.flow.abandon()
                with suppress(OSError):
                    self.source.shutdown(socket.SHUT_RD)
                return
            if sent < len(data):
                self.flow.put_back(data[sent:])
                self.blocked = True
                return


class Link:
    """All connections of one link."""

    def __init__(self, listener: socket.socket, to_port: int, there: Line, back: Line) -> None:
        self._listener = listener
        self._to_port = to_port
        self._there = there
        self._back = back
        self._lanes: list[Lane] = []

    def accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.socket()
        try:
            shrink(far)
            far.connect(("127.0.0.1", self._to_port))
        except OSError:
            near.close()
            far.close()
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lanes += [Lane(near, far, Flow(self._there)), Lane(far, near, Flow(self._back))]

    def turn(self) -> None:
        """Wait until something can be done, and do it."""
        now = time.monotonic()
        wake_at = math.inf
        readers: list[socket.socket] = [self._listener]
        writers: list[socket.socket] = []
        for lane in self._lanes:
            wants_at = lane.flow.wants_at()
            if wants_at <= now:
                readers.append(lane.source)
            else:
                wake_at = min(wake_at, wants_at)
            if lane.blocked:
                writers.append(lane.sink)
            else:
                wake_at = min(wake_at, lane.flow.arrives_at())
        # select(2) and not epoll: its timeout is exact to some 50 µs, where epoll's is whole milliseconds.
        timeout = None if wake_at == math.inf else max(0.0, wake_at - now)
        readable, writable, _ = select.select(readers, writers, [], timeout)
        now = time.monotonic()
        if self._listener in readable:
            self.accept()
        for lane in self._lanes:
            if lane.source in readable:
                lane.read(now)
            if not lane.blocked or lane.sink in writable:
                lane.deliver(now)
        self._bury()

    def _bury(self) -> None:
        """Close connections of which both directions have ended."""
        open_ends = {id(end) for lane in self._lanes if not lane.flow.over for end in ends(lane)}
        for lane in [lane for lane in self._lanes if lane.flow.over]:
            if id(lane.source) not in open_ends:
                lane.source.close()
                lane.sink.close()
                self._lanes.remove(lane)


def ends(lane: Lane) -> tuple[socket.socket, socket.socket]:
    return lane.source, lane.sink


def shrink(end: socket.socket) -> None:
    """Keep the kernel from holding what the line should; to be called before the connection is there."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description="A slow link on loopback.")
    parser.add_argument("--to", type=int, required=True, metavar="PORT", help="the loopback port behind it")
    parser.add_argument("--rtt-ms", type=float, required=True, help="the round trip it adds")
    parser.add_argument("--mbit", type=float, default=100.0, help="the rate of each direction, Mbit/s")
    asked = parser.parse_args()
    listener = socket.socket()
    shrink(listener)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    print(f"listening {listener.getsockname()[1]}", flush=True)
    bytes_per_s, delay_s = asked.mbit * 1e6 / 8, asked.rtt_ms / 2000
    link = Link(listener, asked.to, Line(bytes_per_s, delay_s), Line(bytes_per_s, delay_s))
    while True:
        link.turn()


if __name__ == "__main__":
    main()
