"""The order of what a hub does when it takes another one's place, by the whole hub in this process."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from audit.query import Query
from audit.reader import AuditReader
from audit.record import Kind
from audit.recording.flood import FIRST
from audit.store import AuditStore
from auth.apikey import hash as hash_key
from proxy.hub import serve
from proxy.hub.accept import Acceptor
from proxy.hub.home.config import AdminConfig, HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.home.keyring import KeyRing
from proxy.hub.home.sections.database import DatabaseConfig
from proxy.hub.restart.handover import HandoverServer, open_restart_socket
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from proxy.process.config import Address


async def test_the_keys_are_kept_only_once_they_are_this_hubs_and_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did = []

    async def keep(_: KeyRing) -> None:
        did.append("keeps the keys")
        await trio.sleep_forever()

    async def pause() -> None:
        # What the new one has begun before it has the place has its time to show.
        await trio.testing.wait_all_tasks_blocked()
        did.append("the old one pauses")

    monkeypatch.setattr(KeyRing, "run", keep)
    monkeypatch.setattr(KeyRing, "reload", lambda _: did.append("reads the keys"))
    # Nothing of the tests' own is to be kept from the garbage collector.
    monkeypatch.setattr(serve, "settle_later", trio.sleep_forever)
    data = DataDir.open(tmp_path / "data")
    # What a hub that has run leaves.
    data.keys.load_or_make()
    data.pepper()
    Store(data.store_file, org="main", clock=time.time).close()
    anywhere = Address("127.0.0.1", 0)
    config = HubConfig(listen=anywhere, admin=AdminConfig(listen=anywhere), data_dir=data.path)
    lock = data.lock()
    with (
        trio.fail_after(20),
        HubInstances(data.instances_dir).registered("old"),
        open_restart_socket(data) as restart_socket,
        socket.create_server(("127.0.0.1", 0)) as front,
    ):
        listeners = {"front": (str(anywhere), [front])}
        server = HandoverServer(
            data, lock, restart_socket, listeners, "old", pause, lambda: None, lambda _: None
        )
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await serve.run_hub(config, replace=True)

            nursery.start_soon(run)
            await server.hand_over()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    lock.release()
    assert did == ["the old one pauses", "reads the keys", "keeps the keys"]


async def test_a_second_signal_does_not_end_the_last_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_by: list[int] = []
    told: list[str] = []
    closed: list[str] = []
    accept, close = Acceptor.accept_until_stopped, AuditStore.close

    async def be_told(acceptor: Acceptor, signals: AsyncIterator[int], public_url: str) -> bool:
        told.append(public_url)
        os.kill(os.getpid(), signal.SIGINT)
        return await accept(acceptor, signals, public_url)

    def close_slowly(store: AuditStore) -> None:
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
        close(store)
        closed.append("the trail")

    monkeypatch.setattr(Acceptor, "accept_until_stopped", be_told)
    monkeypatch.setattr(AuditStore, "close", close_slowly)
    monkeypatch.setattr(serve, "settle_later", trio.sleep_forever)
    anywhere = Address("127.0.0.1", 0)
    pid_file = tmp_path / "hub.pid"
    config = HubConfig(
        listen=anywhere, admin=AdminConfig(listen=anywhere), data_dir=tmp_path / "data", pid_file=pid_file
    )
    before = signal.signal(signal.SIGTERM, lambda number, _: killed_by.append(number))
    try:
        with trio.fail_after(20):
            status = await serve.run_hub(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 130
    assert closed[-1:] == ["the trail"]
    assert not pid_file.exists()
    assert killed_by == []


async def test_a_client_with_many_addresses_floods_the_trail_no_more_than_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_often(acceptor: Acceptor, signals: AsyncIterator[int], public_url: str) -> bool:
        front = acceptor.front
        for number in range(2 * FIRST):
            address = f"2001:db8::{number}"
            front.recorder.complete(
                front.trail.unauthenticated(Kind.AUTH_FAILED, client_ip=address, note="no")
            )
        return False

    monkeypatch.setattr(Acceptor, "accept_until_stopped", fail_often)
    monkeypatch.setattr(serve, "settle_later", trio.sleep_forever)
    anywhere = Address("127.0.0.1", 0)
    config = HubConfig(listen=anywhere, admin=AdminConfig(listen=anywhere), data_dir=tmp_path / "data")
    with trio.fail_after(20):
        assert await serve.run_hub(config) == 0
    with closing(AuditReader(DataDir(config.data_dir).audit_file)) as reader:
        failures = list(reader.query(Query(kinds=(Kind.AUTH_FAILED,))))
    assert len(failures) == FIRST + 1


async def test_on_one_database_each_machine_has_an_admin_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_database: str
) -> None:
    async def stop(acceptor: Acceptor, signals: AsyncIterator[int], public_url: str) -> bool:
        return False

    monkeypatch.setattr(Acceptor, "accept_until_stopped", stop)
    monkeypatch.setattr(serve, "settle_later", trio.sleep_forever)
    anywhere = Address("127.0.0.1", 0)
    folders = tmp_path / "one", tmp_path / "other"
    for folder in (*folders, *folders):
        config = HubConfig(
            listen=anywhere,
            admin=AdminConfig(listen=anywhere),
            data_dir=folder,
            database=DatabaseConfig(postgres_database, seal_file=tmp_path / "seal.key"),
        )
        with trio.fail_after(20):
            assert await serve.run_hub(config) == 0
    store = Store(PostgresAddress(postgres_database), org="main", clock=time.time)
    with closing(store):
        tokens = store.snapshot().admin_tokens_by_hash
        pepper = store.sealed_secrets().open(SealFile(tmp_path / "seal.key").load()).pepper
    assert {digest: token.name for digest, token in tokens.items()} == {
        hash_key(DataDir(folder).admin.token() or "", pepper): f"local-{DataDir(folder).admin.hub_id()}"
        for folder in folders
    }
