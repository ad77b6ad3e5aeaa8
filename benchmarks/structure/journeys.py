"""The three journeys of bytes through a hub and a relay: which Python functions each of them calls.

    python -m benchmarks.structure.journeys [--trace]

The hub and the relay run in one event loop with their client and their API server. Their command lines
start them, so this file names no module of theirs. Each step waits until every task is blocked, so the calls
between two steps are one journey. A profiling hook records the calls of the product's own functions; those of
trio and of the standard library are left out. Prints JSON; `--trace` lists every call, in order.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from unittest.mock import patch
from urllib.parse import urlencode

import attrs
import trio
import trio.testing
import yaml

import hawse.__main__ as program
from benchmarks.nginx import issue_certificate
from benchmarks.processes import free_port, prepare_process
from benchmarks.structure.sources import PRODUCT, ROOT
from benchmarks.system import Endpoint
from benchmarks.systems.hawse import kubeconfig
from benchmarks.workload import RunFailed

# The first call into this folder is where the tunnel hands a stream to the relay.
RELAY = "proxy/relay/"
REQUEST, ANSWER, EVENT = "a GET's head to the relay", "a small answer back", "a watch event of 100 bytes back"
CLUSTER = "bench"
TARGET = "/api/v1/namespaces/work/pods"
BODY = b'{"kind":"Pod","apiVersion":"v1"}'
WATCH_EVENT = (
    b'{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"4711"}}}\n'
)
# The first requests fill the caches. Timers and the audit trail's thread add calls to some rounds, and an ACK
# that was sent early saves some, so the most frequent sequence of the rounds counts.
WARM_UP = 3
ROUNDS = 9
# A journey has ended when no task has run for this long: loopback delivers bytes at once.
QUIET_S = 0.02
DEADLINE_S = 60.0
POLL_S = 0.05
RECEIVE_BYTES = 65536


@attrs.frozen
class Call:
    """One call of a function of the product."""

    file: str
    function: str


@attrs.frozen
class Journey:
    """The calls between two ends, in order."""

    calls: tuple[Call, ...]

    def figures(self) -> dict[str, int]:
        """How many calls, of how many functions in how many files; a move is a call into another file."""
        files = [call.file for call in self.calls]
        return {
            "calls": len(self.calls),
            "functions": len(set(self.calls)),
            "files": len(set(files)),
            "moves": sum(before != after for before, after in pairwise(files)),
        }


class Recorder:
    """A profiling hook that keeps the calls of the product's functions."""

    def __init__(self) -> None:
        self._calls: list[CodeType] = []
        # None for code that is not the product's.
        self._known: dict[CodeType, Call | None] = {}
        self.client: object = None
        """The address of the client's socket."""
        self._sent_at = 0

    def __call__(self, frame: FrameType, event: str, function: object) -> None:
        if event == "call":
            self._calls.append(frame.f_code)
        elif event == "c_call" and getattr(function, "__name__", "") == "send":
            sender = getattr(function, "__self__", None)
            # A hook that raises is dropped by Python, and a broken connection has no peer.
            with suppress(OSError):
                if isinstance(sender, socket.socket) and sender.getpeername() == self.client:
                    self._sent_at = len(self._calls)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Record within the block, in this thread."""
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)

    def take(self) -> tuple[list[CodeType], int]:
        """What was called since the last time, and how much of it before the last send to the client.

        The hook goes on recording meanwhile, so what is taken is a list of its own.
        """
        taken = self._calls, self._sent_at
        self._calls, self._sent_at = [], 0
        return taken

    def until_relay(self) -> Journey:
        """The calls up to the first one of the relay's own folder; raises ValueError without one."""
        codes, _ = self.take()
        calls = self._ours(codes)
        for number, call in enumerate(calls):
            if call.file.startswith(RELAY):
                return Journey(calls[:number])
        raise ValueError("the request did not reach the relay")

    def until_client(self) -> Journey:
        """The calls up to the last send to the client's socket; raises ValueError without one."""
        codes, sent_at = self.take()
        if not sent_at:
            raise ValueError("nothing was sent to the client")
        return Journey(self._ours(codes[:sent_at]))

    def _ours(self, codes: list[CodeType]) -> tuple[Call, ...]:
        return tuple(call for code in codes if (call := self._call(code)) is not None)

    def _call(self, code: CodeType) -> Call | None:
        if code not in self._known:
            path = Path(code.co_filename)
            file = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            ours = file.partition("/")[0] in PRODUCT
            self._known[code] = Call(file, code.co_qualname) if ours else None
        return self._known[code]


