"""The hub's part of the console: `python -m benchmarks.console [--tabs 20] [--seconds 60]`.

A hub with 100 clusters and 1,000 agents serves the first page to a browser that has nothing cached, and then
open tabs of it. A tab has one stream of changes, and reads the page again every 300 s, as console.js does.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlencode

import attrs

from benchmarks.accounting import cpu_s
from benchmarks.processes import Daemons, free_port, prepare_process, program
from benchmarks.systems.hawse import Installation
from proxy.cli.admin.api.client import Reach

CLUSTERS, AGENTS, TEAMS = 100, 1000, 10
VIEWS = 50
# How often the overview is read again without a change (its `data-every`).
READ_AGAIN_S = 300.0
DEADLINE_S = 30.0
# What a browser sends with each request of a page.
BROWSER = {"Accept-Encoding": "gzip, deflate, br", "Sec-Fetch-Site": "same-origin"}


@attrs.frozen
class Console:
    """A console, and the cookie of a person."""

    port: int
    cookie: str

    def get(self, path: str) -> tuple[bytes, float]:
        """Return an answer as it came, and the seconds until its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        began = time.perf_counter()
        connection.request("GET", path, headers={**BROWSER, "Cookie": self.cookie})
        answer = connection.getresponse()
        body = answer.read()
        took_s = time.perf_counter() - began
        assert answer.status == 200, (path, answer.status, body[:200])
        head = sum(len(name) + len(value) + 4 for name, value in answer.getheaders())
        connection.close()
        return b"\0" * head + body, took_s

    def stream(self, stack: ExitStack) -> http.client.HTTPResponse:
        """Open a stream of changes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        connection.request("GET", "/v1/stream", headers={**BROWSER, "Cookie": self.cookie})
        assert connection.sock is not None
        stack.callback(hang_up, connection.sock)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer


def hang_up(sock: socket.socket) -> None:
    """End a connection that another thread reads from, at once: a close would wait for its next line."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def sign_in(installation: Installation, port: int) -> Console:
    """Sign in as a browser does."""
    code = json.loads(installation.run("admin", "console", "open", "--json"))["code"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    form = {"Content-Type": "application/x-www-form-urlencoded", **BROWSER}
    connection.request("POST", "/signin", urlencode({"code": code}), form)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 303, answer.status
    return Console(port, (answer.getheader("set-cookie") or "").partition(";")[0])


def fill(installation: Installation) -> None:
    """Enrol the fleet."""
    administration = Reach(None, installation.folder / "hub").client()
    for number in range(TEAMS):
        administration.post("teams", body={"name": f"team-{number}"})
    for number in range(CLUSTERS):
        body = {"name": f"cluster-{number}", "teams": [f"team-{number % TEAMS}"], "labels": {"env": "prod"}}
        administration.post("clusters", body=body)
    for number in range(AGENTS):
        teams = [f"team-{number % TEAMS}"]
        administration.post("agents", body={"name": f"agent-{number}", "owner": "bench", "teams": teams})


def measure_first_page(console: Console, hub: int) -> None:
    """Print time and weight of the first page and of all that it loads."""
    page, _ = console.get("/")
    html = page.lstrip(b"\0")
    text = gzip.decompress(html) if html.startswith(b"\x1f\x8b") else html
    assets = sorted(set(re.findall(r"/static/[\w.]+", text.decode())))
    weights = {"/": len(page), **{asset: len(console.get(asset)[0]) for asset in assets}}
    before, times = cpu_s(hub), []
    for _ in range(VIEWS):
        times.append(console.get("/")[1])
        time.sleep(0.02)
    spent = (cpu_s(hub) - before) / VIEWS
    print(
        f"first page: median {statistics.median(times) * 1e3:.1f} ms, {spent * 1e3:.1f} ms of the hub's CPU"
    )
    print(f"its weight: {sum(weights.values()) / 1000:.1f} KB: {weights}; the page unpacked: {len(text)}")


def measure_tabs(console: Console, hub: int, tabs: int, seconds: float) -> None:
    """Print the hub's CPU with and without open tabs."""
    idle = share_of(hub, seconds)
    ended = threading.Event()
    with ExitStack() as stack:
        streams = [console.stream(stack) for _ in range(tabs)]
        threads = [threading.Thread(target=read_again, args=(console, ended, n / tabs)) for n in range(tabs)]
        threads += [threading.Thread(target=drain, args=(stream,), daemon=True) for stream in streams]
        for thread in threads:
            thread.start()
        stack.callback(ended.set)
        time.sleep(2)
        loaded = share_of(hub, seconds)
    print(
        f"an idle hub: {idle:.2%} of a core; with {tabs} tabs: {loaded:.2%}, so {loaded - idle:.2%} for them"
    )


def read_again(console: Console, ended: threading.Event, share: float) -> None:
    """Read the page again every READ_AGAIN_S, spread over the tabs."""
    if ended.wait(READ_AGAIN_S * share):
        return
    while True:
        console.get("/")
        if ended.wait(READ_AGAIN_S):
            return


def drain(stream: http.client.HTTPResponse) -> None:
    """Read what comes until the connection is closed."""
    try:
        while stream.readline():
            pass
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        pass  # closed by the end of the measurement


def share_of(hub: int, seconds: float) -> float:
    """The hub's CPU over a time, as a share of a core."""
    before, began = cpu_s(hub), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(hub) - before) / (time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all measurements; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console", description=__doc__)
    parser.add_argument("--tabs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args(arguments)
    prepare_process()
    with tempfile.TemporaryDirectory() as folder, Daemons(Path(folder)) as daemons:
        port, console_port = free_port(), free_port()
        settings = f'[console]\nlisten = "127.0.0.1:{console_port}"\n'
        hawse = program("hawse", "hawse", "make setup")
        installation = Installation(Path(folder), daemons, hawse, port, port, {}, settings)
        hub = installation.start_hub().process.pid
        fill(installation)
        console = sign_in(installation, console_port)
        measure_first_page(console, hub)
        measure_tabs(console, hub, given.tabs, given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
