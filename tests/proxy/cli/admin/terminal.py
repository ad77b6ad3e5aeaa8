"""Commands that print on a terminal."""

from __future__ import annotations

import os
import sys

import trio

from tests.proxy.cli.admin.conftest import Hub


async def at_a_terminal(hub: Hub, *args: str) -> tuple[int, bytes, str]:
    """Run `hawse admin ARGS` with a terminal as stdout. Returns status, terminal output and stderr."""
    master, slave = os.openpty()
    try:
        command = [sys.executable, "-m", "hawse", "admin", *args]
        env = {**os.environ, "HAWSE_HUB_DATA_DIR": str(hub.data.path)}
        done = await trio.run_process(command, stdout=slave, capture_stderr=True, check=False, env=env)
        os.set_blocking(master, False)
        try:
            shown = os.read(master, 64 * 1024)
        except BlockingIOError:
            shown = b""
    finally:
        os.close(slave)
        os.close(master)
    return done.returncode, shown, done.stderr.decode()
