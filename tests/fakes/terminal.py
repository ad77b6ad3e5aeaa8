"""A person at a terminal: a program under a pseudo-terminal, typed at and read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence

import attrs

DEADLINE_S = 40.0


@attrs.define
class Terminal:
    """A kubectl under a pseudo-terminal, as a person has it."""

    process: subprocess.Popen[bytes]
    master: int
    output: bytes = b""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_all(self) -> bytes:
        """Read until the program closes the terminal."""
        while select.select([self.master], [], [], DEADLINE_S)[0]:
            try:
                self.output += os.read(self.master, 65536)
            except OSError:
                return self.output
        raise AssertionError(f"it did not end: {self.output!r}")

    def read_until(self, pattern: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.output):
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.output!r}"
            try:
                self.output += os.read(self.master, 65536)
            except OSError:
                raise AssertionError(f"it ended without {pattern!r}: {self.output!r}") from None


@contextlib.contextmanager
def on_terminal(
    argv: Sequence[str], environment: Mapping[str, str], *, columns: int = 100
) -> Iterator[Terminal]:
    """Run a program on a terminal of 30 lines until the block ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        # setsid with -c makes the terminal the program's own, so that it hears of new sizes.
        ["setsid", "-c", "-w", *argv],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
