"""Opens the bench of the admin API: the app over a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from audit.mask import Masks
from auth.apikey import hash as hash_key
from proxy.hub.admin.administration import Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.metrics.hub import hub_metrics
from proxy.hub.admin.revocations import Revocations
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.reserve import open_reserve
from proxy.hub.home.keyring import FolderKeyring, KeyRing
from proxy.hub.home.trails import open_search
from proxy.hub.membership.spread import Spread
from proxy.hub.store.directory import open_directory
from tests.fakes.admin import (
    PEPPER,
    TOKEN,
    Bench,
    Clock,
    FakeOperations,
    FakeRecorder,
    FakeSessions,
    FakeWork,
)
from tests.fakes.requests import FakeRequests

CONSOLE_URL = "https://console.example"


@asynccontextmanager
async def open_bench(tmp_path: Path, **more: Any) -> AsyncIterator[Bench]:
    """Open it, with files in a folder of the caller's; `more` is for Administration.of."""
    clock = Clock()
    ring = KeyRing(
        FolderKeyring(DataDir.open(tmp_path).keys),
        issuer="https://hub.example",
        clock=clock,
        on_rotation=lambda: None,
    )
    requests = FakeRequests()
    recorder, operations, sessions = FakeRecorder(), FakeOperations(), FakeSessions()
    reserve = open_reserve(tmp_path / "reserve")
    revocations = Revocations(reserve)
    trail = TrailService.of(partial(open_search, tmp_path / "audit.db"), Masks(["pin-[0-9]+"]))
    async with open_directory(tmp_path / "hub.db", org="main", clock=clock) as directory:
        work = FakeWork()
        simulations = Simulations(work.run, clock)
        await directory.change(lambda store: store.put_local_token(hash_key(TOKEN, PEPPER)))
        administration = Administration.of(
            directory=directory,
            ring=ring,
            pepper=PEPPER,
            public_url="https://hub.example",
            hub_ca=lambda: None,
            version="0.1.0",
            operations=operations,
            live_sessions=sessions,
            simulations=simulations,
            backups=Backups(tmp_path),
            requests=requests,
            clock=clock,
            trail=trail,
            console_url=CONSOLE_URL,
            **more,
        )
        metrics, spread = hub_metrics(directory, operations), Spread(directory)
        app = admin_app(administration, recorder, metrics, clock, revocations, spread)
        yield Bench(
            app,
            directory,
            recorder,
            operations,
            ring,
            sessions,
            clock,
            spread,
            simulations,
            work,
            trail,
            requests,
        )
    reserve.close()
