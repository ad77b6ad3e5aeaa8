"""Finding the programs that systems are made of, and starting them.

Daemons and free ports are the sandbox demo's: output in a file, awaited by its lines, ended by pid.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.system import Missing
from sandbox.demo.__main__ import end_once, prepare_environment
from sandbox.demo.processes import ENDING_SIGNALS, Daemon, Daemons, free_port

__all__ = ["Daemon", "Daemons", "free_port", "prepare_process", "program", "version_of", "wait_for_port"]

PORT_DEADLINE_S = 15.0
POLL_S = 0.02


def prepare_process() -> None:
    """Drop the user's settings and proxies from the environment, and end at a signal as at Ctrl-C.

    Child processes get neither, find the programs of this checkout first, and are stopped in the end.
    """
    environment = prepare_environment(dict(os.environ))
    os.environ.clear()
    os.environ.update(environment)
    for number in ENDING_SIGNALS:
        signal.signal(number, end_once)


def program(name: str, system: str, install: str) -> str:
    """The path of a program; raises Missing with how to install it.

    Looks beside the running Python first (a virtual environment that is not on PATH), then on PATH, then
    where Debian keeps daemons, which is on root's PATH alone.
    """
    beside = str(Path(sys.executable).parent)
    for path in (beside, None, "/usr/sbin:/sbin"):
        if found := shutil.which(name, path=path):
            return found
    raise Missing(f"{system}: {name} is not installed: {install}")


def version_of(*argv: str) -> str:
    """What a program says of its version: the first line, wherever it prints it."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "unknown")


def wait_for_port(port: int, daemon: Daemon) -> None:
    """Return once the loopback port accepts connections; raises DemoError when the daemon ends first."""
    deadline = time.monotonic() + PORT_DEADLINE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            daemon.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{daemon.name} does not listen on {port}: see {daemon.log}") from None
            time.sleep(POLL_S)
        else:
            return
