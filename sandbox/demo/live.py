"""The demo's kubectl while hubs come and go: an exec that answers, and commands that never rest."""

from __future__ import annotations

import contextlib
import select
import subprocess
import threading
import time
from collections.abc import Iterator

import attrs

from sandbox.demo.cluster import POD, last_line
from sandbox.demo.processes import DemoError
from sandbox.demo.program import COMMAND_DEADLINE_S
from sandbox.demo.scene import Scene

ECHO = "while read line; do echo got $line; done"


@attrs.frozen
class Shell:
    """An open `kubectl exec` that answers each line."""

    process: subprocess.Popen[str]

    def say(self, line: str) -> float:
        """Send a line and wait for its answer; returns how long that took. Raises DemoError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        began = time.monotonic()
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise DemoError(f"the exec was cut: {self._last_error()}") from None
        if not select.select([self.process.stdout], [], [], COMMAND_DEADLINE_S)[0]:
            raise DemoError(f"the exec has not answered in {COMMAND_DEADLINE_S:.0f} s")
        answer = self.process.stdout.readline()
        if answer != f"got {line}\n":
            raise DemoError(f"the exec was cut: {self._last_error()}")
        return time.monotonic() - began

    def leave(self) -> None:
        """End its input, and so the exec; raises DemoError unless it ends with exit code 0."""
        out, err = self._end()
        if self.process.returncode != 0 or out:
            raise DemoError(
                f"the exec ended with exit code {self.process.returncode}: {last_line(err or out)}"
            )

    def _last_error(self) -> str:
        _, err = self._end()
        return last_line(err)

    def _end(self) -> tuple[str, str]:
        """Close its input, and wait for its end; returns stdout and stderr. Raises DemoError."""
        try:
            return self.process.communicate(timeout=COMMAND_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the exec has not ended in {COMMAND_DEADLINE_S:.0f} s") from None


@contextlib.contextmanager
def shell(scene: Scene) -> Iterator[Shell]:
    """An open exec for the block, which has answered once."""
    with scene.kubectl.started("exec", "-i", POD, "--", "sh", "-c", ECHO, stdin=subprocess.PIPE) as process:
        opened = Shell(process)
        opened.say("hello")
        yield opened


@attrs.define(eq=False)
class Load:
    """Commands that run one after the other until `stop`, each of which must succeed."""

    scene: Scene
    runs: int = 0
    failures: list[str] = attrs.Factory(list)
    _stopping: threading.Event = attrs.Factory(threading.Event)
    _threads: list[threading.Thread] = attrs.Factory(list)

    def start(self, *args: str, output: str | None = None) -> None:
        """Run a kubectl command again and again."""
        thread = threading.Thread(target=self._run, args=(args, output))
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Let each command that runs end by itself."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, args: tuple[str, ...], output: str | None) -> None:
        while not self._stopping.is_set():
            self.runs += 1
            try:
                out, _ = self.scene.kubectl.run(*args)
                if output is not None and out != output:
                    self.failures.append(f"kubectl {args[0]} printed {out!r}")
            except DemoError as error:
                self.failures.append(str(error))
