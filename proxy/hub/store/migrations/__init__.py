"""Brings the hub's database to the shape that this version knows, from inside the package.

`env.py` and `versions/` are what Alembic expects; there is no alembic.ini, since an operator never runs
Alembic by hand. Both engines share the revisions; those up to BEFORE_POSTGRESQL are for SQLite alone.

A revision repeats the tables and statements that it needs. If it shared them with `tables` or with another
revision, a later change there would change what it does.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import sqlalchemy as sa

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

HEAD: Final = "0018"
"""The newest of `versions/`."""
BEFORE_POSTGRESQL: Final = "0008"
"""The last revision that is for SQLite alone; the next one makes all its tables on PostgreSQL."""
CONSTRAINT_NAMES: Final = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
"""Constraints have names, so that a later migration can drop one on any database."""


class MigrationError(Exception):
    """The database was written by a newer version, or by something else."""


class OlderHubError(Exception):
    """A hub runs that could not use the tables any more."""


class MigrationNeededError(Exception):
    """The database has an older shape, and another process is at work in that shape."""


def migrate(connection: sa.Connection, *, shared: bool = False) -> None:
    """Run what is missing, in the connection's transaction: all of it or nothing.

    Raises MigrationError, OlderHubError, and MigrationNeededError if something is missing in a database that
    is `shared` with another process.
    """
    if not _is_up_to_date(connection):
        _upgrade(connection, shared=shared)


def is_older(connection: sa.Connection) -> bool:
    """Whether the database has an older shape, or none yet; raises MigrationError. Changes nothing."""
    return not _is_up_to_date(connection) and _Found.of(connection).is_older


def read_revision(connection: sa.Connection) -> str | None:
    """Return the revision of the database; None before it has tables."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT max(version_num) FROM alembic_version"))
    return revision


def _is_up_to_date(connection: sa.Connection) -> bool:
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [HEAD]


def load_if_older(engine: sa.Engine) -> None:
    """Load what `is_older` and `migrate` need for a database that is not up to date.

    It takes 0.1 s of CPU, without bytecode 0.4 s. On a slow core that is longer than the server lets a
    transaction idle, so this ends its own transaction first.
    """
    with engine.begin() as connection:
        if _is_up_to_date(connection):
            return
    load()


def load() -> None:
    """Load Alembic and the revisions, once a process."""
    for name in ("alembic.command", "alembic.runtime.migration"):
        import_module(name)
    _scripts()


def _config() -> Config:
    # A sixth of the time and memory of a hub's start, which a database that is up to date need not cost.
    from alembic.config import Config

    config = Config()
    # ConfigParser would read a % in the path as the start of an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


@cache
def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    # It loads the revisions when they are first read.
    scripts.get_current_head()
    return scripts


@attrs.frozen
class _Found:
    """The revision of a database, which this version can use."""

    config: Config
    revision: str | None
    is_older: bool

    @classmethod
    def of(cls, connection: sa.Connection) -> _Found:
        """Look; raises MigrationError for a revision that is not known and not compatible."""
        from alembic.runtime.migration import MigrationContext

        config = _config()
        config.attributes["connection"] = connection
        scripts = _scripts()
        known = {script.revision for script in scripts.walk_revisions()}
        heads = MigrationContext.configure(connection).get_current_heads()
        if len(heads) > 1:
            raise MigrationError(f"the database is at several revisions: {', '.join(sorted(heads))}")
        found = heads[0] if heads else None
        if found is not None and found not in known:
            _refuse_incompatible(connection, found)
            return cls(config, found, is_older=False)
        return cls(config, found, found != scripts.get_current_head())


def _refuse_incompatible(connection: sa.Connection, found: str) -> None:
    """Raise MigrationError unless the newer revision allows this version.

    A revision that only adds leaves `oldest` as it is, so that hubs of two versions can run side by side.
    """
    oldest = None
    if sa.inspect(connection).has_table("directory"):
        oldest = connection.scalar(sa.text("SELECT oldest FROM directory"))
    if oldest is None or oldest > HEAD:
        needs = "" if oldest is None else f" (it needs {oldest}, and this version has {HEAD})"
        raise MigrationError(f"the database is at revision {found}, which this version does not know{needs}")


def _upgrade(connection: sa.Connection, *, shared: bool) -> None:
    found = _Found.of(connection)
    if found.is_older:
        from alembic import command

        if shared:
            raise MigrationNeededError(f"the database is at revision {found.revision}")
        if found.revision is None and connection.dialect.name == "postgresql":
            command.stamp(found.config, BEFORE_POSTGRESQL)
        command.upgrade(found.config, "head")
        refuse_older_hubs(connection)


def refuse_older_hubs(connection: sa.Connection) -> None:
    """Raise OlderHubError if a hub runs that is older than the tables' `oldest`."""
    if connection.dialect.name != "postgresql":
        return
    older = connection.execute(sa.text(_OLDER_HUBS)).first()
    if older is not None:
        raise OlderHubError(
            f"hub {older.hub} ({older.software}) runs on it and knows revision {older.revision}, but from "
            f"now on {older.oldest} is needed: replace that hub by a newer version first"
        )


_OLDER_HUBS = (
    "SELECT hub, software, revision, oldest FROM hubs, directory "
    "WHERE state IN ('serving', 'leaving') AND revision < oldest"
)
