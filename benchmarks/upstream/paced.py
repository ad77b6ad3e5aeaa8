"""Bodies at a requested average rate, from a process behind the upstream's nginx.

    python -m benchmarks.upstream.paced

    GET /paced/RATE/SIZE     SIZE bytes, RATE of them a second

nginx has a pace of its own (`limit_rate`), but waits in whole milliseconds between pieces: 80 MB/s came out
as 97 on one machine and as 78 on another. A thread a download, which is enough for a few of them.
"""

from __future__ import annotations

import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from benchmarks.processes import Daemons

TOP: Final = Path(__file__).parents[2]
# Sent at a time: at 20 MB/s every 3 ms, so that waiting costs next to nothing.
PIECE_BYTES: Final = 64 * 1024
_PIECE: Final = secrets.token_bytes(PIECE_BYTES)


def paced_path(bytes_per_s: int, size: int) -> str:
    """The path of a body of `size` bytes that comes at `bytes_per_s`."""
    return f"/paced/{bytes_per_s}/{size}"


def start_paced(daemons: Daemons) -> int:
    """Start the process; returns its port."""
    argv = [sys.executable, "-m", "benchmarks.upstream.paced"]
    daemon = daemons.start("paced", argv, {"PYTHONPATH": str(TOP)})
    return int(daemon.wait_for("listening ").split()[1])


class Paced(BaseHTTPRequestHandler):
    """One download."""

    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send each piece when it is due; a client that goes away ends it."""
        bytes_per_s, size = (int(part) for part in self.path.rsplit("/", 2)[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        began_s = time.monotonic()
        try:
            for sent in range(0, size, PIECE_BYTES):
                time.sleep(max(0.0, began_s + sent / bytes_per_s - time.monotonic()))
                self.wfile.write(_PIECE[: size - sent])
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line for each request is noise."""


def main() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Paced) as server:
        print("listening", server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
