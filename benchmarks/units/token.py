"""What a new access token costs the hub.

    .venv/bin/python -m benchmarks.units.token [--runs N] [--against CHECKOUT] [--calls N] [--database URL]

Each client makes a TLS connection of its own and sends one request, as kubectl's plugin does: for a token
with an own key, for one with an API key, or `GET /healthz`, a connection and an answer of the hub's own.
They come one after the other. A line is the CPU time of the hub's process for each, its audit trail included,
and how much of that is its threads'. `--against` alternates with the hub of another folder with Hawse's code.
The parts of a token follow, each alone in this process, and the replay store also in the PostgreSQL database
of URL, which must be empty. With `--calls` the function calls of the hub's main
thread are counted instead, and the N functions that are called most are listed.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import attrs
import trio

from auth.assertion import issue_assertion
from auth.tokens import issue_access, verify_assertion
from benchmarks.calls import CHECKOUT, HOOK, counted
from benchmarks.systems.hawse import CLUSTER, Enrolled, enrolled
from benchmarks.units.calls import Case
from benchmarks.units.timing import measure, report
from benchmarks.upstream.apiserver import open_apiserver
from benchmarks.workloads.kubectl import Home, with_plugin
from proxy.agent.hub.proof import proof_of
from proxy.agent.local.account import find_account
from proxy.hub.identity.oauth import parse_form
from proxy.hub.identity.replay_sqlite import SqliteUses
from proxy.hub.identity.replay_store import ReplayStore, UseTable, open_replay_store
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store

RUNS = 7
CLIENTS = 40
# Audit completions are collected for up to 20 ms.
SETTLE_S = 0.1
USES = 100
TOGETHER = 1, 20
KEPT_S = 70.0
HUB = "https://hub.example"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: hub.example\r\nconnection: close\r\n\r\n"


@attrs.frozen
class Client:
    """A kind of client at one hub; each call is one connection."""

    hub: Enrolled
    tls: ssl.SSLContext
    request: Callable[[], bytes]

    def __call__(self) -> None:
        where = "127.0.0.1", self.hub.installation.port
        with (
            socket.create_connection(where) as tcp,
            self.tls.wrap_socket(tcp, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(self.request())
            answer = b""
            while data := tls.recv(65_536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:400]


def post(fields: Mapping[str, str]) -> bytes:
    """A token request with this form."""
    form = urlencode({"audience": CLUSTER, **fields}).encode()
    head = b"POST /oauth/token HTTP/1.1\r\nhost: hub.example\r\nconnection: close\r\n"
    return b"%s%s: %s\r\ncontent-length: %d\r\n\r\n%s" % (head, *FORM, len(form), form)


@contextmanager
def open_clients(folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, Client]]:
    """Run a hub, and return its clients by their kind."""
    for part in ("upstream", "hawse", "home"):
        (folder / part).mkdir(parents=True)
    with (
        open_apiserver(folder / "upstream") as server,
        enrolled(folder / "hawse", server, "hawse", environment) as hub,
    ):
        home = Home(folder / "home")
        with_plugin(home, hub)
        account = find_account(home.environment, None)
        secret = account._replace(api_key=hub.api_key)
        tls = ssl.create_default_context(cafile=str(hub.installation.ca))
        yield {
            "an own key": Client(hub, tls, lambda: post(proof_of(account))),
            "an API key": Client(hub, tls, lambda: post(proof_of(secret))),
            "GET /healthz": Client(hub, tls, lambda: HEALTH),
        }


def threads_ns(pid: int) -> dict[int, int]:
    """The CPU time of each thread of a process."""
    tasks = Path("/proc", str(pid), "task").iterdir()
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks}


def spent_us(client: Client) -> tuple[float, float]:
    """The hub's CPU µs for a client, and the part of all threads but the first in it."""
    pid = client.hub.system.processes["hub"]
    time.sleep(SETTLE_S)
    before = threads_ns(pid)
    for _ in range(CLIENTS):
        client()
    time.sleep(SETTLE_S)
    spent = {thread: ns - before.get(thread, 0) for thread, ns in threads_ns(pid).items()}
    whole = sum(spent.values())
    return whole / CLIENTS / 1e3, (whole - spent[pid]) / CLIENTS / 1e3


