from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli.hub import hub
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.store.engines import postgres as postgres_engine
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.migrations import HEAD
from proxy.hub.store.store import Store
from tests.fakes.databases import run as run_sql
from tests.postgres import PostgresServer


def run(folder: Path, **environment: str) -> Result:
    """Run `hawse hub`, which must fail to start, on its own data folder."""
    settings = {
        "PUBLIC_URL": "https://hub.example",
        "DATA_DIR": str(folder / "hub"),
        "LISTEN": "127.0.0.1:0",
        "ADMIN_LISTEN": "127.0.0.1:0",
    }
    settings |= environment
    env = {f"HAWSE_HUB_{name}": value for name, value in settings.items()}
    result = CliRunner().invoke(hub, [], env={"HAWSE_HUB_CONFIG": None, **env})
    assert result.exit_code == 1
    assert result.stdout == ""
    return result


def test_faults_of_the_configuration_are_listed(tmp_path: Path) -> None:
    result = run(tmp_path, ORG="system", AUDIT_MASK="x*")
    assert result.stderr.splitlines()[0] == "hawse: the hub's configuration has faults:"
    assert result.stderr.splitlines()[2:] == [
        "  audit.mask: number 1 matches the empty text, so it would mask everything"
    ]
    assert result.stderr.splitlines()[1].startswith("  org: ")
    assert not (tmp_path / "hub").exists()


def test_an_address_in_use_ends_the_hub_by_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for listener, stated in (("LISTEN", "listen"), ("ADMIN_LISTEN", "admin.listen")):
            result = run(tmp_path, **{listener: address})
            assert result.stderr.splitlines()[-1] == (
                f"hawse: the hub cannot run: cannot listen on {address} ({stated}): Address already in use: "
                f"end what listens there, or give {stated} another port"
            )
            assert "Traceback" not in result.stderr


def test_a_hub_for_others_that_calls_itself_localhost_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "hub").touch()
    warned = "it listens on 0.0.0.0:8443 for other machines, but its public_url is {}: set public_url"
    for url, count in (("https://localhost:8443", 1), ("https://hub.example", 0)):
        result = run(tmp_path, LISTEN="0.0.0.0:8443", PUBLIC_URL=url)
        assert result.stderr.count(warned.format(url)) == count


def test_a_data_folder_that_others_can_read_ends_the_hub_by_one_line(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir(mode=0o755)
    result = run(tmp_path)
    assert result.stderr.startswith("hawse: the hub cannot run: ")
    assert "chmod 700" in result.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hub.lock", "cannot write {}: Is a directory: move that folder away"),
        (
            "hub.db",
            "cannot open {}: Is a directory: "
            "it, its -wal and its -shm have to be files that this user can write",
        ),
        (
            "audit.db",
            "the audit trail {} is unavailable: Is a directory: "
            "it, its -wal and its -shm have to be files that this user can write",
        ),
    ],
)
def test_a_folder_in_a_files_place_is_named(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "hub").mkdir(mode=0o700)
    path = tmp_path / "hub" / name
    if name == "hub.db":
        # The pepper and the keys are then left from an earlier run.
        data = DataDir.open(tmp_path / "hub")
        data.pepper()
        data.keys.load_or_make()
    path.mkdir()
    result = run(tmp_path)
    assert result.stderr.splitlines()[-1] == f"hawse: the hub cannot run: {told.format(path)}"
    assert "Traceback" not in result.stderr