def service(*argv: str) -> Callable[[], Awaitable[object]]:
    """The function that a command gives to `trio.run`, with its arguments; it is not run."""
    found: list[Callable[[], Awaitable[object]]] = []

    def keep(function: Callable[..., Awaitable[object]], *arguments: object) -> int:
        found.append(partial(function, *arguments))
        return 0

    with patch.object(trio, "run", keep):
        hawse(*argv)
    return found[0]


def hawse(*argv: str) -> str:
    """Run a command in this process; returns what it printed. Raises SystemExit with its message."""
    with patch.object(sys, "argv", ["hawse", *argv]), redirect_stdout(io.StringIO()) as printed:
        try:
            program.main()
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()


async def receive_until(stream: trio.abc.Stream, end: bytes) -> bytes:
    """What comes up to `end`; raises EOFError when the peer ends before."""
    received = b""
    while end not in received:
        data = bytes(await stream.receive_some(RECEIVE_BYTES))
        if not data:
            raise EOFError(f"ended after {received!r}")
        received += data
    return received


def answer(body: bytes) -> bytes:
    """An answer of an API server to a GET."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-cache, private\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class ApiServer:
    """Answers the relay's own requests at once, and hands over the connection of each other request."""

    def __init__(self) -> None:
        self._waiting, self._requests = trio.open_memory_channel[trio.abc.Stream](1)

    async def serve(self, stream: trio.abc.Stream) -> None:
        while True:
            try:
                head = await receive_until(stream, b"\r\n\r\n")
            except (EOFError, trio.BrokenResourceError):
                # The relay closes its connections without TLS's close_notify.
                return
            if TARGET.encode() in head:
                await self._waiting.send(stream)
            else:
                await stream.send_all(answer(b'{"metadata":{"uid":"4711"}}'))

    async def next_request(self) -> trio.abc.Stream:
        """The connection of the next request, which waits for its answer."""
        return await self._requests.receive()


