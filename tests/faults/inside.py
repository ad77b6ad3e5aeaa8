"""`hawse` with a window into it, and with the clock of another machine if wanted.

    python -m tests.faults.inside hub --config …

HAWSE_FAULTS_COUNTS names a file: at each SIGUSR1 the process writes there what lives in it. What the code is
and does is not changed by that; the counts are by class, so that whatever grows has a name.
HAWSE_FAULTS_CLOCK names another file, with the seconds by which its wall clock is ahead; at each SIGUSR2 it
is read anew and removed, so that a clock can be set under a process that runs.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import trio

# Of these packages: what is made for a request, a stream, a connection or a session.
COUNTED = frozenset(
    {"tunnel", "proxy", "audit", "auth", "trio", "trio_websocket", "wsproto", "h11", "ssl", "socket"}
)


def counts() -> dict[str, object]:
    """What lives in this process now."""
    # `get_objects` omits frozen objects, such as the session of a relay that connected before the freeze.
    gc.unfreeze()
    gc.collect()
    objects: Counter[str] = Counter()
    held_bytes = 0
    for thing in gc.get_objects():
        kind = type(thing)
        # A few C types have a descriptor there.
        package = str(kind.__module__).partition(".")[0]
        if package in COUNTED:
            name = f"{kind.__module__}.{kind.__qualname__}"
            objects[name] += 1
            # Of the sessions' accounts, which are parts of the process's.
            if name == "tunnel.protocol.memory.Memory" and thing.parent is not None:
                held_bytes += thing.used_bytes
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "files": len(os.listdir("/proc/self/fd")) - 1,
        "held_bytes": held_bytes,
        "objects": dict(objects),
    }


def open_window(path: Path) -> None:
    """Write the counts to the file at each SIGUSR1, whole or not at all."""

    def tell(number: int, frame: FrameType | None) -> None:
        written = path.with_suffix(".new")
        written.write_text(json.dumps(counts()))
        written.rename(path)

    signal.signal(signal.SIGUSR1, tell)


def set_clock(path: Path) -> None:
    """Give the process a wall clock that is wrong by what the file says, now and at each SIGUSR2."""
    right, ahead_s = time.time, 0.0

    def read(*_: object) -> None:
        nonlocal ahead_s
        if path.exists():
            ahead_s = float(path.read_text())
            path.unlink()

    read()
    time.time = lambda: right() + ahead_s
    signal.signal(signal.SIGUSR2, read)


def main() -> None:
    """Run hawse."""
    open_window(Path(os.environ["HAWSE_FAULTS_COUNTS"]))
    set_clock(Path(os.environ["HAWSE_FAULTS_CLOCK"]))
    # After the clock was set: some modules take the function itself.
    from proxy.cli.main import main as hawse

    hawse()


if __name__ == "__main__":
    main()
