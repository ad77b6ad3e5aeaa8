"""A hub whose directory is in PostgreSQL, up to its listeners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.hub.home.config import AdminConfig, HubConfig
from proxy.hub.home.sections.database import DatabaseConfig
from proxy.hub.relays.registry import Registry
from proxy.hub.resources import Records, open_home, open_records
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.process.config import Address


def config_of(data_dir: Path, database: PostgresAddress | None) -> HubConfig:
    """Return the configuration of a hub, on SQLite without a database."""
    return HubConfig(
        data_dir=data_dir,
        public_url="https://hub.example",
        listen=Address("127.0.0.1", 0),
        admin=AdminConfig(Address("127.0.0.1", 0)),
        database=DatabaseConfig(None if database is None else database.url),
    )


def variables(config: HubConfig) -> dict[str, str]:
    """Return the variables that state the configuration."""
    stated = {"DATA_DIR": str(config.data_dir), "PUBLIC_URL": config.public_url}
    if config.database.url is not None:
        stated["DATABASE_URL"] = config.database.url
    return {f"HAWSE_HUB_{name}": value for name, value in stated.items()}


@asynccontextmanager
async def opened(config: HubConfig) -> AsyncIterator[Records]:
    """Start the hub for the block."""
    async with open_home(config, replace=False) as home, open_records(config, home, Registry()) as records:
        yield records


async def start(config: HubConfig, *teams: str) -> set[str]:
    """Start the hub, add teams, and return all that there are."""
    async with opened(config) as records:
        for team in teams:
            await records.directory.change(lambda store, name=team: store.add_team(name))
        return set(records.directory.current.teams_by_name)
