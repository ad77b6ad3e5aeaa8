from __future__ import annotations

import sys
from pathlib import Path

import pytest

from proxy.hub.home.databases import (
    Move,
    check_databases,
    move_file,
    note_address,
    note_move,
    noted_address,
    noted_move,
)
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.store.engines.postgres_address import PostgresAddress


@pytest.mark.parametrize(
    ("size", "state"), [(None, "missing"), (0, "empty"), (100, r"damaged \(100 bytes are no database\)")]
)
def test_a_store_that_is_gone_is_no_first_start(tmp_path: Path, size: int | None, state: str) -> None:
    data = DataDir.open(tmp_path)
    if size is not None:
        data.store_file.write_bytes(b"x" * size)
    # As after a first start that a full disk has ended.
    check_databases(data)
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    with pytest.raises(DataDirError, match=rf"hub\.db is {state}, .*: restore a backup, or remove "):
        check_databases(data)
    data.store_file.write_bytes(b"x" * 512)
    check_databases(data)


def test_a_trail_that_is_empty_is_no_new_one(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    data.store_file.write_bytes(b"x" * 512)
    # As when it was moved away.
    check_databases(data)
    for content, state in ((b"", "empty"), (b"x", "damaged")):
        data.audit_file.write_bytes(content)
        with pytest.raises(DataDirError, match=rf"audit\.db is {state}.*: put a copy in its place"):
            check_databases(data)
    data.audit_file.write_bytes(b"x" * 512)
    check_databases(data)


def test_a_move_that_cannot_be_read_keeps_a_hub_from_starting(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    data.store_file.write_bytes(b"x" * 512)
    move = Move("2026-12-01", PostgresAddress("postgresql://hawse@localhost/hawse", tmp_path / "password"))
    note_move(data, move)
    assert noted_move(data) == move
    for damaged in ("", "{}", '{"url": "x", "password_file": null}'):
        move_file(data).write_text(damaged)
        for in_postgres in (True, False):
            with pytest.raises(DataDirError, match="moved: damaged; remove it to start on"):
                check_databases(data, in_postgres=in_postgres)


def test_an_address_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    address = PostgresAddress("postgresql://hawse@localhost/hawse", tmp_path / "password")
    note_address(data, address)
    assert noted_address(data) == address
    for damaged in ("", "{}", "[]", '{"url": 1}'):
        data.address_file.write_text(damaged)
        with pytest.raises(DataDirError, match="database: damaged"):
            noted_address(data)


def test_without_the_driver_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDir.open(tmp_path / "hub")
    note_address(data, PostgresAddress("postgresql://hawse@localhost/hawse"))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DataDirError, match=r"hub/database needs the package psycopg: pip install 'psycopg"):
        noted_address(data)