@attrs.frozen
class Setting:
    """A hub and a relay that run, and a client's connection to the hub."""

    client: trio.abc.Stream
    authorization: str
    apiserver: ApiServer
    recorder: Recorder

    async def _record(self, to: trio.abc.Stream, data: bytes) -> None:
        """Send, and record what is called until every task is blocked again."""
        await trio.testing.wait_all_tasks_blocked(QUIET_S)
        self.recorder.take()
        await to.send_all(data)
        await trio.testing.wait_all_tasks_blocked(QUIET_S)

    def _head(self, target: str) -> bytes:
        return (
            f"GET /clusters/{CLUSTER}{target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "User-Agent: kubectl/v1.37.0 (linux/amd64) kubernetes/8f1cd3a\r\n"
            f"Accept: application/json\r\nAuthorization: {self.authorization}\r\n\r\n"
        ).encode()

    async def get(self) -> tuple[Journey, Journey]:
        """A GET's head to the relay, and its answer back to the client."""
        await self._record(self.client, self._head(TARGET))
        request = self.recorder.until_relay()
        upstream = await self.apiserver.next_request()
        await self._record(upstream, answer(BODY))
        back = self.recorder.until_client()
        await receive_until(self.client, BODY)
        return request, back

    async def watch(self, events: int) -> list[Journey]:
        """So many events of one watch, each from the API server to the client."""
        await self.client.send_all(self._head(f"{TARGET}?watch=true"))
        upstream = await self.apiserver.next_request()
        await upstream.send_all(answer(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        await receive_until(self.client, b"\r\n\r\n")
        journeys = []
        for _ in range(events):
            await self._record(upstream, b"%x\r\n%b\r\n" % (len(WATCH_EVENT), WATCH_EVENT))
            journeys.append(self.recorder.until_client())
            await receive_until(self.client, WATCH_EVENT)
        return journeys


def write_hub_settings(folder: Path) -> tuple[Path, int]:
    """The hub's configuration and its port."""
    port, file = free_port(), folder / "hub.toml"
    file.write_text(
        f'org = "acme"\npublic_url = "https://127.0.0.1:{port}"\nlisten = "127.0.0.1:{port}"\n'
        f'data_dir = "{folder / "hub"}"\n[admin]\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    return file, port


async def admin(*argv: str) -> str:
    """Run `hawse admin …` in a thread, since the hub that it talks to runs in this one."""
    return await trio.to_thread.run_sync(partial(hawse, "admin", *argv))


async def enrol(folder: Path) -> str:
    """Add a team, a cluster and an agent; returns the agent's API key."""
    await admin("team", "add", "platform")
    await admin("cluster", "add", CLUSTER, "--team", "platform", "--output-dir", str(folder / "relay"))
    added = await admin("agent", "add", "probe", "--team", "platform", "--owner", "bench", "--json")
    key: str = json.loads(added)["api_key"]
    return key


async def wait_for_tunnel() -> None:
    while True:
        relays = json.loads(await admin("relay", "list", "--json"))
        if any(relay["connected"] for relay in relays):
            return
        await trio.sleep(POLL_S)


async def connect_client(port: int, ca: Path) -> trio.SSLStream[trio.SocketStream]:
    """A TLS connection to the hub, once it listens."""
    while True:
        try:
            context = ssl.create_default_context(cafile=str(ca))
            stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
        except OSError:
            await trio.sleep(POLL_S)
        else:
            await stream.do_handshake()
            return stream


async def fetch_token(client: trio.abc.Stream, api_key: str) -> str:
    """An access token for the cluster, as `hawse credential` gets it."""
    form = urlencode({"grant_type": "client_credentials", "audience": CLUSTER, "client_secret": api_key})
    await client.send_all(
        f"POST /oauth/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(form)}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}".encode()
    )
    received = await receive_until(client, b"}")
    token: str = json.loads(received[received.index(b"{") :])["access_token"]
    return token


async def run(folder: Path) -> dict[str, Journey]:
    """Bring everything up in an empty folder; returns each journey as most rounds have it."""
    (folder / "apiserver").mkdir()
    settings, port = write_hub_settings(folder)
    os.environ["HAWSE_HUB_CONFIG"] = str(settings)
    apiserver, recorder = ApiServer(), Recorder()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            listeners, upstream = await listen_tls(folder / "apiserver")
            nursery.start_soon(trio.serve_listeners, apiserver.serve, listeners)
            nursery.start_soon(service("hub"))
            ca = folder / "hub" / "tls" / "ca.pem"
            client = await connect_client(port, ca)
            api_key = await enrol(folder)
            (folder / "relay" / "kubeconfig").write_text(yaml.safe_dump(kubeconfig(upstream)))
            os.environ["HAWSE_RELAY_KUBECONFIG"] = str(folder / "relay" / "kubeconfig")
            nursery.start_soon(service("relay", "--config", str(folder / "relay" / "relay.toml")))
            token = await fetch_token(client, api_key)
            await wait_for_tunnel()
            recorder.client = client.transport_stream.socket.getsockname()
            setting = Setting(client, f"Bearer {token}", apiserver, recorder)
            with recorder.installed():
                gets = [await setting.get() for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
                events = (await setting.watch(WARM_UP + ROUNDS))[WARM_UP:]
            nursery.cancel_scope.cancel()
    requests, answers = zip(*gets, strict=True)
    return {REQUEST: usual(requests), ANSWER: usual(answers), EVENT: usual(events)}


def usual(rounds: Iterable[Journey]) -> Journey:
    """The journey that most rounds have."""
    return Counter(rounds).most_common(1)[0][0]


async def listen_tls(folder: Path) -> tuple[list[trio.SSLListener[trio.SocketStream]], Endpoint]:
    """Listen for TLS connections on a port of its own."""
    ca = issue_certificate(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    return [trio.SSLListener(each, context) for each in listeners], Endpoint("127.0.0.1", port, ca)


def measure_apart() -> dict[str, dict[str, int]]:
    """The figures of the journeys, by a process of their own; raises RunFailed."""
    command = [sys.executable, "-m", "benchmarks.structure.journeys"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * DEADLINE_S)
    if done.returncode:
        raise RunFailed(f"the journeys: {done.stderr[-2000:]}")
    figures: dict[str, dict[str, int]] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure.journeys")
    parser.add_argument("--trace", action="store_true", help="list every call before the figures")
    arguments = parser.parse_args()
    prepare_process()
    with tempfile.TemporaryDirectory(prefix="hawse-journeys-") as name:
        journeys = trio.run(run, Path(name))
    for title, journey in journeys.items() if arguments.trace else ():
        print(f"{title}:")
        for call in journey.calls:
            print(f"    {call.file:44} {call.function}")
    print(json.dumps({title: journey.figures() for title, journey in journeys.items()}))


if __name__ == "__main__":
    main()
