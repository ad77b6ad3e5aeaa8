from __future__ import annotations

import sys

import pytest

from proxy.hub.store.engines.postgres_address import fault_of_postgres_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://hawse@db.example/hawse?sslmode=verify-full",
        "postgresql://hawse@a.example,b.example:5433/hawse?sslmode=verify-full&sslrootcert=system",
        "postgres://hawse@127.0.0.1/hawse",
        "postgresql://hawse@[::1]:5432/hawse",
        "postgresql://hawse@localhost,127.0.0.2/hawse",
        "postgresql://hawse@/hawse?host=/run/postgresql",
        "postgresql://hawse@%2Frun%2Fpostgresql/hawse",
        "postgresql://hawse@db.example/hawse?hostaddr=127.0.0.1",
    ],
)
def test_a_url_that_can_be_used(url: str) -> None:
    assert fault_of_postgres_url(url) is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "expected postgresql://"),
        ("sqlite:///x", "expected postgresql://"),
        ("host=db.example dbname=SECRET", "expected postgresql://"),
        ("postgresql://hawse@db.example/hawse\n", "expected postgresql://"),
        ("postgresql://SECRET@db.example/hawse?SECRET=1", "libpq cannot read it"),
        ("postgresql://SECRET@%zz/hawse", "libpq cannot read it"),
        ("postgresql://hawse:SECRET@db.example/hawse?sslmode=verify-full", "no password"),
        ("postgresql://hawse@db.example/hawse?password=SECRET&sslmode=verify-full", "no password"),
        ("postgresql://hawse@db.example/hawse?sslpassword=SECRET&sslmode=verify-full", "no password"),
        ("postgresql://hawse@localhost/hawse?service=SECRET", "must name no service"),
        ("postgresql://db.example/hawse?sslmode=verify-full", "names no role"),
        ("postgresql://hawse@db.example?sslmode=verify-full", "names no database"),
        ("postgresql://hawse@db.example:SECRET/hawse", "a port is no number"),
        ("postgresql://hawse@db.example:65536/hawse", "a port is no number"),
        ("postgresql://hawse@/hawse", "names no host"),
        ("postgresql://hawse@127.0.0.1,/hawse", "names no host"),
        ("postgresql://hawse@db.example/hawse", "add sslmode=verify-full"),
        ("postgresql://hawse@db.example/hawse?sslmode=require", "add sslmode=verify-full"),
        ("postgresql://hawse@db.example/hawse?sslmode=verify-ca", "add sslmode=verify-full"),
        ("postgresql://hawse@127.0.0.1,db.example/hawse", "add sslmode=verify-full"),
        ("postgresql://hawse@localhost/hawse?hostaddr=192.0.2.1", "add sslmode=verify-full"),
        ("postgresql://hawse@localhost.example/hawse", "add sslmode=verify-full"),
    ],
)
def test_what_is_wrong_with_a_url_is_told_without_it(url: str, told: str) -> None:
    fault = fault_of_postgres_url(url)
    assert fault is not None
    assert told in fault
    assert "SECRET" not in fault


def test_without_the_driver_the_fault_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    told = "needs the package psycopg: pip install 'psycopg[binary]'"
    assert fault_of_postgres_url("postgresql://hawse@localhost/hawse") == told
