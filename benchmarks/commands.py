"""Commands run by `kubectl exec`, as a process: `python -m benchmarks.commands`.

The first line on stdin is the job, JSON: endpoint, path, count, and another endpoint as `beside`, or null. A
command is a TLS connection without a session to resume, an upgrade to v5.channel.k8s.io, the command's
status, and the server's end of the WebSocket. It prints `ready` after a warm-up. After each line `go` it runs
`count` commands one after the other, each behind one at `beside`, and answers with the ns that each took, as
`[[at beside, at endpoint], …]`; without `beside` that is null.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from typing import Any

from benchmarks.keystrokes import Failed, Terminal

WARM_UP = 3


class Runner:
    """Runs commands at one endpoint."""

    def __init__(self, endpoint: dict[str, Any], path: str) -> None:
        self._endpoint = endpoint
        self._path = path
        self._context = ssl.create_default_context(cafile=endpoint["ca"])

    def run(self) -> int:
        """Run a command; returns the ns from its connection to the end of its WebSocket."""
        began_ns = time.perf_counter_ns()
        terminal = Terminal(self._endpoint, self._path, self._context)
        try:
            terminal.end()
            return time.perf_counter_ns() - began_ns
        finally:
            terminal.close()


def main() -> None:
    job = json.loads(sys.stdin.readline())
    endpoint = Runner(job["endpoint"], job["path"])
    beside = Runner(job["beside"], job["path"]) if job["beside"] else None
    try:
        for _ in range(WARM_UP):
            endpoint.run()
        print("ready", flush=True)
        while sys.stdin.readline():
            took_ns = [(beside and beside.run(), endpoint.run()) for _ in range(job["count"])]
            print(json.dumps(took_ns), flush=True)
    except (Failed, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
