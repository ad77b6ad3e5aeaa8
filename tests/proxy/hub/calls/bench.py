"""The calls of a hub with a real directory, recorder and tunnel; the relay is a script."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
import trio.testing

from audit.reader import AuditReader
from audit.record import Event
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.store import AuditStore
from auth.keys import KeySet, SigningKey
from auth.principal import Principal
from auth.tokens import issue_access
from proxy.exchange.next_pass import NextPass
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.access import AccessTokens
from proxy.hub.authorize.events import Trail
from proxy.hub.calls.begin import begin
from proxy.hub.calls.calls import Calls
from proxy.hub.home.config import HubConfig
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.relays.contexts import TokenContexts
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.pins import Pins
from proxy.hub.relays.registry import LiveRelay, Registry
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from proxy.message.head import ResponseHead
from tests.proxy.hub.calls.sessions import session_pair
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel import Session
from tunnel.net.connect import TLSStream
from tunnel.net.readiness import Readiness

Change = Callable[[Store, str], object]
ISSUER = "https://hub.example"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\n"


@attrs.frozen(eq=False)
class Served:
    """Both ends of a client's connection."""

    client: TLSStream
    server: TLSStream
    """The hub's end."""
    over: trio.Event = attrs.Factory(trio.Event)
    """The hub has closed it."""


@attrs.define(eq=False)
class Bench:
    calls: Calls
    registry: Registry
    directory: Directory
    recorder: Recorder
    key: SigningKey
    audit_file: Path
    observed: list[Event]
    with_task: bool
    """Each call is begun by its connection's task. Otherwise it is begun without, where possible."""
    handled: int = 0
    """How many calls were the task's from the beginning ..."""
    carried_on: int = 0
    """... and how many it had to go on with."""
    passes: NextPass = attrs.Factory(NextPass)

    @property
    def credential(self) -> str:
        """The id of ann's one API key."""
        [key_id] = self.directory.current.credentials
        return key_id

    def token(self, cluster: str = "prod") -> str:
        agent = self.directory.current.agents_by_name["ann"]
        assert agent.principal is not None
        return issue_access(
            self.key,
            issuer=ISSUER,
            principal=agent.principal,
            cluster=cluster,
            sid=self.credential,
            jti="jti",
            now=time.time(),
        )

    def request(self, line: str, *headers: str, body: bytes = b"", token: str | None = None) -> bytes:
        bearer = self.token() if token is None else token
        lines = [line, "Host: hub.example", f"Authorization: Bearer {bearer}", "Connection: close", *headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def ask(self, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """Serve one connection that sends `data`; status, headers and body of the answer."""
        async with self.connected() as client:
            await client.send_all(data)
            return _taken_apart(await read_all(client))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[TLSStream]:
        """A client's connection, over TLS and a socket."""
        async with self.served() as served:
            yield served.client

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Served]:
        """A client's connection that is served until it ends, or the block is left."""
        client, server = await handshake(await tcp_pair())
        readiness = Readiness()
        connection = ServerConnection(server, None, server, readiness, self.passes)
        served = Served(client, server)

        async def serve() -> None:
            # The first request of a connection is always its task's.
            await connection.next_request()
            await connection.answer(ResponseHead.of(204), b"")
            if not self.with_task:
                connection.serve_parked(server, partial(begin, self.calls, "192.0.2.7"))
            while (head := await connection.next_request()) is not None:
                begun = connection.take_begun()
                if begun is None:
                    self.handled += 1
                    await self.calls.handle(connection, head, "192.0.2.7", authenticated=lambda _: None)
                else:
                    self.carried_on += 1
                    await begun.carry_on()
            served.over.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(readiness.run)
                nursery.start_soon(serve)  # noqa: ASYNC113 - a request waits for it
                await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.receive_some()
                yield served
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)
                await trio.aclose_forcefully(server)

    def age(self, age_s: float) -> None:
        """Make the snapshot this old."""
        self.directory.age.confirmed_s = -1e9
        self.directory.age.confirm(time.monotonic() - age_s)

    async def trail(self) -> list[dict[str, Any]]:
        await self.recorder.flush()
        reader = AuditReader(self.audit_file)
        try:
            return [json.loads(stored.body) for stored in reader.query()]
        finally:
            reader.close()


async def read_all(client: trio.abc.ReceiveStream) -> bytes:
    received = b""
    # A cut is seen in what has come.
    with suppress(trio.BrokenResourceError):
        while chunk := await client.receive_some():
            received += chunk
    return received


def _taken_apart(answer: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
    return int(first.split(b" ")[1]), headers, body


@pytest.fixture(params=["with a task", "without a task"])
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, with_task=request.param == "with a task") as bench:
        yield bench


def streams_of(calls: Calls) -> dict[str, int]:
    """How many calls each agent has under way, by its id."""
    loads = calls.limits._loads.items()
    return {agent_id: load.streams for agent_id, load in loads if load.streams}


@asynccontextmanager
async def open_bench(tmp_path: Path, *, with_task: bool, streams: int = 2) -> AsyncIterator[Bench]:
    key = SigningKey.generate()
    keys = SigningKeys(key, (key,))
    audit_file = tmp_path / "audit.db"
    store = AuditStore(audit_file)
    registry = Registry()
    observed: list[Event] = []
    async with (
        open_recorder(store, org="acme") as recorder,
        open_directory(tmp_path / "hub.db", org="acme", clock=time.time) as directory,
        trio.open_nursery() as nursery,
    ):
        await directory.change(enrol)
        config = HubConfig(org="acme", public_url=ISSUER, limits=LimitsConfig(streams_per_agent=streams))
        calls = Calls(
            config=config,
            directory=directory,
            tokens=AccessTokens(lambda: KeySet([key.public]), issuer=ISSUER, org="acme"),
            registry=registry,
            direct=DirectRelays(
                keys=lambda: keys,
                issuer=ISSUER,
                new_id=lambda: "id",
                nursery=nursery,
                enrolled=lambda: directory.current.clusters_by_id.keys(),
                pins=Pins(directory, recorder, Trail("acme")),
            ),
            recorder=recorder,
            trail=Trail("acme"),
            observe=observed.append,
        )
        directory.on_change(calls.live.reconsider)
        nursery.start_soon(calls.live.run)
        bench = Bench(calls, registry, directory, recorder, key, audit_file, observed, with_task)
        nursery.start_soon(bench.passes.run)
        yield bench
        assert streams_of(calls) == {}, "whatever was counted has been counted off"
        assert calls.live.count == 0
        nursery.cancel_scope.cancel()  # the upkeep of direct connections, and the look at live calls
    store.close()


def enrol(store: Store) -> None:
    store.add_team("sre")
    store.add_team("web")
    store.add_agent("ann", owner="Ann", teams=["sre"], key_hash="h1", key_hint="hws_1")
    store.add_cluster("prod", teams=["sre"], relay_key=SigningKey.generate().public)
    store.add_cluster("other", teams=["web"], relay_key=SigningKey.generate().public)


@asynccontextmanager
async def relay_of(bench: Bench, instance: str = "relay-1") -> AsyncIterator[Session]:
    """A live relay of the cluster `prod`: yields its end of the session."""
    cluster = bench.directory.current.clusters_by_name["prod"]
    minted = iter(range(100))

    def mint(principal: Principal) -> str:
        return f"token-{next(minted)}"

    async with session_pair() as (hub, relay):
        contexts = TokenContexts(hub, mint, tuple)
        live = LiveRelay(cluster.id, "prod", instance, "boot", "v1", "192.0.2.9", 0.0, hub, contexts)
        with bench.registry.registered(live):
            yield relay


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("a bug")
