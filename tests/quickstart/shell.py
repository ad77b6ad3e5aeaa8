"""One bash for all blocks of a page, which share variables, folders and background jobs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import attrs

from sandbox.demo.__main__ import prepare_environment

_END = "--- end of the block"
_EXIT = "--- end of the shell"


class ShellError(Exception):
    """A command failed; the message has the block's output."""


@attrs.define(eq=False)
class Shell:
    """A bash that reads blocks from files, so that no command can read the script from standard input."""

    _folder: Path
    _commands: IO[str]
    _output: IO[str]
    _count: int = 0

    def run(self, lines: str, *, may_fail: bool = False) -> str:
        """Run lines, and return what they print on both outputs.

        Raises ShellError at the first command that fails, and ends the shell; `may_fail` is for a single
        command that is expected to.
        """
        self._count += 1
        script = self._folder / f"block-{self._count}.sh"
        script.write_text(lines)
        after = "|| true" if may_fail else ""
        self._commands.write(f". {script} < /dev/null {after}\necho '{_END}'\n")
        self._commands.flush()
        printed: list[str] = []
        for line in self._output:
            if line.startswith(_END):
                return "".join(printed)
            # Not the end of the output, which a job in the background has open too.
            if line.startswith(_EXIT):
                break
            printed.append(line)
        raise ShellError(f"{lines}\nprinted\n{''.join(printed)}")


@contextmanager
def opened(folder: Path, environment: Mapping[str, str]) -> Iterator[Shell]:
    """Start a bash in a session of its own, and end that session.

    `environment` is added to that of the demo, which has no settings of this machine's Hawse.
    """
    process = subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"],
        cwd=folder,
        # BASH_ENV names a file that each bash of a script reads first: some CI services set it.
        env={**prepare_environment(dict(os.environ)), "BASH_ENV": "", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"trap \"echo '{_EXIT}'\" EXIT\n")
        yield Shell(folder, process.stdin, process.stdout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        process.wait()
