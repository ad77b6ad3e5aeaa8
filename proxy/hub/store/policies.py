"""The policies in the hub's store: each change is a new bundle, checked as a whole before it is written.

A bundle is a row with all its documents, and the newest is in force. Earlier ones are kept for readers of the
trail, which names the version that decided a call. Each process compiles a bundle once. A stored bundle that
this version of hawse refuses is replaced by one without rules, which allows discovery and nothing else: an
operator can reach the hub to correct it, and no other call is allowed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import attrs
import sqlalchemy as sa

from auth.policy.bundled import switch
from auth.policy.conditions import CelConditions
from auth.policy.document import name_of
from auth.policy.match import Bundle, compile_bundle
from auth.policy.text import PolicyError, Source
from proxy.hub.store.database import Database
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError, StoreUnavailableError
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import shown

# A change a day for half a year; with 100 KB of rules that is 20 MB.
BUNDLES_KEPT = 200

Change = Callable[[dict[str, Source]], None]
"""Changes the documents, keyed by the names of their policies; raises InvalidError, NotFoundError."""


class PolicyFaultsError(InvalidError):
    """Documents that are refused; the message has a line for each fault."""

    def __init__(self, error: PolicyError) -> None:
        super().__init__(str(error))
        self.faults = error.faults


@attrs.frozen
class Proposal:
    """The bundle that a change would make, and what is in force until then."""

    before: Bundle
    after: Bundle
    documents: tuple[str, ...]
    """Those of `before`."""
    proposed: tuple[str, ...]
    """Those of `after`."""


@attrs.frozen
class BundleRow:
    """A stored bundle."""

    version: int
    hash: str
    created_at: float
    documents: tuple[str, ...]


class Policies(Database):
    """The store's policies."""

    _compiled: tuple[BundleRow, Bundle, tuple[str, ...]] | None = None

    def apply_policies(self, sources: Sequence[Source], *, only: bool = False) -> Bundle:
        """Replace the documents of the same names, or with `only` all of them; return the bundle in force.

        Raises InvalidError with all errors, and then nothing has changed. Documents that change nothing make
        no new version, because a pipeline may apply the same documents again and again.
        """
        return self._change_policies(_replace(sources, only=only))

    def propose_policies(self, sources: Sequence[Source], *, only: bool = False) -> Proposal:
        """Return what `apply_policies` would make, and change nothing; raises PolicyFaultsError."""
        with self._read() as connection:
            before = self._read_bundle(connection, [])
            row = self._newest(connection)
            bundle, texts = _changed(row, _replace(sources, only=only))
        return Proposal(before, bundle, row.documents, tuple(texts))

    def remove_policy(self, name: str) -> Bundle:
        """Remove a policy and return the new bundle; raises NotFoundError."""

        def change(documents: dict[str, Source]) -> None:
            _known(documents, name)
            del documents[name]

        return self._change_policies(change)

    def switch_rules(self, name: str, rules: Iterable[str], *, enabled: bool) -> Bundle:
        """Switch rules of a policy on or off, and return the new bundle.

        Raises NotFoundError, InvalidError, and ConflictError when that changes nothing.
        """

        def change(documents: dict[str, Source]) -> None:
            source = before = _known(documents, name)
            for rule in rules:
                try:
                    source = switch(source, rule, enabled=enabled)
                except PolicyError as error:
                    raise InvalidError(error.faults[0].message) from error
            if source.text == before.text:
                raise ConflictError(f"nothing was changed: they are {'on' if enabled else 'off'} already")
            documents[name] = source

        return self._change_policies(change)

    def bundles(self) -> list[BundleRow]:
        """The stored bundles, the newest first."""
        with self._read() as connection:
            rows = connection.execute(
                sa.select(t.policy_bundles).order_by(t.policy_bundles.c.version.desc())
            ).all()
        return [_row(row) for row in rows]

    def bundle(self, version: int) -> BundleRow:
        """Return one stored bundle; raises NotFoundError."""
        with self._read() as connection:
            row = connection.execute(
                sa.select(t.policy_bundles).where(t.policy_bundles.c.version == version)
            ).first()
        if row is None:
            raise NotFoundError(
                f"there is no version {version} of the policies: the last {BUNDLES_KEPT} are kept"
            )
        return _row(row)

    def _read_bundle(self, connection: sa.Connection, faults: list[str]) -> Bundle:
        """The bundle in force, compiled."""
        row = self._newest(connection)
        # Not by its number alone: after a failover that has lost it, another bundle can get that.
        if self._compiled is None or self._compiled[0] != row:
            fault: tuple[str, ...] = ()
            try:
                bundle = _compile([Source(text) for text in row.documents], version=row.version)
            except InvalidError as error:
                bundle = _compile((), version=row.version)
                fault = (f"version {row.version} of the policies allows nothing, for it is refused: {error}",)
            self._compiled = (row, bundle, fault)
        faults += self._compiled[2]
        return self._compiled[1]

    def _change_policies(self, change: Change) -> Bundle:
        with self._change() as connection:
            row = self._newest(connection)
            bundle, texts = _changed(row, change)
            if texts == list(row.documents):
                return self._read_bundle(connection, [])
            self._write_bundle(connection, bundle, texts)
        return bundle

    def _newest(self, connection: sa.Connection) -> BundleRow:
        """The bundle in force. A migration wrote the first one, and the newest is never deleted."""
        newest = sa.select(t.policy_bundles).order_by(t.policy_bundles.c.version.desc()).limit(1)
        row = connection.execute(newest).first()
        if row is None:
            raise StoreUnavailableError("the store holds no policies: restore a backup")
        return _row(row)

    def _write_bundle(self, connection: sa.Connection, bundle: Bundle, texts: list[str]) -> None:
        bundles = t.policy_bundles.c
        connection.execute(
            sa.insert(t.policy_bundles).values(
                version=bundle.version, hash=bundle.hash, created_at=self._clock(), documents=texts
            )
        )
        connection.execute(
            sa.delete(t.policy_bundles).where(bundles.version <= bundle.version - BUNDLES_KEPT)
        )


def _replace(sources: Sequence[Source], *, only: bool) -> Change:
    """Return the change that replaces documents of the same names, or all; raises InvalidError."""
    if not sources:
        raise InvalidError("the input contains no policy")

    def change(documents: dict[str, Source]) -> None:
        # Compiled alone first, so that errors have their positions in the given files.
        _compile(sources)
        if only:
            documents.clear()
        documents.update({name_of(source): source for source in sources})

    return change


def _changed(row: BundleRow, change: Change) -> tuple[Bundle, list[str]]:
    """Return the bundle that a change makes of a stored one, and its documents."""
    documents = {name_of(source): source for source in map(Source, row.documents)}
    change(documents)
    texts = [source.text.strip("\n") + "\n" for _, source in sorted(documents.items())]
    return _compile([Source(text) for text in texts], version=row.version + 1), texts


def _compile(sources: Iterable[Source], *, version: int = 0) -> Bundle:
    """Compile documents; raises PolicyFaultsError."""
    try:
        return compile_bundle(sources, CelConditions(time.thread_time), version=version)
    except PolicyError as error:
        raise PolicyFaultsError(error) from error


def _row(row: sa.Row[tuple[object, ...]]) -> BundleRow:
    return BundleRow(row.version, row.hash, row.created_at, tuple(row.documents))


def _known(documents: dict[str, Source], name: str) -> Source:
    if name not in documents:
        there = ", ".join(sorted(documents)) or "none"
        raise NotFoundError(f"there is no policy {shown(name)}, only {there}")
    return documents[name]
