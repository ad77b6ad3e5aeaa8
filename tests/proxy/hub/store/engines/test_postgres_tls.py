"""A role with a password, at a real server with TLS."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import psycopg
import pytest
import trustme

from proxy.hub.home.trails import open_trail
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres import look_at
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from sandbox.demo.processes import free_port
from tests.audit.events import call
from tests.postgres import PostgresServer, required_binaries, serve_postgres

NAME = "db.test"
"""The host in the server's certificate."""
ACCESS = """
local all all trust
hostssl hawse hawse 127.0.0.1/32 scram-sha-256
"""
RELOAD_S = 10.0


@attrs.frozen
class TlsServer:
    """A server with TLS, and the files of a hub that uses it."""

    server: PostgresServer
    port: int
    ca: Path
    other_ca: Path
    password_file: Path

    def address(self, *, host: str = NAME, database: str = "hawse", **options: object) -> PostgresAddress:
        """The database's address by TCP, verified."""
        stated = {"hostaddr": "127.0.0.1", "sslmode": "verify-full", "sslrootcert": self.ca, **options}
        query = "&".join(f"{name}={value}" for name, value in stated.items())
        return PostgresAddress(
            f"postgresql://hawse@{host}:{self.port}/{database}?{query}", self.password_file
        )

    def switch_tls(self, to: str) -> None:
        """Switch it on or off, and return when a new connection finds it so."""
        self.server.execute(f"ALTER SYSTEM SET ssl = {to}")
        self.server.execute("SELECT pg_reload_conf()")
        until_s = time.monotonic() + RELOAD_S
        found = None
        while found != (to,):
            assert time.monotonic() < until_s
            with psycopg.connect(self.server.url()) as connection:
                found = connection.execute("SHOW ssl").fetchone()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """One server for all tests."""
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    authority, other = trustme.CA(), trustme.CA()
    with serve_postgres(required_binaries(), tmp_path_factory.getbasetemp().parent, port=port) as server:
        leaf = authority.issue_cert(NAME)
        owner = server.folder.stat()
        # In the folder of its data, under the names that it has by default.
        for name, blob in (("server.crt", leaf.cert_chain_pems[0]), ("server.key", leaf.private_key_pem)):
            file = server.folder / "data" / name
            file.touch(mode=0o600)
            file.write_bytes(blob.bytes())
            # The server refuses the key of another user.
            os.chown(file, owner.st_uid, owner.st_gid)
        (server.folder / "data" / "pg_hba.conf").write_text(ACCESS)
        for name, issuer in (("ca", authority), ("other-ca", other)):
            issuer.cert_pem.write_to_path(folder / name)
        server.execute("CREATE ROLE hawse LOGIN PASSWORD 'right'")
        server.execute("CREATE DATABASE hawse OWNER hawse")
        (folder / "password").write_text("right\n")
        found = TlsServer(server, port, folder / "ca", folder / "other-ca", folder / "password")
        found.switch_tls("on")
        yield found


def fault_of(address: PostgresAddress) -> str:
    with pytest.raises(StoreUnavailableError) as caught, look_at(address):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said", "next_step"),
    [
        (
            {"sslrootcert": "other_ca"},
            "certificate verify failed",
            "name the file of its CA by sslrootcert in database.url (sslrootcert=system: the system's CAs)",
        ),
        (
            {"sslrootcert": "none"},
            'root certificate file "none" does not exist',
            "name the file of its CA by sslrootcert in database.url (sslrootcert=system: the system's CAs)",
        ),
        (
            {"host": "other.test"},
            f'server certificate for "{NAME}" does not match host name "other.test"',
            "name the host in database.url as its certificate does",
        ),
        (
            {"database": "none"},
            'no pg_hba.conf entry for host "127.0.0.1", user "hawse", database "none", SSL encryption',
            "allow this role in the server's pg_hba.conf, or correct database.url",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_login_that_fails_is_one_line_with_the_next_step(
    tls: TlsServer, options: dict[str, str], said: str, next_step: str
) -> None:
    found = {name: getattr(tls, value, value) for name, value in options.items()}
    fault = fault_of(tls.address(**found))
    assert said in fault
    assert fault.endswith(f": {next_step}")


def test_a_server_without_tls_is_refused(tls: TlsServer) -> None:
    tls.switch_tls("off")
    try:
        fault = fault_of(tls.address())
    finally:
        tls.switch_tls("on")
    assert "server does not support SSL, but SSL was required: turn on TLS in the server (ssl = on)" in fault


def test_a_changed_password_is_used_at_the_next_connection(tls: TlsServer) -> None:
    address = tls.address()
    with (
        closing(Store(address, org="main", clock=lambda: 1000.0)) as store,
        closing(open_trail(address, wait_s=5)) as trail,
    ):
        tls.server.execute("ALTER ROLE hawse PASSWORD 'changed'")
        tls.password_file.write_text("changed\n")
        ended = tls.server.execute(
            "SELECT pg_terminate_backend(pid, 5000), ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) "
            "WHERE usename = 'hawse'"
        )
        # The directory's connection and the trail's.
        assert ended == [(True, True)] * 2
        store.add_team("sre")
        trail.append([call()])
