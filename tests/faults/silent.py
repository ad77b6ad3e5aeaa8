"""What says nothing for a long time, and must be there when it does again."""

from __future__ import annotations

import re
import socket
import subprocess
from types import TracebackType
from typing import IO, Self

from tests.faults.world import CLUSTER, FaultWorld
from tests.system.world import POD

END_WITHIN_S = 30.0
_FORWARDS = re.compile(rb"127\.0\.0\.1:(\d+)")


class SilentExec:
    """An exec that waits for its next line."""

    def __init__(self, world: FaultWorld, *, spdy: bool = False) -> None:
        self._world = world
        self._spdy = spdy

    def __enter__(self) -> Self:
        self._process = self._world.popen(CLUSTER, "exec", "-i", POD, "--", "cat", spdy=self._spdy)
        self.says_again()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        out, said = self._process.communicate(timeout=END_WITHIN_S)
        if error is None:
            assert (self._process.returncode, out, said) == (0, b"", b"")

    def says_again(self) -> None:
        """Send a line, and have it back."""
        stdin, stdout = _pipes(self._process)
        stdin.write(b"still here\n")
        stdin.flush()
        assert stdout.readline() == b"still here\n", self._process.poll()


class SilentForward:
    """A connection through `port-forward` to something that sends back what it gets."""

    def __init__(self, world: FaultWorld, echo_port: int) -> None:
        self._world = world
        self._echo_port = echo_port

    def __enter__(self) -> Self:
        world = self._world
        args = ("port-forward", f"pod/{POD}", f":{self._echo_port}", "--address=127.0.0.1")
        self._process = world.popen(CLUSTER, *args, stdin=subprocess.DEVNULL)
        assert self._process.stdout is not None
        found = _FORWARDS.search(self._process.stdout.readline())
        assert found is not None, self._process.communicate(timeout=END_WITHIN_S)
        self._connection = socket.create_connection(("127.0.0.1", int(found[1])), END_WITHIN_S)
        self.says_again()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.kill()
        self._process.communicate(timeout=END_WITHIN_S)

    def says_again(self) -> None:
        """Send a line, and have it back."""
        self._connection.sendall(b"still here\n")
        assert self._connection.makefile("rb").readline() == b"still here\n", self._process.poll()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
