"""A relay endpoint over a real store, a real trail and a real registry."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
import trio.lowlevel
import trio.testing

from audit.reader import AuditReader
from audit.recording.opening import open_recorder
from audit.recording.recorder import Recorder
from audit.store import AuditStore
from auth.keys import SigningKey
from auth.tokens import HelloClaims
from proxy.hub.authorize.events import Trail
from proxy.hub.home.config import HubConfig
from proxy.hub.relays.dial_auth import DialAuth, RelayDial
from proxy.hub.relays.endpoint import RelayEndpoint
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.secrets.signing_keys import SigningKeys
from tests.fakes.replays import open_replays
from tunnel import RESUME, Hello, Memory, Role, Session, memory_transport_pair, open_session

NOW = 1_800_000_000.0


def claims(
    jti: str,
    *,
    cluster: str = "c1",
    kid: str = "kid",
    expires_at: float = NOW + 60,
    instance: str = "relay-1",
) -> HelloClaims:
    return HelloClaims(cluster, instance, kid, jti, int(NOW), int(expires_at))


@attrs.define(eq=False)
class Bench:
    endpoint: RelayEndpoint
    auth: DialAuth
    directory: Directory
    recorder: Recorder
    audit_file: Path

    async def keep(
        self,
        session: Session,
        nursery: trio.Nursery,
        *,
        instance: str = "relay-1",
        address: str = "192.0.2.9",
    ) -> None:
        """Keep a session as that of a relay of the cluster `prod`; returns once it is in the registry."""
        cluster = self.directory.current.clusters_by_name["prod"]
        hello = claims("a", cluster=cluster.id, kid=cluster.relay_keys[0].kid, instance=instance)
        nursery.start_soon(self.endpoint._keep, session, hello, cluster, address)
        with trio.fail_after(5):
            while True:
                if any(relay.session is session for relay in self.endpoint.registry.relays()):
                    return
                await trio.lowlevel.checkpoint()

    def dial(self, hello: HelloClaims, *, recorded: bool = True) -> RelayDial:
        """The dial of an authenticated relay of the cluster `prod`."""
        cluster = self.directory.current.clusters_by_name["prod"]
        return RelayDial(hello, cluster, "192.0.2.9", self.auth.limit.arrive(), recorded)

    async def trail(self) -> list[tuple[str, str]]:
        """Kind and note of each event."""
        await self.recorder.flush()
        reader = AuditReader(self.audit_file)
        try:
            events = [json.loads(stored.body) for stored in reader.query()]
        finally:
            reader.close()
        return [(event["kind"], event.get("note", "")) for event in events]


@asynccontextmanager
async def open_bench(folder: Path, relay_key: SigningKey | None = None) -> AsyncIterator[Bench]:
    config = HubConfig(org="acme", public_url="https://hub.example")
    key = SigningKey.generate()
    audit_file = folder / "audit.db"
    store = AuditStore(audit_file)
    async with (
        open_recorder(store, org="acme") as recorder,
        open_directory(folder / "hub.db", org="acme", clock=time.time) as directory,
        open_replays(folder / "seen.db") as replays,
    ):
        await directory.change(
            lambda store: store.add_cluster(
                "prod", teams=[], relay_key=(relay_key or SigningKey.generate()).public
            )
        )
        endpoint = RelayEndpoint(
            config=config,
            directory=directory,
            registry=Registry(),
            keys=lambda: SigningKeys(key, (key,)),
            recorder=recorder,
            trail=Trail("acme"),
            memory=Memory(2**20),
            boot="boot",
            software="hawse/test",
            new_id=lambda: "id",
        )
        auth = DialAuth(directory, endpoint.registry, config.public_url, b"p" * 32, replays)
        yield Bench(endpoint, auth, directory, recorder, audit_file)
    store.close()


@asynccontextmanager
async def lost_relay(bench: Bench) -> AsyncIterator[tuple[Session, HelloClaims, Session]]:
    """A relay's session that has lost its connection: the hub's end, its token, and the relay's end."""
    cluster = bench.directory.current.clusters_by_name["prod"]
    token = claims("jti", cluster=cluster.id, kid=cluster.relay_keys[0].kid)
    here, there = memory_transport_pair()
    hello = Hello(cluster=cluster.id, instance="relay-1", features=(RESUME,))
    async with trio.open_nursery() as nursery:
        relays: list[Session] = []

        async def dial() -> None:
            async with open_session(there, Role.DIALER, hello=hello) as relay:
                relays.append(relay)
                await relay.wait_closed()

        nursery.start_soon(dial)
        async with open_session(
            here, Role.LISTENER, answer_hello=partial(bench.endpoint._welcome, bench.dial(token))
        ) as hub:
            await bench.keep(hub, nursery)
            await trio.testing.wait_all_tasks_blocked()
            here.cut()
            await trio.testing.wait_all_tasks_blocked()
            yield hub, token, relays[0]
        nursery.cancel_scope.cancel()
