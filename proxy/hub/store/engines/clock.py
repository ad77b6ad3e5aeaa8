"""The clock of a database, as an expression of SQL."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Now(FunctionElement[float]):
    """Epoch seconds of the database's clock, when the statement runs."""

    type = sa.Float()
    inherit_cache = True


@compiles(Now, "sqlite")
def _in_sqlite(element: Now, compiler: SQLCompiler, **options: object) -> str:
    # Exact to a millisecond. `unixepoch` has no fractions before SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Now, "postgresql")
def _in_postgresql(element: Now, compiler: SQLCompiler, **options: object) -> str:
    # Not the transaction's begin: it may have waited for a lock.
    return "extract(epoch FROM clock_timestamp())::float8"