def test_a_store_that_is_gone_ends_the_hub_by_one_line(tmp_path: Path) -> None:
    DataDir.open(tmp_path / "hub").admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    result = run(tmp_path)
    assert result.stderr.startswith(f"hawse: the hub cannot run: {tmp_path / 'hub' / 'hub.db'} is missing, ")
    assert len(result.stderr.splitlines()) == 1


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for name in ("hub.pem", "hub.key"):
        (tmp_path / name).write_text("nothing")
    result = run(tmp_path, TLS_CERTIFICATE=str(tmp_path / "hub.pem"), TLS_KEY=str(tmp_path / "hub.key"))
    assert result.stderr.startswith(f"hawse: the hub cannot run: tls.certificate: {tmp_path / 'hub.pem'}: ")
    assert result.stderr.endswith(": it holds no certificate in PEM\n")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"DATABASE_URL": "postgresql://hawse:SECRET@localhost/hawse"},
            "  database.url: must hold no password",
        ),
        ({"DATABASE_URL": "postgresql://hawse@db.example/hawse"}, "  database.url: the server must prove"),
        ({"DATABASE_PASSWORD_FILE": "SECRET"}, "  database.password_file: goes with database.url only"),
        (
            {"DATABASE_URL": "postgresql://hawse@127.0.0.1:1/hawse", "DATABASE_PASSWORD_FILE": "SECRET"},
            "  database.password_file: cannot be read: No such file or directory, looked for in ",
        ),
        (
            {"DATABASE_URL": "postgresql://hawse@127.0.0.1:1/hawse"},
            "hawse: the hub cannot run: cannot use the PostgreSQL database: connection failed: ",
        ),
    ],
)
def test_a_database_that_cannot_be_used_ends_the_hub_by_one_line(
    tmp_path: Path, settings: dict[str, str], told: str
) -> None:
    result = run(tmp_path, **settings)
    assert result.stderr.splitlines()[-1].startswith(told)
    assert "SECRET" not in result.stderr
    assert not (tmp_path / "hub").exists()


def test_a_database_that_refuses_the_hub_ends_it_by_one_line_and_nothing_is_changed(
    tmp_path: Path, postgres: PostgresServer, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = PostgresAddress(postgres_database)
    Store(address, org="main", clock=time.time).close()
    password = tmp_path / "password"
    password.write_text("WRONG\n")
    postgres.execute("create role matrix login password 'right' in role by_password")
    postgres.execute("create role rightless login")

    def told(role: str, **settings: str) -> str:
        before = run_sql(address, "select version, nonce, oldest from directory")
        result = run(tmp_path, DATABASE_URL=postgres_database.replace("postgres@", f"{role}@"), **settings)
        assert not (tmp_path / "hub").exists()
        assert run_sql(address, "select version, nonce, oldest from directory") == before
        [line] = result.stderr.splitlines()
        assert "WRONG" not in line
        return line.removeprefix("hawse: the hub cannot run: ")

    try:
        assert told("matrix", DATABASE_PASSWORD_FILE=str(password)).endswith(
            'password authentication failed for user "matrix": '
            "write the role's password into database.password_file, or into PGPASSFILE"
        )
        assert told("rightless").endswith(
            "permission denied for table alembic_version: "
            "run `hawse admin database upgrade --owner OWNER` for the owner of its tables"
        )
        with monkeypatch.context() as patch:
            patch.setattr(postgres_engine, "wall_clock", lambda: time.time() + 31)
            assert told("postgres") == (
                "the clock of this machine is 31 s ahead of that of the PostgreSQL database: "
                "set the wrong one by NTP"
            )
        run_sql(
            address, "update alembic_version set version_num = '9999'", "update directory set oldest = '9998'"
        )
        assert told("postgres") == (
            "cannot use the PostgreSQL database: the database is at revision 9999, which this version does "
            f"not know (it needs 9998, and this version has {HEAD}); "
            "run the version that wrote it, or restore a backup"
        )
    finally:
        for role in ("matrix", "rightless"):
            postgres.execute(f"drop role {role}")


def test_a_database_that_is_away_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir(mode=0o700)
    result = run(tmp_path, DATABASE_URL="postgresql://hawse@127.0.0.1:1/hawse")
    told = result.stderr.splitlines()[-1]
    assert told.startswith(
        "hawse: the hub cannot run: cannot use the PostgreSQL database: connection failed: "
    )
