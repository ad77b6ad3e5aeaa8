"""What a followed console costs agents: `python -m benchmarks.console.followed [ROUNDS] [SECONDS]`.

An agent sends small requests one after the other, some 1,000 a second, each of which is an event of the
trail. In every other round a browser follows the trail in the console. Prints the median latency of both,
their ratio over the pairs of neighbouring rounds, and the hub's CPU time a request.
"""

from __future__ import annotations

import http.client
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.accounting import cpu_s
from benchmarks.console.__main__ import BROWSER, DEADLINE_S, Console, drain, hang_up, sign_in
from benchmarks.load import Job, Load
from benchmarks.processes import free_port, prepare_process
from benchmarks.systems.hawse import Enrolled, enrolled
from benchmarks.upstream.apiserver import POD_PATH, open_apiserver

ROUNDS, SECONDS = 8, 4.0


@contextmanager
def followed(console: Console) -> Iterator[None]:
    """A browser that follows the trail."""
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=DEADLINE_S)
    connection.request("GET", "/audit/stream", headers={**BROWSER, "Cookie": console.cookie})
    sock = connection.sock
    assert sock is not None
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    reading = threading.Thread(target=drain, args=(answer,), daemon=True)
    reading.start()
    yield
    hang_up(sock)
    reading.join()
    connection.close()


def measure(found: Enrolled, seconds: float) -> tuple[float, float, float]:
    """Return the median latency in ms, the requests a second, and the hub's CPU in µs a request."""
    job = Job("requests", found.system.fresh_endpoint(), POD_PATH, seconds=seconds)
    with Load(job) as load:
        before = cpu_s(found.system.processes["hub"])
        load.go()
        report = load.report()
        spent = cpu_s(found.system.processes["hub"]) - before
    return (
        statistics.median(report.latencies_ns) / 1e6,
        report.requests / report.wall_s,
        spent / report.requests * 1e6,
    )


def main() -> int:
    """Measure both in turn; returns the exit code."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    prepare_process()
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        (folder / "hawse").mkdir()
        settings = {"HAWSE_HUB_CONSOLE_LISTEN": f"127.0.0.1:{port}"}
        with (
            open_apiserver(folder / "upstream") as upstream,
            enrolled(folder / "hawse", upstream, "hawse", settings) as found,
        ):
            console = sign_in(found.installation, port)
            pairs = []
            for _ in range(rounds):
                without = measure(found, seconds)
                with followed(console):
                    beside = measure(found, seconds)
                pairs.append((without, beside))
    ratios = [beside[0] / without[0] for without, beside in pairs]
    for title, which in (("without a follower", 0), ("with a follower", 1)):
        p50, rate, cpu = (statistics.median(pair[which][n] for pair in pairs) for n in range(3))
        print(
            f"{title}: p50 {p50:.3f} ms at {rate:,.0f} requests a second, {cpu:.0f} µs of the hub's CPU each"
        )
    print(f"p50 with to without, median of {rounds} pairs: {statistics.median(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
