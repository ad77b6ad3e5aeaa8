"""The entry point of the command line. The group of all commands is in `proxy.cli.group`.

kubectl runs `hawse credential` at every start, so its path comes before the import of click (27 ms; trio
takes 120 ms, SQLAlchemy 210 ms). Commands import their dependencies inside their functions.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import NoReturn

from proxy.cli import INTERRUPTED

# Errors of a full or failing disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# Imports make some 100,000 objects that stay. At Python's threshold of 700 new ones, the collections among
# them take a twentieth of a command's start. Hub and relay set another threshold once they have started
# (proxy.process.lifecycle.startup).
GC_THRESHOLD = 50_000


def main() -> None:
    """Run the command line. Never returns."""
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        # Ctrl-C may arrive at any moment, even during imports.
        sys.exit(INTERRUPTED)


def _run(arguments: list[str]) -> None:
    match arguments:
        case ["credential"]:
            _run_plugin()
        case ["credential", "--server", server]:
            _run_plugin(server)
        case ["credential", "--hub", hub]:
            _run_plugin(hub=hub)
        case ["simulation-worker", data_dir]:
            # For the hub alone (proxy.hub.admin.simulation.process), so it is no command.
            from proxy.hub.admin.simulation.worker import run_worker

            run_worker(data_dir)
            return
    gc.set_threshold(GC_THRESHOLD)
    from proxy.cli.group import build_group

    try:
        build_group()(prog_name="hawse")
    except OSError as error:
        # Any command may fail this way while printing, so it is handled here once.
        if error.errno not in FULL:
            raise
        from proxy.cli.errors import CommandError, drop_output
        from proxy.cli.logs import in_json, show_failure

        drop_output()
        where = f" {error.filename}" if error.filename is not None else ""
        message = f"cannot write{where}: {error.strerror}"
        if not in_json():
            sys.exit(f"hawse: {message}")
        show_failure(CommandError(message))
        sys.exit(1)


def _run_plugin(server: str = "", hub: str = "") -> NoReturn:
    """Run kubectl's plugin, which flushes its output, and end the process at once.

    kubectl waits for the process to end. Of 60 ms of CPU, the interpreter's teardown takes 9, and the garbage
    collector 2, while memory is all that there is to clean up.
    """
    gc.disable()
    from proxy.agent.token.credential import run_plugin

    os._exit(run_plugin(server, hub))
