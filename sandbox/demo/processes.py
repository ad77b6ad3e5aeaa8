"""The demo's processes: their output goes to files, `wait_for` waits for a log line, and they are ended by
pid.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import attrs

READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
POLL_S = 0.05
# Below Linux's range for outgoing connections: one of those could take the port before the server listens.
SERVER_PORTS = range(20_000, 32_768)
PORTS_TRIED = 100
# Each is a file descriptor; the first servers have started to listen long before the limit is reached.
PORTS_RESERVED_MAX = 256
# Ctrl-C, `kill`, and a closed terminal.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """The demo failed; the message says what happened, and where to look."""


def say(text: str) -> None:
    """Print a line and flush it, so that it appears at once through a pipe too."""
    print(text, flush=True)


@attrs.define(eq=False)
class Daemon:
    """A background process whose stdout and stderr go to `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, text: str) -> str:
        """Return the first log line that contains `text`.

        Raises DemoError if the process ends, or prints no such line within READY_DEADLINE_S.
        """
        deadline = time.monotonic() + READY_DEADLINE_S
        while True:
            ended = self.process.poll() is not None
            for line in self.log.read_text(errors="replace").splitlines():
                if text in line:
                    return line
            if ended:
                raise DemoError(self.last_words())
            if time.monotonic() > deadline:
                raise DemoError(
                    f"{self.name} did not say {text!r} within {READY_DEADLINE_S:.0f} s: see {self.log}"
                )
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raise DemoError if the process has ended."""
        if self.process.poll() is not None:
            raise DemoError(self.last_words())

    def last_words(self) -> str:
        """Its exit code and its last log line."""
        lines = self.log.read_text(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{self.name} ended with exit code {self.process.returncode}: {last} (all of it: {self.log})"

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after STOP_DEADLINE_S."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Daemons:
    """All background processes; leaving the block ends them, the last started first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Daemon] = []

    def __enter__(self) -> Daemons:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            while self._running:
                self._running.pop().stop()

    def check(self) -> None:
        """Raise DemoError if one of them has ended by itself."""
        for daemon in self._running:
            daemon.check()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> Daemon:
        """Start a process in its own session, so that a Ctrl-C reaches only the demo."""
        log = self._folder / f"{name}.log"
        # A signal in the middle of a start would leak the process. The child must not inherit the blocked
        # signals, or it could not be ended.
        with undisturbed() as before, log.open("wb") as output:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
            )
            daemon = Daemon(name, process, log)
            self._running.append(daemon)
        return daemon

    def replaced(self, daemon: Daemon) -> None:
        """Another process runs in place of this one, whose end `check` no longer reports."""
        if daemon.process.poll() is not None:
            self._running.remove(daemon)


@contextlib.contextmanager
def undisturbed() -> Iterator[set[int]]:
    """Block Ctrl-C and the other ending signals until the end of the block; children started there do not
    inherit that.

    For cleanup: a second Ctrl-C would leave behind what the first one was removing. Yields the signals that
    were blocked before.
    """
    before = {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)}
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def free_port(preferred: int = 0) -> int:
    """A loopback port that nothing listens on now: the preferred one if it is free.

    This function gives it to no other process while this one lives and has not requested PORTS_RESERVED_MAX
    more.
    """
    others = secrets.SystemRandom().sample(SERVER_PORTS, PORTS_TRIED)
    for port in [preferred, *others] if preferred else others:
        if port in _reserved and port != preferred:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port in _reserved or _reserve(port):
            return port
    raise DemoError("no free port on the loopback interface")


# The ports that this process has requested, and the sockets that reserve them.
_reserved: dict[int, int] = {}


def _reserve(port: int) -> bool:
    """Whether no other process has reserved the port, whose server may only listen seconds later.

    The reservation is an abstract socket name (unix(7)): it disappears with its process, and it belongs to
    one network namespace, as ports do.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mark:
        try:
            mark.bind(f"\0hawse-demo-port-{port}")
        except OSError:
            return False
        _reserved[port] = mark.detach()
    while len(_reserved) > PORTS_RESERVED_MAX:
        os.close(_reserved.pop(next(iter(_reserved))))
    return True
