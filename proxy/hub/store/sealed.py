"""The hub's signing keys and its pepper in the database, sealed by a key that is not there.

A hub whose directory is in PostgreSQL keeps them there; in SQLite the tables are empty. A change of the keys
is a change of the directory, so that every hub reads it with its next snapshot.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import attrs
import sqlalchemy as sa

from auth.apikey import PEPPER_BYTES
from auth.keys import SigningKey
from proxy.hub.store.database import Database
from proxy.hub.store.engines.errors import ConflictError
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.secrets.sealing import Seal, SealError
from proxy.hub.store.secrets.signing_keys import KeyState, SealedKey, SealedKeys, SigningKeys, row_of

_PEPPER = "pepper"
_PEPPER_ROW = f"secrets/{_PEPPER}"


@attrs.frozen
class HubSecrets:
    """All secrets that a hub cannot make again."""

    pepper: bytes = attrs.field(repr=False)
    keys: SigningKeys

    @classmethod
    def generate(cls) -> HubSecrets:
        """Make those of a new hub."""
        key = SigningKey.generate()
        return cls(secrets.token_bytes(PEPPER_BYTES), SigningKeys(key, (key,)))


@attrs.frozen
class SealedSecrets:
    """The rows of the secrets."""

    pepper: str | None = attrs.field(repr=False)
    keys: SealedKeys

    @property
    def missing(self) -> bool:
        """Whether there are none, as before the first start."""
        return self.pepper is None and not self.keys.keys

    def open(self, seal: Seal) -> HubSecrets:
        """Return the secrets; raises SealError."""
        if self.pepper is None:
            raise SealError(f"{_PEPPER_ROW} is missing")
        pepper = seal.open(self.pepper, _PEPPER_ROW)
        if len(pepper) != PEPPER_BYTES:
            raise SealError(f"{_PEPPER_ROW} is no pepper")
        return HubSecrets(pepper, self.keys.open(seal))

    def is_current(self, seal: Seal) -> bool:
        """Whether the first key has sealed all of them."""
        values = [row.sealed for row in self.keys.keys]
        return all(map(seal.is_current, [*values, self.pepper or ""]))


class Sealed(Database):
    """The secrets in the database."""

    def sealed_secrets(self) -> SealedSecrets:
        """Read the secrets."""
        with self._read() as connection:
            return read_secrets(connection)

    def put_secrets(self, made: HubSecrets, seal: Seal) -> SealedSecrets:
        """Write a hub's first secrets, unless another hub has done so meanwhile; returns what is there."""
        with self._change() as connection:
            if read_secrets(connection).missing:
                write_secrets(connection, made, seal)
            return read_secrets(connection)

    def change_signing_keys(self, change: Callable[[SigningKeys], SigningKeys], seal: Seal) -> None:
        """Change the keys, without a change by another hub in between; raises SealError."""
        with self._change() as connection:
            before = read_signing_keys(connection)
            _write_signing_keys(connection, change(before.open(seal)), seal, before)

    def reseal(self, seal: Seal) -> None:
        """Seal all secrets by the first key; raises SealError."""
        with self._change() as connection:
            found = read_secrets(connection).open(seal)
            for table in (t.secrets, t.signing_keys, t.succession):
                connection.execute(sa.delete(table))
            write_secrets(connection, found, seal)


def read_secrets(connection: sa.Connection) -> SealedSecrets:
    """Read the secrets in the connection's transaction."""
    pepper = connection.scalar(sa.select(t.secrets.c.sealed).where(t.secrets.c.name == _PEPPER))
    return SealedSecrets(pepper, read_signing_keys(connection))


def read_signing_keys(connection: sa.Connection) -> SealedKeys:
    """Read the signing keys in the connection's transaction."""
    columns = t.signing_keys.c
    rows = connection.execute(sa.select(columns.kid, columns.state, columns.sealed).order_by(columns.kid))
    keys = tuple(SealedKey(kid, KeyState(state), sealed) for kid, state, sealed in rows)
    statements = sa.select(t.succession.c.statement).order_by(t.succession.c.number)
    return SealedKeys(keys, tuple(connection.scalars(statements)))


def write_secrets(connection: sa.Connection, made: HubSecrets, seal: Seal) -> None:
    """Write all secrets, in a transaction that changes the directory.

    Raises ConflictError if there are any.
    """
    if not read_secrets(connection).missing:
        raise ConflictError("the database has the signing keys and the pepper of a hub already")
    sealed = seal.seal(made.pepper, _PEPPER_ROW)
    connection.execute(sa.insert(t.secrets).values(name=_PEPPER, sealed=sealed))
    _write_signing_keys(connection, made.keys, seal, SealedKeys())


def _write_signing_keys(connection: sa.Connection, keys: SigningKeys, seal: Seal, before: SealedKeys) -> None:
    """Change the tables from `before` to exactly these keys."""
    table, known = t.signing_keys, {row.kid: row.state for row in before.keys}
    for kid in known.keys() - {key.kid for key in keys.all}:
        connection.execute(sa.delete(table).where(table.c.kid == kid))
    for key in keys.all:
        state = keys.state_of(key.kid)
        if key.kid not in known:
            sealed = seal.seal(key.to_pem(), row_of(key.kid))
            row = {"kid": key.kid, "state": state, "jwk": key.public.to_jwk(), "sealed": sealed}
            connection.execute(sa.insert(table).values(row))
        elif state is not known[key.kid]:
            connection.execute(sa.update(table).where(table.c.kid == key.kid).values(state=state))
    if keys.succession != before.succession:
        connection.execute(sa.delete(t.succession))
        rows = [
            {"number": number, "statement": statement} for number, statement in enumerate(keys.succession)
        ]
        if rows:
            connection.execute(sa.insert(t.succession), rows)
