"""A container's output: a bounded log of whole lines with timestamps.

Theory of operation. Lines have no cost of their own. The log keeps *chunks*: the whole lines of one read,
with one timestamp. Only a reader with `tail` or `timestamps` searches for the newlines again. A burst of 100
MB/s then costs a few thousand appends per second instead of a million.

The log is bounded in bytes, and a follower may be slower than the container. A kubelet rotates its files, and
such a follower loses lines. Here the container waits for a follower that is still reading (`writable`), so
that a followed burst is complete. If a follower has not read for a second, the container stops waiting for
it, and it loses lines.
"""

from __future__ import annotations

import collections
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType

import attrs
import trio

# A kubelet rotates at ten MiB by default (containerLogMaxSize).
LOG_BYTES_MAX = 10 * 1024 * 1024
# CRI runtimes split an unterminated line at 16 KiB and continue it in the next entry.
LINE_BYTES_MAX = 16 * 1024
# How long a container waits for a follower that does not read.
FOLLOWER_PATIENCE_S = 1.0


@attrs.frozen
class Chunk:
    """Whole lines from one read; `continues` if the first of them began in an earlier chunk."""

    time_ns: int
    data: bytes
    continues: bool = False

    def with_timestamps(self) -> bytes:
        """The lines, each after the time of its first byte, as `kubectl logs --timestamps` shows them."""
        seconds, nanoseconds = divmod(self.time_ns, 1_000_000_000)
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        stamp = f"{moment}.{nanoseconds:09}Z ".encode()
        # splitlines() would also split at the carriage returns of a progress bar.
        body, ended, rest = self.data.rpartition(b"\n")
        lines = [*body.split(b"\n"), *([rest] if rest else [])] if ended else [rest]
        stamped = (b"\n" + stamp).join(lines) + (b"\n" if ended and not rest else b"")
        return stamped if self.continues else stamp + stamped


