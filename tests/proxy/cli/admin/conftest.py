"""A hub's admin API on a real loopback listener with TLS, and `hawse admin` run against it in process."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from click.testing import CliRunner, Result

from audit.mask import Masks
from audit.recording.opening import open_recorder
from audit.store import AuditStore
from proxy.cli.admin import admin
from proxy.hub.admin.actions.hub import Hubs
from proxy.hub.admin.administration import Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.front import AdminFront, ensure_local_token, write_endpoint
from proxy.hub.admin.metrics.hub import hub_metrics
from proxy.hub.admin.revocations import Revocations
from proxy.hub.admin.simulation.job import Job, Outcome, Progress
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.simulation.worker import run_job
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import AdminConfig, HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.reserve import open_reserve
from proxy.hub.home.keyring import FolderKeyring, KeyRing
from proxy.hub.home.trails import open_search
from proxy.hub.relays.operations import OtherHubs, RelayInfo, SessionInfo
from proxy.hub.store.directory import Directory, open_directory
from proxy.process.config import Address
from tests.fakes.requests import FakeRequests


async def run_in_thread(data_dir: Path, job: Job, tell: Callable[[Progress], None]) -> Outcome:
    """Run a simulation without a process of its own, whose imports would take most of these tests' time."""
    return await trio.to_thread.run_sync(run_job, data_dir, job, partial(trio.from_thread.run_sync, tell))


@attrs.define
class Live:
    relays_here: list[RelayInfo] = attrs.Factory(list)
    others: list[RelayInfo] = attrs.Factory(list)

    sessions_here: list[SessionInfo] = attrs.Factory(list)
    beside: int = 0

    def relays(self) -> Sequence[RelayInfo]:
        return self.relays_here

    async def elsewhere(self) -> Sequence[RelayInfo]:
        await trio.lowlevel.checkpoint()
        return self.others

    def instances(self) -> set[tuple[str, str]]:
        return {(relay.cluster, relay.instance) for relay in [*self.relays(), *self.others]}

    async def sessions(
        self, *, agent: str | None = None, cluster: str | None = None
    ) -> Sequence[SessionInfo]:
        return [
            one for one in self.sessions_here if agent in (None, one.agent) and cluster in (None, one.cluster)
        ]

    async def hubs_beside(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.beside

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> Sequence[SessionInfo]:
        await trio.lowlevel.checkpoint()
        gone = [
            one for one in await self.sessions(agent=agent, cluster=cluster) if session_id in (None, one.id)
        ]
        for one in gone:
            self.sessions_here.remove(one)
        return gone


@attrs.define
class Hub:
    data: DataDir
    directory: Directory
    live: Live
    ca: Path
    url: str
    simulations: Simulations
    requests: FakeRequests

    def elsewhere(self) -> dict[str, str | None]:
        """The environment of an operator on another machine."""
        return {
            "HAWSE_HUB_DATA_DIR": None,
            "HAWSE_ADMIN_URL": self.url.replace("127.0.0.1", "localhost"),
            "HAWSE_ADMIN_TOKEN": self.data.admin.token() or "",
            "HAWSE_ADMIN_CA": str(self.ca),
        }

    async def run(self, *args: str, stdin: str = "", env: Mapping[str, str | None] | None = None) -> Result:
        """Run `hawse admin ARGS` on a thread, as a separate process would."""
        clean: dict[str, str | None] = dict.fromkeys(
            ("HAWSE_ADMIN_URL", "HAWSE_ADMIN_TOKEN", "HAWSE_ADMIN_CA", "HAWSE_HUB_CONFIG")
        )
        clean["HAWSE_HUB_DATA_DIR"] = str(self.data.path)
        clean.update(env or {})
        return await trio.to_thread.run_sync(lambda: CliRunner().invoke(admin, args, input=stdin, env=clean))

    async def ok(self, *args: str, env: Mapping[str, str | None] | None = None) -> Result:
        result = await self.run(*args, env=env)
        assert result.exit_code == 0, result.output
        return result

    async def json(self, *args: str) -> Any:
        return json.loads((await self.ok(*args, "--json")).stdout)

    async def fails(self, *args: str, env: Mapping[str, str | None] | None = None, code: int = 1) -> str:
        """Return the one line that a failing command prints."""
        result = await self.run(*args, env=env)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        if code == 1:
            assert result.stderr.startswith("hawse: ")
            assert result.stderr.count("\n") == 1
        return result.stderr


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with run_hub(tmp_path) as running:
        yield running


@asynccontextmanager
async def run_hub(
    tmp_path: Path, *, hubs: Hubs | None = None, other_hubs: OtherHubs | None = None
) -> AsyncIterator[Hub]:
    data = DataDir.open(tmp_path / "hub")
    keys = FolderKeyring(data.keys)
    ring = KeyRing(keys, issuer="https://hub.example", clock=time.time, on_rotation=lambda: None)
    pepper = data.pepper()
    settings = HubConfig(public_url="https://hub.example", data_dir=data.path)
    certificate = Certificate.open(settings, data, time.time)
    live, requests = Live(), FakeRequests()
    store = AuditStore(data.audit_file, Masks([]))
    reserve = open_reserve(data.reserve_file)
    revocations = Revocations(reserve)
    try:
        async with open_directory(data.store_file, org="main", clock=time.time) as directory:
            async with open_recorder(store, org="main") as recorder:
                await ensure_local_token(data, directory, pepper)
                trail = TrailService.of(partial(open_search, data.audit_file), Masks([]))
                simulations = Simulations(partial(run_in_thread, data.path), time.time)
                administration = Administration.of(
                    directory=directory,
                    ring=ring,
                    pepper=pepper,
                    public_url="https://hub.example",
                    hub_ca=lambda: certificate.ca_pem,
                    version="0.1.0",
                    operations=live,
                    live_sessions=live,
                    simulations=simulations,
                    backups=Backups(data.path),
                    requests=requests,
                    trail=trail,
                    hubs=hubs,
                    other_hubs=other_hubs,
                    console_url="https://console.example",
                )
                app = admin_app(
                    administration, recorder, hub_metrics(directory, live), time.time, revocations
                )
                front = AdminFront(app, certificate)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(simulations.run)
                    nursery.start_soon(trail.poll.run)
                    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                    sock = listeners[0].socket
                    assert sock.family == socket.AF_INET
                    port = sock.getsockname()[1]
                    config = attrs.evolve(settings, admin=AdminConfig(Address("127.0.0.1", port)))
                    write_endpoint(config, data, certificate.chain)
                    await nursery.start(trio.serve_listeners, front.handle_client, listeners)
                    yield Hub(
                        data,
                        directory,
                        live,
                        data.tls_dir / "ca.pem",
                        f"https://127.0.0.1:{port}",
                        simulations,
                        requests,
                    )
                    nursery.cancel_scope.cancel()
    finally:
        store.close()
        reserve.close()
