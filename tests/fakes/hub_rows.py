"""Rows of the table `hubs`, for tests of one hub among others."""

from __future__ import annotations

from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.fakes.databases import run


def add_hub(
    address: PostgresAddress, boot: str, *, hub: str = "", state: str = "serving", age_s: float = 0.0
) -> None:
    """Add a hub whose lease was renewed so long ago; its `stale_s` is 10."""
    columns = {
        "boot": f"'{boot}'",
        "hub": f"'{hub or boot[:8]}'",
        "state": f"'{state}'",
        "renewed_at": f"extract(epoch from now()) - {age_s}",
        **dict.fromkeys(("address", "certificate", "software", "revision", "place", "unreachable"), "''"),
        **dict.fromkeys(("epoch", "links", "applied", "tunnels", "calls", "started_at"), "1"),
        "stale_s": "10",
        "stale_streams_s": "60",
    }
    run(address, f"insert into hubs ({', '.join(columns)}) values ({', '.join(columns.values())})")
