"""Opens a hub's audit trail where it is: in a file of the data folder, or in the directory's PostgreSQL.

The modules for PostgreSQL are loaded only for a trail there, since their driver is an extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from audit.errors import AuditUnavailable, NoTrail
from audit.mask import Masks
from audit.store import AuditStore, TrailMark
from proxy.hub.home.databases import noted_address
from proxy.hub.home.datadir import DataDir
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from audit.calls import CallReader
    from audit.names import NameReader
    from audit.postgres.calls import PostgresCallReader
    from audit.postgres.retention import PrunablePostgresStore
    from audit.postgres.search import PostgresNameReader, PostgresSearch
    from audit.postgres.store import PostgresStore
    from audit.retention import PrunableStore
    from audit.search.file import FileSearch

TrailPlace: TypeAlias = Path | PostgresAddress


def place_of(data: DataDir) -> TrailPlace:
    """The place of a data folder's trail; raises DataDirError."""
    return noted_address(data) or data.audit_file


def shown(place: TrailPlace) -> str:
    """The place for people."""
    return str(place) if isinstance(place, Path) else "PostgreSQL"


def open_trail(
    place: TrailPlace,
    masks: Masks | None = None,
    *,
    expected: TrailMark | None = None,
    make: bool = True,
    wait_s: float = 0.0,
) -> AuditStore | PostgresStore:
    """Open the trail for writing; raises AuditUnavailable. `wait_s` is for a database that is away."""
    if isinstance(place, Path):
        return AuditStore(place, masks, make=make, expected=expected)
    from audit.postgres.store import PostgresStore

    return PostgresStore(_conninfo(place), masks, wait_s=wait_s, expected=expected)


def open_prunable(place: TrailPlace) -> PrunableStore | PrunablePostgresStore:
    """Open the trail for pruning; raises AuditUnavailable, and NoTrail instead of creating one."""
    if isinstance(place, Path):
        from audit.reader import AuditReader
        from audit.retention import PrunableStore

        AuditReader(place).close()
        return PrunableStore(place)
    from audit.postgres.reader import PostgresReader
    from audit.postgres.retention import PrunablePostgresStore

    PostgresReader(_conninfo(place)).close()
    return PrunablePostgresStore(_conninfo(place), wait_s=0)


def open_names(place: TrailPlace) -> NameReader | PostgresNameReader:
    """Open the trail for reading events and names; raises AuditUnavailable."""
    if isinstance(place, Path):
        from audit.names import NameReader

        return NameReader(place)
    from audit.postgres.search import PostgresNameReader

    return PostgresNameReader(_conninfo(place))


def open_calls(place: TrailPlace) -> CallReader | PostgresCallReader:
    """Open the trail for finding a call; raises AuditUnavailable."""
    if isinstance(place, Path):
        from audit.calls import CallReader

        return CallReader(place)
    from audit.postgres.calls import PostgresCallReader

    return PostgresCallReader(_conninfo(place))


def open_search(place: TrailPlace) -> FileSearch | PostgresSearch:
    """Open the trail for searching and following; raises AuditUnavailable."""
    if isinstance(place, Path):
        from audit.search.file import FileSearch

        return FileSearch(place)
    from audit.postgres.search import PostgresSearch

    return PostgresSearch(_conninfo(place))


def check_place(address: PostgresAddress, expected: TrailMark | None) -> None:
    """Return if the trail can be read, or a start would create it; raises AuditUnavailable."""
    from audit.postgres.reader import PostgresReader

    try:
        PostgresReader(_conninfo(address)).close()
    except NoTrail:
        if expected is not None:
            raise


def _conninfo(address: PostgresAddress) -> Callable[[], str]:
    from proxy.hub.store.engines.postgres import conninfo_of

    def make() -> str:
        try:
            return conninfo_of(address)
        except StoreUnavailableError as error:
            raise AuditUnavailable(str(error)) from error

    return make
