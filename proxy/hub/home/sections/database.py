"""The configuration of the hub's database: its keys, their defaults, and their rules."""

from __future__ import annotations

from pathlib import Path

import attrs

from proxy.hub.home.files.seal_file import fault_of_seal_file
from proxy.hub.store.engines.postgres_address import PostgresAddress, fault_of_postgres_url
from proxy.hub.store.versions.snapshot_age import STALE_S, STALE_STREAMS_S
from proxy.process.config import fault_of_file

# A server that does not answer is given up after 2 s, so below 5 s one lost answer may refuse calls.
STALE_MIN_S, STALE_MAX_S = 2, 3600
STALE_STREAMS_MAX_S = 86_400


@attrs.frozen
class DatabaseConfig:
    """The database of the directory; without a URL that is SQLite, in the data folder."""

    url: str | None = None
    """A database of PostgreSQL, without a password."""
    password_file: Path | None = None
    accept_rollback: bool = False
    """Whether a hub goes on where the database has lost changes, without `hawse admin database accept`."""
    stale_s: int = STALE_S
    """How long the hub begins calls by what the database has last confirmed. For SQLite too."""
    stale_streams_s: int = STALE_STREAMS_S
    """The same for calls that run."""
    seal_file: Path | None = None
    """The keys that the secrets in PostgreSQL are sealed with; None: `seal.key` in the data folder."""

    @property
    def address(self) -> PostgresAddress | None:
        """The database of PostgreSQL, if there is one."""
        return None if self.url is None else PostgresAddress(self.url, self.password_file)


def faults_of_database(database: DatabaseConfig) -> list[str]:
    """Return the violations of the rules that a type cannot express."""
    return [*_faults_of_location(database), *_faults_of_staleness(database)]


def _faults_of_location(database: DatabaseConfig) -> list[str]:
    file = database.password_file
    if database.url is None:
        stated = {
            "password_file": file is not None,
            "accept_rollback": database.accept_rollback,
            "seal_file": database.seal_file is not None,
        }
        return [f"database.{name}: goes with database.url only" for name, given in stated.items() if given]
    fault = fault_of_postgres_url(database.url)
    if fault is not None:
        return [f"database.url: {fault}"]
    faults = []
    fault = None if file is None else fault_of_file(file)
    if fault is not None:
        faults.append(f"database.password_file: {fault}")
    fault = None if database.seal_file is None else fault_of_seal_file(database.seal_file)
    if fault is not None:
        faults.append(f"database.seal_file: {fault}")
    return faults


def _faults_of_staleness(database: DatabaseConfig) -> list[str]:
    faults = []
    if not STALE_MIN_S <= database.stale_s <= STALE_MAX_S:
        faults.append(f"database.stale_s: expected {STALE_MIN_S} to {STALE_MAX_S} seconds")
    elif not database.stale_s <= database.stale_streams_s <= STALE_STREAMS_MAX_S:
        bounds = f"{database.stale_s} (database.stale_s) to {STALE_STREAMS_MAX_S} seconds"
        faults.append(f"database.stale_streams_s: expected {bounds}")
    return faults
