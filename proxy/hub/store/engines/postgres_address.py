"""Where a hub's PostgreSQL is: its URL, the rules for it, and the file of the role's password."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

import attrs

EXPECTED = "expected postgresql://ROLE@HOST/DATABASE?sslmode=verify-full"
# Options that hold a secret. A URL stands in a configuration that is backed up and shown to others.
SECRETS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)


@attrs.frozen
class PostgresAddress:
    """A database of PostgreSQL, and how the hub's role logs in to it."""

    url: str
    """For libpq, which may name several hosts. Without a password."""
    password_file: Path | None = None
    """Without it, libpq takes the password from PGPASSFILE, or needs none."""
    role: str | None = None
    """Another role than the URL's."""


def fault_of_driver() -> str | None:
    """Return the next step where the driver is missing, which is an extra; else None."""
    try:
        import psycopg  # noqa: F401 - this is the check
    except ImportError:
        # Not `hawse[postgres]`: that name is in no registry, so another package could take it.
        return "needs the package psycopg: pip install 'psycopg[binary]'"
    return None


def fault_of_postgres_url(url: str) -> str | None:
    """Return what is wrong with a URL, or None. Repeats nothing of it, since it may hold a password."""
    fault = fault_of_driver()
    if fault is not None:
        return fault
    from psycopg import ProgrammingError, conninfo

    if not url.startswith(("postgresql://", "postgres://")) or not url.isprintable():
        return EXPECTED
    try:
        stated = conninfo.conninfo_to_dict(url)
    except ProgrammingError:
        return f"libpq cannot read it: {EXPECTED}"
    if SECRETS & stated.keys():
        return "must hold no password: put it into a file, and name that by database.password_file"
    if "service" in stated:
        # It may hold `hostaddr`, which decides where libpq connects.
        return "must name no service, whose file could lead to another host: write what it says into the URL"
    for missing in ("user", "dbname"):
        if not stated.get(missing):
            return f"names no {'role' if missing == 'user' else 'database'}: {EXPECTED}"
    ports = str(stated.get("port") or "").split(",")
    if not all(port == "" or (port.isascii() and port.isdigit() and 0 < int(port) < 65536) for port in ports):
        return "a port is no number from 1 to 65535"
    return _fault_of_hosts(str(stated.get("host") or ""), str(stated.get("hostaddr") or ""), stated)


def _fault_of_hosts(host: str, hostaddr: str, stated: Mapping[str, object]) -> str | None:
    # libpq connects to `hostaddr` where both are given.
    hosts = (hostaddr or host).split(",")
    if not all(hosts):
        return "names no host; a Unix socket is ?host=/run/postgresql"
    if stated.get("sslmode") == "verify-full" or all(map(_is_local, hosts)):
        return None
    return "the server must prove its identity: add sslmode=verify-full (and sslrootcert, for its CA)"


def _is_local(host: str) -> bool:
    """Return whether traffic to the host stays on this machine: a Unix socket, or loopback."""
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
