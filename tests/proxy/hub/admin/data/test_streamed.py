"""Backups that are sent over the admin API."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest
import trio

from proxy.hub.admin.data.backup import pack
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.home.databases import note_address
from proxy.hub.home.datadir import DataDir
from proxy.hub.membership.spread import Spread
from proxy.hub.store.engines.errors import ConflictError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.fakes.admin import Bench


async def test_a_backup_is_a_whole_archive(bench: Bench) -> None:
    reply = await bench.ask("POST", "/v1/backup")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-tar")
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        assert {"hawse-backup.json", "hub.db"} <= {*tar.getnames()}
    assert bench.recorder.events[-1].note == f"all secrets, {len(reply.body)} bytes"


async def test_one_backup_is_made_at_a_time(bench: Bench, tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    first = await backups.make()
    with pytest.raises(ConflictError, match="another backup is under way"):
        await backups.make()
    # A client that leaves early leaves no space taken.
    assert len(await first.receive()) > 0
    await first.aclose()
    again = await backups.make()
    await again.aclose()


async def test_a_client_that_leaves_while_hubs_follow_another_change_leaves_no_backup(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack_meanwhile(data_dir: Path) -> BinaryIO:
        trio.from_thread.run(bench.ok, "POST", "/v1/teams", {"name": "meanwhile"})
        monkeypatch.setattr(Spread, "wait", no_wait)
        return pack(data_dir)

    async def no_wait(spread: Spread) -> NoReturn:
        raise AssertionError("the backup is open, and no task owns it")

    monkeypatch.setattr("proxy.hub.admin.data.streamed.pack", pack_meanwhile)
    assert (await bench.ask("POST", "/v1/backup")).status == 200


async def test_a_backup_that_cannot_be_made_is_refused_and_the_next_is_tried(
    bench: Bench, tmp_path: Path
) -> None:
    data = DataDir(tmp_path)
    note_address(data, PostgresAddress("postgresql://hawse@localhost/hawse"))
    for _ in range(2):
        reply = await bench.ask("POST", "/v1/backup")
        assert (reply.status, reply.json["error"]["code"]) == (409, "conflict")
        assert "back that up with pg_dump" in reply.json["error"]["message"]
    data.address_file.unlink()
    assert (await bench.ask("POST", "/v1/backup")).status == 200
    assert not [name for name in os.listdir(data.path) if name.startswith(".hawse-backup")]
