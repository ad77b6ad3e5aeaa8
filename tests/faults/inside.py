"""`hawse` with a window into it, and with the clock of another machine if wanted.

    python -m tests.faults.inside hub --config …

HAWSE_FAULTS_COUNTS names a file: at each SIGUSR1 the process writes there what lives in it. What the code is
and does is not changed by that; the counts are by class, so that whatever grows has a name.
HAWSE_FAULTS_CLOCK_S is how far its wall clock is ahead.
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
    gc.collect()
    objects: Counter[str] = Counter()
    held_bytes = 0
    for thing in gc.get_objects():
        kind = type(thing)
        package = kind.__module__.partition(".")[0]
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


def set_clock(ahead_s: float) -> None:
    """Give the process a wall clock that is wrong."""
    right = time.time
    time.time = lambda: right() + ahead_s


def main() -> None:
    """Run hawse."""
    open_window(Path(os.environ["HAWSE_FAULTS_COUNTS"]))
    ahead_s = float(os.environ.get("HAWSE_FAULTS_CLOCK_S", "0"))
    if ahead_s:
        set_clock(ahead_s)
    # After the clock was set: some modules take the function itself.
    from proxy.cli.main import main as hawse

    hawse()


if __name__ == "__main__":
    main()
