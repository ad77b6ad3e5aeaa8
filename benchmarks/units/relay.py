"""What a request costs the relay by itself: the hub's end is another process, the API server is nginx.

    .venv/bin/python -m benchmarks.units.relay [STREAMS…] [--runs N] [--calls] [--bulk]

The relay's own code runs in this process, over TLS on both sides: the tunnel that it dialled, and its pool.
Each line is for so many streams at once, in a closed loop: CPU µs of a GET of 2 KB (the median and the least
of the runs), passes of the scheduler, how many requests share a message of the tunnel, and system calls that
moved bytes. With `--calls` instead how many functions are called a request, Python's and C's: that figure is
the same on a busy machine, and says at once whether a change has saved anything. With `--bulk` the requests
are downloads of 64 MiB, and what is counted is the MB (1e6 bytes) in a request's place.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

import attrs
import trio
import yaml

from auth import tokens
from auth.hubclock import HubClocks, issue_time
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.principal import Principal
from benchmarks.nginx import issue_certificate
from benchmarks.processes import free_port
from benchmarks.systems.hawse import kubeconfig
from benchmarks.upstream.apiserver import POD_PATH, open_apiserver
from benchmarks.waiting import receive_head, wait_input
from proxy.exchange.groups import HUB_GROUP
from proxy.message.head import RequestHead, ResponseHead
from proxy.process.lifecycle.startup import settle
from proxy.relay.config import CLOCK_BOUND_S
from proxy.relay.exchange import Upstream
from proxy.relay.pool import open_pool
from proxy.relay.service_account import from_kubeconfig
from proxy.relay.tunnelled import serve_session
from tunnel import Hello, Role, Session, Welcome, open_session
from tunnel.net.connect import client_context, open_tls, server_context, wrap_server
from tunnel.net.tcp import TCPListener, TCPStream
from tunnel.websocket.upgrade import accept_websocket, dial_websocket

HUB = "https://hub.example"
CLUSTER_ID = "0193-c1"
NONCE = "0123456789abcdef" * 2
STREAMS = (1, 16, 64)
WARM_S = 0.5
RUN_S = 1.0
BULK_BYTES = 64 * 1024 * 1024
HEAD = RequestHead.of(
    b"GET",
    POD_PATH.encode(),
    (
        (b"audit-id", b"01JTD8Z4K8X2Q3M9V7B1N5C6A0"),
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"user-agent", b"kubectl/v1.37.0 (linux/amd64) kubernetes/8f1cd3a"),
        (b"accept", b"application/json"),
        (b"kubectl-command", b"kubectl get"),
    ),
)


# --- the hub's end, in its own process ---


def be_the_hub(folder: Path, port: int, streams: int, path: str) -> None:
    """Ask in a closed loop; for each line on stdin say on stdout how many requests were answered by then.

    For any other path than a pod's it is the MB that have come.
    """
    trio.run(_hub, folder, port, streams, path)


async def _hub(folder: Path, port: int, streams: int, path: str) -> None:
    key = SigningKey.from_pem((folder / "hub.key").read_bytes())
    principal = Principal(agent_id="0193-a1", name="probe", org="acme", teams=("platform",))
    now = time.time()
    told = issue_time(key, issuer=HUB, cluster_id=CLUSTER_ID, nonce=NONCE, hub="hub-1", now=now)
    token = tokens.issue_relay(
        key,
        issuer=HUB,
        cluster_id=CLUSTER_ID,
        principal=principal,
        session="s1",
        jti="j1",
        now=now,
        nonce=NONCE,
    )
    answered = 0.0
    per_request, per_byte = (1, 0.0) if path == POD_PATH else (0, 1e-6)
    settle()

    async def ask(session: Session, context: int, head: bytes) -> None:
        nonlocal answered
        while True:
            stream = session.open_stream(head, context=context, eof=True)
            answer = ResponseHead.decode(await receive_head(stream))
            assert answer.status == 200
            while (data := stream.receive_nowait()) != b"":
                if data is None:
                    await wait_input(stream)
                else:
                    answered += len(data) * per_byte
            stream.close_nowait()
            answered += per_request

    async def handle(tcp: TCPStream) -> None:
        tls = wrap_server(tcp, server_context(folder / "server.pem", folder / "server.key"))
        await tls.do_handshake()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await tls.receive_some()
        async with (
            accept_websocket(tls, request_head=head) as transport,
            open_session(transport, Role.LISTENER, answer_hello=lambda _: Welcome()) as session,
            trio.open_nursery() as nursery,
        ):
            session.add_context(HUB_GROUP, told.encode())
            context = session.add_context(1, token.encode())
            for _ in range(streams):
                asked = RequestHead.of(HEAD.method, path.encode(), HEAD.headers)
                nursery.start_soon(ask, session, context, asked.encode())

    listeners = [TCPListener(each) for each in await trio.open_tcp_listeners(port, host="127.0.0.1")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        print("ready", flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(answered, flush=True)


@contextmanager
def open_hub(folder: Path, streams: int, path: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "benchmarks.units.relay",
        "--hub",
        str(folder),
        str(port),
        str(streams),
        path,
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield port, process
        finally:
            process.kill()


# --- the relay, in this one ---


@attrs.define(eq=False)
class Passes(trio.abc.Instrument):
    """Counts what the scheduler does."""

    passes: int = 0
    steps: int = 0

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


@attrs.frozen
class Run:
    """What was spent in one run, for each request."""

    cpu_us: float
    passes: float
    steps: float
    messages: float
    calls: Counter[str]


@attrs.define
class Relay:
    """A relay that is up, with its hub at work."""

    hub: subprocess.Popen[str]
    messages: list[int]
    calls: bool

    async def answered(self) -> float:
        assert self.hub.stdin is not None
        assert self.hub.stdout is not None
        print(file=self.hub.stdin, flush=True)
        return float(await trio.to_thread.run_sync(self.hub.stdout.readline))

    async def measure(self) -> Run:
        instrument = Passes()
        counted: Counter[str] = Counter()

        def count(frame: FrameType, event: str, arg: object) -> None:
            if event == "call":
                code = frame.f_code
                counted[f"{os.path.basename(code.co_filename)}:{code.co_firstlineno} {code.co_name}"] += 1
            elif event == "c_call":
                counted[f"C {getattr(arg, '__qualname__', arg)}"] += 1

        before, sent_before = await self.answered(), self.messages[0]
        if self.calls:
            sys.setprofile(count)
        else:
            trio.lowlevel.add_instrument(instrument)
        began_s = time.process_time()
        await trio.sleep(RUN_S)
        spent_s = time.process_time() - began_s
        if self.calls:
            sys.setprofile(None)
        else:
            trio.lowlevel.remove_instrument(instrument)
        requests = await self.answered() - before
        return Run(
            spent_s * 1e6 / requests,
            instrument.passes / requests,
            instrument.steps / requests,
            (self.messages[0] - sent_before) / requests,
            Counter({name: times / requests for name, times in counted.items()}),
        )


@asynccontextmanager
async def open_relay(folder: Path, streams: int, path: str, calls: bool) -> AsyncIterator[Relay]:
    with open_hub(folder, streams, path) as (port, hub):
        access = from_kubeconfig(folder / "kubeconfig")
        key = SigningKey.from_pem((folder / "hub.key").read_bytes())
        hubs = HubClocks(TrustedKeys(KeySet([key.public]), HUB), HUB, CLUSTER_ID, CLOCK_BOUND_S)
        context = client_context((folder / "ca.pem").read_text())
        async with open_pool(access) as pool:
            tls = await open_tls("127.0.0.1", port, context)
            async with (
                dial_websocket(tls, host="hub", target="/") as transport,
                open_session(transport, Role.DIALER, hello=Hello(nonce=NONCE)) as session,
                trio.open_nursery() as nursery,
            ):
                sent = [0]
                send, send_nowait = transport.send, transport.send_nowait

                async def counted(message: bytes) -> None:
                    sent[0] += 1
                    await send(message)

                def counted_nowait(message: bytes) -> bool:
                    sent[0] += 1
                    return send_nowait(message)

                transport.send = counted  # type: ignore[method-assign]
                transport.send_nowait = counted_nowait  # type: ignore[method-assign]

                async def answer_all() -> None:
                    await serve_session(session, Upstream(pool), hubs=hubs)

                nursery.start_soon(answer_all)
                settle()
                await trio.sleep(WARM_S)
                yield Relay(hub, sent, calls)
                nursery.cancel_scope.cancel()


async def run(folder: Path, streams: int, path: str, runs: int, calls: bool) -> None:
    async with open_relay(folder, streams, path, calls) as relay:
        measured = [await relay.measure() for _ in range(runs)]
    cpu = [each.cpu_us for each in measured]
    last = measured[-1]
    if calls:
        python = sum(times for name, times in last.calls.items() if not name.startswith("C "))
        c = sum(last.calls.values()) - python
        print(f"x{streams:<4} {python:7.1f} Python calls, {c:7.1f} C calls a request", flush=True)
        for name, times in last.calls.most_common(int(os.environ.get("TOP", "0"))):
            print(f"      {times:7.2f} {name}")
        return
    print(
        f"x{streams:<4} {statistics.median(cpu):7.1f} µs, least {min(cpu):7.1f}; passes {last.passes:.2f}, "
        f"task steps {last.steps:.2f}, messages {last.messages:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", nargs="*", type=int, help="how many at once (1, 16 and 64)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure (5)")
    parser.add_argument("--calls", action="store_true", help="count function calls instead")
    parser.add_argument("--bulk", action="store_true", help="download, and count MB instead of requests")
    parser.add_argument("--hub", nargs=4, metavar="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hub is not None:
        folder, port, streams, path = options.hub
        be_the_hub(Path(folder), int(port), int(streams), path)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "upstream").mkdir()
        issue_certificate(folder)
        (folder / "hub.key").write_bytes(SigningKey.generate().to_pem())
        with open_apiserver(folder / "upstream") as upstream:
            (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig(upstream.endpoint)))
            path = upstream.body(BULK_BYTES) if options.bulk else POD_PATH
            runs = 1 if options.calls else options.runs
            for streams in options.streams or STREAMS:
                trio.run(run, folder, streams, path, runs, options.calls)


if __name__ == "__main__":
    main()
