"""Brings the hub's database to the shape that this version knows, from inside the package.

`env.py` and `versions/` are what Alembic expects; there is no alembic.ini, since an operator never runs
Alembic by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import sqlalchemy as sa

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0008"
"""The newest of `versions/`."""
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


class MigrationNeededError(Exception):
    """The database has an older shape, and another process is at work in that shape."""


def migrate(connection: sa.Connection, *, shared: bool = False) -> None:
    """Run what is missing, in the connection's transaction: all of it or nothing.

    Raises MigrationError, and MigrationNeededError if something is missing in a database that is `shared`
    with another process.
    """
    if not _is_up_to_date(connection):
        _upgrade(connection, shared=shared)


def is_older(connection: sa.Connection) -> bool:
    """Whether the database has an older shape, or none yet; raises MigrationError. Changes nothing."""
    return not _is_up_to_date(connection) and _Found.of(connection).is_older


def _is_up_to_date(connection: sa.Connection) -> bool:
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    return connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [HEAD]


@attrs.frozen
class _Found:
    """The revision of a database, which this version knows."""

    config: Config
    revision: str | None
    is_older: bool

    @classmethod
    def of(cls, connection: sa.Connection) -> _Found:
        """Look; raises MigrationError for a revision that is not known."""
        # A sixth of the time and memory of a hub's start, which a database that is up to date need not cost.
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        # ConfigParser would read a % in the path as the start of an interpolation.
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        scripts = ScriptDirectory.from_config(config)
        known = {script.revision for script in scripts.walk_revisions()}
        heads = MigrationContext.configure(connection).get_current_heads()
        if len(heads) > 1:
            raise MigrationError(f"the database is at several revisions: {', '.join(sorted(heads))}")
        found = heads[0] if heads else None
        if found is not None and found not in known:
            raise MigrationError(f"the database is at revision {found}, which this version does not know")
        return cls(config, found, found != scripts.get_current_head())


def _upgrade(connection: sa.Connection, *, shared: bool) -> None:
    found = _Found.of(connection)
    if found.is_older:
        from alembic import command

        if shared:
            raise MigrationNeededError(f"the database is at revision {found.revision}")
        command.upgrade(found.config, "head")
