"""A person at a terminal: `kubectl exec -it` through the whole chain, on a real pty."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import time

import pytest

from tests.system.world import POD, SPDY, WAYS, World

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(60)]

DEADLINE_S = 20.0


def size_becomes(size: str) -> str:
    """Shell words that wait until the pod's terminal has this size."""
    return f'until [ "$(stty size)" = "{size}" ]; do sleep 0.05; done'


class Terminal:
    """kubectl on a pty of 100 columns and 40 rows."""

    def __init__(self, world: World, way: str, *args: str, spdy: bool) -> None:
        self.ours, theirs = os.openpty()
        self.resize(40, 100)
        self.seen = b""
        environment = {**os.environ, **world.agent, "TERM": "xterm", **(SPDY if spdy else {})}
        self.process = subprocess.Popen(
            world.command(way, *args),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # the pty's signals are for kubectl
        )
        os.close(theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def expect(self, text: bytes) -> None:
        """Read on until the text has come; what is behind it stays for the next look."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come within {DEADLINE_S:.0f} s: {self.seen!r}"
            try:
                self.seen += os.read(self.ours, 65536)
            except OSError as error:
                raise AssertionError(f"the terminal closed before {text!r}: {self.seen!r}") from error
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.mark.parametrize("spdy", [False, True], ids=["ws", "spdy"])
@pytest.mark.parametrize("way", WAYS)
def test_a_shell_at_a_terminal(world: World, way: str, spdy: bool) -> None:
    # The size comes on a stream of its own, so a command may begin before it, at a real API server too.
    # `exec`, because dash between vfork and wait forgets a Ctrl-C (one in ten here, without Hawse as well).
    script = f"{size_becomes('40 100')}; echo ready; read line; echo got $line; exec sleep 60"
    terminal = Terminal(world, way, "exec", "-it", POD, "--", "sh", "-c", script, spdy=spdy)
    try:
        terminal.expect(b"ready")
        # The pty's echo comes back through the pod, as a keystroke's does.
        terminal.type(b"hello\r")
        terminal.expect(b"hello")
        terminal.expect(b"got hello")
        terminal.type(b"\x03")
        assert terminal.process.wait(DEADLINE_S) == 130
    finally:
        terminal.close()


def test_a_resized_window_is_known_in_the_pod(world: World) -> None:
    script = f"{size_becomes('40 100')}; echo ready; {size_becomes('50 120')}; echo resized"
    terminal = Terminal(world, "tunnel", "exec", "-it", POD, "--", "sh", "-c", script, spdy=False)
    try:
        terminal.expect(b"ready")
        terminal.resize(50, 120)
        terminal.expect(b"resized")
        assert terminal.process.wait(DEADLINE_S) == 0
    finally:
        terminal.close()