def at_hubs(runs: int, against: Path | None) -> None:
    """Print a line for each kind of client and each hub."""
    with tempfile.TemporaryDirectory(prefix="hawse-token-") as name, ExitStack() as opened:
        hubs = {"": CHECKOUT} if against is None else {"": CHECKOUT, " (other)": against.resolve()}
        clients = {
            f"{kind}{which}": client
            for number, (which, code) in enumerate(hubs.items())
            for kind, client in opened.enter_context(
                open_clients(Path(name, str(number)), {"PYTHONPATH": str(code)})
            ).items()
        }
        spent: dict[str, list[tuple[float, float]]] = {kind: [] for kind in clients}
        for _ in range(runs):
            for kind, client in clients.items():
                spent[kind].append(spent_us(client))
    for kind in sorted(clients):
        report(f"hub: {kind}", [whole for whole, _ in spent[kind]])
        report("    in threads", [threads for _, threads in spent[kind]])


def calls_at_hub(functions: int) -> None:
    """Print the hub's function calls for each kind of client."""
    with tempfile.TemporaryDirectory(prefix="hawse-token-") as name:
        file = Path(name, "counted")
        environment = {"PYTHONPATH": f"{HOOK}{os.pathsep}{CHECKOUT}", "HAWSE_COUNTED": str(file)}
        with open_clients(Path(name, "hub"), environment) as clients:
            for kind, client in clients.items():
                with counted(client.hub.system, file) as counts:
                    for _ in range(CLIENTS):
                        client()
                    time.sleep(SETTLE_S)
                calls = counts.by_process["hub"]
                print(f"{kind}: {sum(calls.values()) / CLIENTS:.0f} calls")
                for function, count in sorted(calls.items(), key=lambda each: -each[1])[:functions]:
                    print(f"    {count / CLIENTS:8.2f}  {function}")


def parts(database: str | None) -> None:
    """Print a line for each part of a token, by itself."""
    case = Case()
    key, name, public = case.key, case.agent.name, case.key.public
    assertion = issue_assertion(key.key, agent=name, hub_url=HUB, jti="j" * 22, now=case.now)
    form = urlencode({"client_assertion": assertion, "audience": CLUSTER, "grant_type": "x" * 18}).encode()
    measure("form", lambda: parse_form(form, (FORM,)), 2000)
    find = {key.kid: (name, public)}.get
    measure("assertion", lambda: verify_assertion(assertion, find, hub_url=HUB, now=case.now), 2000)
    mint = partial(issue_access, key, issuer=HUB, principal=case.principal, cluster=CLUSTER)
    measure("token", lambda: mint(sid="sid-1", jti=str(uuid.uuid4()), now=case.now), 2000)
    trio.run(stored, database)


async def stored(database: str | None) -> None:
    """Print what the replay store costs: the whole, and a call of a thread alone."""
    limiter = trio.CapacityLimiter(1)

    async def call_thread() -> None:
        await trio.to_thread.run_sync(int, limiter=limiter)

    with tempfile.TemporaryDirectory(prefix="hawse-token-", dir=CHECKOUT) as name:
        tables: list[tuple[str, UseTable]] = [("", SqliteUses(Path(name, "seen.db")))]
        if database is not None:
            tables.append((" in PostgreSQL", _in_postgres(database)))
        for where, table in tables:
            async with open_replay_store(table) as store:

                async def use(store: ReplayStore = store) -> None:
                    now = time.time()
                    await store.enter("assertion", "agent", uuid.uuid4().hex, now + KEPT_S, now)

                for together in TOGETHER:
                    spent = [await _once(use, together) for _ in range(RUNS)]
                    report(f"replay store{where}, {together} at once", spent)
    report("a call of a thread", [await _once(call_thread) for _ in range(RUNS)])


def _in_postgres(url: str) -> UseTable:
    from proxy.hub.identity.replay_postgres import PostgresUses

    Store(PostgresAddress(url), org="acme", clock=time.time).close()
    return PostgresUses(lambda: url)


async def _once(function: Callable[[], Awaitable[None]], together: int = 1) -> float:
    began_s = time.process_time()
    for _ in range(USES // together):
        async with trio.open_nursery() as nursery:
            for _ in range(together):
                nursery.start_soon(function)
    return (time.process_time() - began_s) / USES * 1e6


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.units.token")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--against", type=Path, help="a folder with Hawse's code")
    parser.add_argument("--calls", type=int, metavar="N", help="count function calls; list the first N")
    parser.add_argument("--database", metavar="URL")
    arguments = parser.parse_args()
    if arguments.calls is not None:
        calls_at_hub(arguments.calls)
        return
    at_hubs(arguments.runs, arguments.against)
    parts(arguments.database)


if __name__ == "__main__":
    main()
