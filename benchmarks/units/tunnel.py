"""What the tunnel costs by itself: no sockets, no TLS, no HTTP.

    .venv/bin/python -m benchmarks.units.tunnel [NAME…] [--runs N]

`core` is two connections of the sans-IO core whose messages are handed over; `shell` is two sessions over
the memory transport in one trio loop. Each figure is the CPU time of this process, so of both ends, and the
median and the least of the runs. A small exchange is OPEN (a head of 400 bytes and the end), answered by HEAD
(150 bytes), DATA (2 KB) and the end. The number behind x is how many exchanges share a message, or run at
once.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from benchmarks.waiting import receive_body, receive_head, send
from tunnel import Hello, Role, Session, Stream, Welcome, memory_transport_pair, open_session
from tunnel.net.malloc import keep_large_buffers
from tunnel.protocol.connection import Connection
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.events import GoAway
from tunnel.protocol.streams import Context, StreamState

REQUEST = b"r" * 400
ANSWER = b"a" * 150
BODY = b"b" * 2048
CHUNK = b"c" * 65536
EVENT = b"e" * 1024

EXCHANGES = 3000
BULK_BYTES = 128 * 1024 * 1024
WATCH_EVENTS = 6000
IDLE_STREAMS = 6000
MESSAGE_BYTES = 256 * 1024
TOGETHER = (1, 16, 64)

# Whether the messages are kept until they are acknowledged, as between a hub and a relay.
RESUME = True


@attrs.frozen
class Figure:
    name: str
    unit: str
    runs: list[float]


class Received:
    """The owner of a stream: adds it to `streams` whenever there are bytes to take."""

    __slots__ = ("_stream", "_streams")

    def __init__(self, stream: StreamState, streams: list[StreamState]) -> None:
        self._stream = stream
        self._streams = streams

    def on_data(self) -> None:
        self._streams.append(self._stream)

    def on_head(self) -> None: ...
    def on_room(self) -> None: ...
    def on_broken(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> None: ...
    def on_doubt(self) -> None: ...


class Opened:
    """The owner of a connection: keeps the streams that the peer opens."""

    def __init__(self) -> None:
        self.streams: list[StreamState] = []

    def on_stream(self, stream: StreamState) -> None:
        self.streams.append(stream)

    def on_context(self, context: Context) -> None: ...
    def on_goaway(self, goaway: GoAway) -> None: ...
    def on_eviction(self) -> None: ...


class Core:
    """Two connections, greeted, and a clock that stands."""

    def __init__(self) -> None:
        self.now = 100.0
        self.opened = Opened()
        self.hub = Connection(Role.LISTENER, owner=Opened(), now=self.now)
        self.relay = Connection(Role.DIALER, owner=self.opened, now=self.now)
        self.answered: list[StreamState] = []
        features = ("resume",) if RESUME else ()
        hello = Hello(features=features)
        self.relay.handshake.say_hello(hello)
        self.to_hub()
        self.hub.handshake.say_welcome(Welcome(session_id="s", features=features, resume_ttl_s=60), hello)
        self.to_relay()
        self.context = self.hub.add_context(1, b"token").index

    def open(self) -> StreamState:
        stream = self.hub.streams.open(REQUEST, self.context, eof=True, now=self.now)
        stream.owner = Received(stream, self.answered)
        return stream

    def to_hub(self) -> list[StreamState]:
        """Carry a message; returns the streams that it has brought bytes for."""
        self._carry(self.relay, self.hub)
        answered = self.answered[:]
        self.answered.clear()
        return answered

    def to_relay(self) -> list[StreamState]:
        """Carry a message; returns the streams that it has opened."""
        self._carry(self.hub, self.relay)
        opened, self.opened.streams = self.opened.streams, []
        return opened

    def _carry(self, sender: Connection, receiver: Connection) -> None:
        message = sender.data_to_send(MESSAGE_BYTES, self.now)
        if message:
            receiver.receive_message(message, self.now)


def core_exchanges(together: int) -> float:
    """Seconds of CPU an exchange."""
    core = Core()
    hub, relay, now = core.hub, core.relay, core.now
    rounds = EXCHANGES // together

    def one_round() -> None:
        for _ in range(together):
            core.open()
        for stream in core.to_relay():
            relay.streams.send_head(stream, ANSWER, eof=True, data=BODY)
        for stream in core.to_hub():
            assert len(hub.streams.take(stream, 65536, now)) == len(BODY)

    return _cpu_s(rounds, one_round) / together


def core_bulk(_: int) -> float:
    """Seconds of CPU a GB."""
    core = Core()
    hub, relay, now = core.hub, core.relay, core.now
    opened = core.open()
    (answering,) = core.to_relay()
    relay.streams.send_head(answering, ANSWER, eof=False)

    def one_round() -> None:
        while answering.outgoing.size < 2 * len(CHUNK):
            relay.streams.send_data(answering, CHUNK)
        core.to_hub()
        while hub.streams.take(opened, 65536, now):
            pass
        core.to_relay()

    for _ in range(200):
        one_round()
    before = opened.bytes_received
    taken_s = _cpu_s(BULK_BYTES // (2 * len(CHUNK)), one_round) * (BULK_BYTES // (2 * len(CHUNK)))
    return taken_s / (opened.bytes_received - before) * 1e9


def core_watch(together: int) -> float:
    """Seconds of CPU an event of 1 KB."""
    core = Core()
    hub, relay, now = core.hub, core.relay, core.now
    for _ in range(together):
        core.open()
    answering = core.to_relay()
    for stream in answering:
        relay.streams.send_head(stream, ANSWER, eof=False)

    def one_round() -> None:
        for stream in answering:
            relay.streams.send_data(stream, EVENT)
        for stream in core.to_hub():
            hub.streams.take(stream, 65536, now)
        if hub.wants_to_send:
            core.to_relay()

    return _cpu_s(WATCH_EVENTS // together, one_round) / together


def _cpu_s(rounds: int, one_round: Callable[[], None]) -> float:
    started_s = time.process_time()
    for _ in range(rounds):
        one_round()
    return (time.process_time() - started_s) / rounds


# --- the shell ---


@attrs.frozen
class Shell:
    """Two sessions, greeted."""

    hub: Session
    relay: Session
    context: int


@asynccontextmanager
async def open_shell() -> AsyncIterator[Shell]:
    here, there = memory_transport_pair()
    done = trio.Event()
    tell, told = trio.open_memory_channel[Session](1)

    async def dial() -> None:
        async with open_session(there, Role.DIALER) as session:
            await tell.send(session)
            await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        async with open_session(here, Role.LISTENER) as hub:
            yield Shell(hub, await told.receive(), hub.add_context(1, b"token"))
        done.set()


def _answer(stream: Stream) -> None:
    stream.send_answer_nowait(ANSWER, BODY, eof=True)
    stream.close_nowait()


async def _ask(shell: Shell, count: int) -> None:
    for _ in range(count):
        stream = shell.hub.open_stream(REQUEST, context=shell.context, eof=True)
        await receive_head(stream)
        assert await receive_body(stream) == len(BODY)
        stream.close_nowait()


async def shell_exchanges(together: int) -> float:
    async with open_shell() as shell:
        shell.relay.on_stream(_answer)
        started_s = time.process_time()
        async with trio.open_nursery() as asking:
            for _ in range(together):
                asking.start_soon(_ask, shell, EXCHANGES // together)
        taken_s = time.process_time() - started_s
    return taken_s / (EXCHANGES // together * together)


async def _open_answered(shell: Shell) -> tuple[Stream, Stream]:
    asking = shell.hub.open_stream(REQUEST, context=shell.context, eof=True)
    answering: list[Stream] = []

    def answer(stream: Stream) -> None:
        stream.send_answer_nowait(ANSWER)
        answering.append(stream)

    shell.relay.on_stream(answer)
    await receive_head(asking)
    return asking, answering[0]


async def _send_bulk(stream: Stream, size: int) -> None:
    for _ in range(size // len(CHUNK)):
        await send(stream, CHUNK)
    stream.write(b"", eof=True)


async def shell_bulk(together: int) -> float:
    async with open_shell() as shell:
        pairs = [await _open_answered(shell) for _ in range(together)]
        started_s = time.process_time()
        async with trio.open_nursery() as nursery:
            for asking, answering in pairs:
                nursery.start_soon(_send_bulk, answering, BULK_BYTES // together)
                nursery.start_soon(receive_body, asking)
        return (time.process_time() - started_s) / BULK_BYTES * 1e9


async def _send_events(stream: Stream, count: int) -> None:
    for _ in range(count):
        await send(stream, EVENT)
        # Each of its events leaves before the next one is there, as those of a cluster do.
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    stream.write(b"", eof=True)


async def shell_watch(together: int) -> float:
    async with open_shell() as shell:
        pairs = [await _open_answered(shell) for _ in range(together)]
        started_s = time.process_time()
        async with trio.open_nursery() as nursery:
            for asking, answering in pairs:
                nursery.start_soon(_send_events, answering, WATCH_EVENTS // together)
                nursery.start_soon(receive_body, asking)
        return (time.process_time() - started_s) / (WATCH_EVENTS // together * together)


async def shell_idle(_: int) -> float:
    """Bytes an end of an idle stream: both heads are sent, and no task waits."""
    async with open_shell() as shell:
        warm = [await _open_answered(shell) for _ in range(100)]
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        pairs = [await _open_answered(shell) for _ in range(IDLE_STREAMS)]
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert warm
        assert pairs
        return used / IDLE_STREAMS / 2


def _measure(name: str, unit: str, scale: float, runs: int, once: Callable[[], float]) -> Figure:
    once()
    measured = []
    for _ in range(runs):
        gc.collect()
        gc.freeze()
        measured.append(once() * scale)
    return Figure(name, unit, measured)


def _tasks() -> list[tuple[str, str, float, Callable[[], float]]]:
    def core(once: Callable[[int], float], together: int = 1) -> Callable[[], float]:
        return lambda: once(together)

    def shell(once: Callable[[int], Awaitable[float]], together: int = 1) -> Callable[[], float]:
        return lambda: trio.run(once, together)

    return [
        *((f"core exchange x{n}", "µs", 1e6, core(core_exchanges, n)) for n in TOGETHER),
        *((f"shell exchange x{n}", "µs", 1e6, shell(shell_exchanges, n)) for n in TOGETHER),
        ("core bulk", "s/GB", 1, core(core_bulk)),
        *((f"shell bulk x{n}", "s/GB", 1, shell(shell_bulk, n)) for n in TOGETHER),
        *((f"core watch x{n}", "µs", 1e6, core(core_watch, n)) for n in TOGETHER),
        *((f"shell watch x{n}", "µs", 1e6, shell(shell_watch, n)) for n in TOGETHER),
        ("shell idle", "bytes an end", 1, shell(shell_idle)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="the figures whose names begin so; else all")
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure (5)")
    options = parser.parse_args()
    # As the processes run, or a GB costs what the page faults of the hour do.
    keep_large_buffers()
    print(f"{'':24} {'median':>9} {'least':>9}")
    for name, unit, scale, once in _tasks():
        if options.names and not any(name.startswith(wanted) for wanted in options.names):
            continue
        runs = 1 if name == "shell idle" else options.runs
        figure = _measure(name, unit, scale, runs, once)
        print(
            f"{figure.name:24} {statistics.median(figure.runs):9.3f} {min(figure.runs):9.3f} {figure.unit}",
            flush=True,
        )


if __name__ == "__main__":
    main()