class Log:
    """The lines of one run of one container."""

    def __init__(self, *, bytes_max: int = LOG_BYTES_MAX, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._bytes_max = bytes_max
        self._clock_ns = clock_ns
        self._chunks: collections.deque[Chunk] = collections.deque()
        self._kept_bytes = 0
        self._appended_bytes = 0
        self._closed = False
        self._readers: weakref.WeakSet[LogReader] = weakref.WeakSet()
        self._grown = trio.Event()
        self._read = trio.Event()

    @property
    def closed(self) -> bool:
        """True once the run that wrote this log has ended."""
        return self._closed

    def append(self, data: bytes, *, continues: bool = False) -> None:
        """Add whole lines (or a piece of an overlong one), and drop the oldest chunks beyond the bound."""
        self._chunks.append(Chunk(self._clock_ns(), data, continues))
        self._kept_bytes += len(data)
        self._appended_bytes += len(data)
        while self._kept_bytes > self._bytes_max and len(self._chunks) > 1:
            self._kept_bytes -= len(self._chunks.popleft().data)
        self._wake_followers()

    def close(self) -> None:
        """End the log: followers read the rest and stop."""
        self._closed = True
        self._wake_followers()

    def _wake_followers(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    async def writable(self) -> None:
        """Wait while an active follower is behind by more than half of the log."""
        for reader in list(self._readers):
            offset = reader.offset
            deadline = trio.current_time() + FOLLOWER_PATIENCE_S
            while not reader.stuck and self._appended_bytes - reader.offset > self._bytes_max // 2:
                with trio.move_on_at(deadline):
                    await self._read.wait()
                if reader.offset != offset:
                    offset = reader.offset
                    deadline = trio.current_time() + FOLLOWER_PATIENCE_S
                elif trio.current_time() >= deadline:
                    reader.stuck = True

    def read(
        self,
        *,
        tail: int | None = None,
        since_ns: int | None = None,
        timestamps: bool = False,
        follow: bool = False,
        limit_bytes: int | None = None,
    ) -> LogReader:
        """Return an async iterator of bytes over the log; use it in a `with` block."""
        return LogReader(self, tail, since_ns, timestamps, follow, limit_bytes)


class LogReader:
    """Reads a log from the position of its options, and then follows it if requested.

    Cancelling loses nothing: between taking a chunk and returning it there is no checkpoint.
    """

    def __init__(
        self,
        log: Log,
        tail: int | None,
        since_ns: int | None,
        timestamps: bool,
        follow: bool,
        limit_bytes: int | None,
    ) -> None:
        self._log = log
        self._timestamps = timestamps
        self._follow = follow
        self._left = limit_bytes
        self._pending = _select(log._chunks, tail, since_ns)
        # The log's bytes that are behind this reader, or in `_pending`, which shares the log's own chunks.
        self.offset = log._appended_bytes
        self.stuck = False
        if follow:
            log._readers.add(self)

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> bytes:
        while not self._pending:
            if self._left == 0 or not self._refill():
                self.close()
                raise StopAsyncIteration
            if not self._pending:
                await self._log._grown.wait()
        await trio.lowlevel.checkpoint()
        chunk = self._pending.popleft()
        data = chunk.with_timestamps() if self._timestamps else chunk.data
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            if self._left == 0:
                self._pending.clear()
        return data

    def _refill(self) -> bool:
        """Take the log's new chunks; False if no more will come."""
        log = self._log
        fresh = log._appended_bytes - self.offset
        self.offset = log._appended_bytes
        if not self._follow:
            return False
        if fresh == 0:
            return not log.closed
        taken = 0
        newest: list[Chunk] = []
        for chunk in reversed(log._chunks):
            if taken >= fresh:
                break
            newest.append(chunk)
            taken += len(chunk.data)
        self._pending.extend(reversed(newest))
        self.stuck = False
        log._read.set()
        log._read = trio.Event()
        return True

    def close(self) -> None:
        """Stop following; the container no longer waits for this reader."""
        self.stuck = True
        self._log._readers.discard(self)
        self._log._read.set()
        self._log._read = trio.Event()


def _select(
    chunks: collections.deque[Chunk], tail: int | None, since_ns: int | None
) -> collections.deque[Chunk]:
    """The chunks that a reader begins with: not older than `since_ns`, and of these the last `tail` lines."""
    selected: collections.deque[Chunk] = collections.deque()
    lines_left = tail
    for chunk in reversed(chunks):
        if (since_ns is not None and chunk.time_ns < since_ns) or lines_left == 0:
            break
        if lines_left is not None:
            # A line that continues in the next chunk was counted there.
            ends = chunk.data.count(b"\n") + (not chunk.data.endswith(b"\n"))
            if ends > lines_left:
                selected.appendleft(
                    attrs.evolve(chunk, data=_last_lines(chunk.data, lines_left), continues=False)
                )
                break
            lines_left -= ends if not chunk.continues else ends - 1
        selected.appendleft(chunk)
    return selected


def _last_lines(data: bytes, count: int) -> bytes:
    at = len(data) - data.endswith(b"\n")
    for _ in range(count):
        at = data.rfind(b"\n", 0, at)
    return data[at + 1 :]


class LineSplitter:
    """Splits the reads of one output into whole lines for a log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._rest = b""
        self._continues = False

    def feed(self, data: bytes) -> None:
        """Log the lines that `data` completes, and keep the rest after the last newline."""
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            self._log.append(self._rest + whole + newline, continues=self._continues)
            self._rest, self._continues = rest, False
        else:
            self._rest += rest
        if len(self._rest) >= LINE_BYTES_MAX:
            self._flush(continues=True)

    def finish(self) -> None:
        """Log a last line that has no newline."""
        self._flush(continues=False)

    def _flush(self, *, continues: bool) -> None:
        if self._rest:
            self._log.append(self._rest, continues=self._continues)
        self._rest, self._continues = b"", continues
