"""The demo's commands: run to their end, or kept open while other steps run."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping

import attrs

from sandbox.demo.cluster import last_line
from sandbox.demo.processes import DemoError, undisturbed

# A command that takes longer than this hangs: each takes under a second on an idle machine.
COMMAND_DEADLINE_S = 60.0


@attrs.frozen
class Program:
    """A program with the first arguments and the environment of all its runs."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    @contextlib.contextmanager
    def started(
        self, *args: str, stdin: int = subprocess.DEVNULL, stdout: int | None = subprocess.PIPE
    ) -> Iterator[subprocess.Popen[str]]:
        """Start the program with its outputs piped; leaving the block ends it and its child processes."""
        process = None
        try:
            # A signal waits until `process` is set. The session puts the program's children into one group.
            with undisturbed() as before:
                process = subprocess.Popen(
                    [*self.argv, *args],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **self.environment},
                    start_new_session=True,
                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
                )
            yield process
        finally:
            if process is not None:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def run(self, *args: str, stdin: str | None = None, exit_code: int = 0) -> tuple[str, str]:
        """Run the program to its end and return stdout, stderr; raises DemoError on another exit code."""
        with self.started(*args, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE) as process:
            return self._finish(process, args, stdin, exit_code)

    def print(self, *args: str) -> None:
        """Run the program with the demo's own stdout, so that it can fit a table to the terminal."""
        with self.started(*args, stdout=None) as process:
            self._finish(process, args, None, 0)

    def _finish(
        self, process: subprocess.Popen[str], args: tuple[str, ...], stdin: str | None, exit_code: int
    ) -> tuple[str, str]:
        line = " ".join((self.argv[0], *args))
        try:
            out, err = process.communicate(stdin, timeout=COMMAND_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{line} has not ended in {COMMAND_DEADLINE_S:.0f} s") from None
        if process.returncode != exit_code:
            raise DemoError(
                f"{line} ended with exit code {process.returncode} instead of {exit_code}: "
                f"{last_line(err or out or '')}"
            )
        return out, err


def first_line(process: subprocess.Popen[str]) -> str:
    """The next line of its output; raises DemoError if it ends without one, or prints none in time."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], COMMAND_DEADLINE_S)[0]:
        raise DemoError(f"no output in {COMMAND_DEADLINE_S:.0f} s")
    line = process.stdout.readline()
    if not line:
        _, err = process.communicate(timeout=COMMAND_DEADLINE_S)
        raise DemoError(f"it ended without output: {last_line(err)}")
    return line
