"""A helper process that takes commands as lines on its stdin, and answers with lines on its stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.workload import RunFailed

_ROOT = Path(__file__).parent.parent


class Talk:
    """A module of this package as a process; leaving the block ends it.

    Raises RunFailed with the process's last words when it has ended by itself.
    """

    def __init__(self, module: str, *args: str) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: str) -> None:
        """Send a line, and wait for nothing."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def hear(self) -> str:
        """The next line of its output, without its end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        return line.rstrip("\n")

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        self.tell(line)
        return self.hear()

    def _failure(self) -> RunFailed:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().strip().splitlines()
        return RunFailed(f"{self._module}: {lines[-1] if lines else 'it ended without a message'}")
