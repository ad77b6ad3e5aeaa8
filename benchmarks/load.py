"""The load of a run: a client process that connects, waits for `go`, and reports.

The client (benchmarks.client) is a process of its own, so its CPU time is not counted as the system's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal

import attrs

from benchmarks.system import Endpoint
from benchmarks.workload import RunFailed

# A run takes seconds. A client that takes this long hangs.
DEADLINE_S = 120.0
_ROOT = Path(__file__).parent.parent


@attrs.frozen
class Job:
    """What the client does, and for how long.

    `requests`: GETs of `path` by each connection, one after the other, for `seconds`; with a `size` PUTs of
    so many bytes to `path`N by each connection N, of every `write_every` requests one, and GETs of it.
    `connections`: GETs of `path` for `seconds`, each over a new connection, so many `connections` at a time.
    `download`: GETs of `path`, `bodies` of them by each connection; endless when that is 0, until the end.
    `upload`: PUTs of `size` bytes to `path`N, `bodies` of them by each connection N.
    `stall`: one GET of `path` by each connection, of whose answer only the first bytes are ever read.
    """

    kind: Literal["requests", "connections", "download", "upload", "stall"]
    endpoint: Endpoint
    path: str
    connections: int = 1
    seconds: float = 1.0
    warmup_s: float = 0.3
    bodies: int = 1
    size: int = 0
    write_every: int = 1


@attrs.frozen
class Report:
    """What the client counted."""

    requests: int
    transferred: int
    """Bytes of bodies."""
    wall_s: float
    cpu_s: float
    """The client's own, of this run."""
    latencies_ns: tuple[int, ...]
    """One a request, sorted; of `requests` and `connections` only."""


class Load:
    """A client process, from its connections to its report; leaving the block ends it.

    Inside the block all its connections are up and warm. `go` starts what is measured, `report` waits for its
    end; both may be repeated. Raises RunFailed with the client's words when an answer is not what was asked
    for.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        try:
            self._send(json.dumps(attrs.asdict(self._job), default=str))
            self._receive()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def go(self) -> None:
        """Start what is measured."""
        self._send("go")

    def report(self) -> Report:
        """Wait for the end, and return the figures."""
        answer = json.loads(self._receive())
        return Report(
            requests=answer["requests"],
            transferred=answer["transferred"],
            wall_s=answer["wall_s"],
            cpu_s=answer["cpu_s"],
            latencies_ns=tuple(sorted(answer["latencies_ns"])),
        )

    def stop(self) -> Report:
        """End an endless job, and return its figures up to now."""
        self._send("stop")
        return self.report()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunFailed(self._last_words()) from None

    def _receive(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunFailed(self._last_words())
        return line

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().strip().splitlines()
        return f"the client: {lines[-1] if lines else 'ended without a message'}"

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
