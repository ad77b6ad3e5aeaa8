"""Two hubs that use the signing keys of one database: each verifies what the other signs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import attrs
import pytest
import sqlalchemy as sa
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auth.key_rotation import TrustedKeys
from auth.signed import open_signed, sign
from proxy.hub.home import keyring
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.keyring import OVERLAP_S, KeyRing
from proxy.hub.home.sealed_secrets import SealedKeyring, open_secrets
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.sealed import HubSecrets, read_signing_keys
from proxy.hub.store.secrets.signing_keys import KeyState
from proxy.hub.store.store import Store
from proxy.hub.store.versions.version import read_version

T = TypeVar("T")
HUB = "https://hub.example"
START = 1_800_000_000.0


def token_of(ring: KeyRing) -> str:
    return sign(ring.current.active, "test+jwt", {})


def is_known(token: str, ring: KeyRing) -> bool:
    def find(kid: str) -> Any:
        found = ring.current.public.get(kid)
        assert found is not None, f"key {kid} is not known"
        return found

    open_signed(token, find, "test+jwt")
    return True


@asynccontextmanager
async def opened(database: Location, file: SealFile) -> AsyncIterator[tuple[Directory, HubSecrets]]:
    """The directory of a hub, and its secrets as its start opens them."""
    async with open_directory(database, org="main", clock=lambda: START) as directory:
        yield directory, await directory.change(lambda store: open_secrets(store, None, file))


async def alone() -> None:
    """No other hub has to have this one's snapshot."""


def ring_on(
    directory: Directory,
    file: SealFile,
    on_rotation: Callable[[], None] = lambda: None,
    spread: Callable[[], Awaitable[None]] = alone,
) -> KeyRing:
    source = SealedKeyring(directory, file, spread)
    return KeyRing(source, issuer=HUB, clock=lambda: START, on_rotation=on_rotation)


async def publish(ring: KeyRing) -> None:
    """Make the first step of a rotation alone."""
    await ring._change(ring._published)


async def test_a_hub_verifies_what_the_other_signs_at_each_step(database: Location, tmp_path: Path) -> None:
    file = SealFile(tmp_path / "seal.key")
    announced: list[str] = []
    async with opened(database, file) as (one, _), opened(database, file) as (other, _):

        def following(directory: Directory, name: str) -> KeyRing:
            ring = ring_on(directory, file, lambda: announced.append(f"{name} {ring.current.active.kid}"))
            directory.on_change(ring.follow)
            return ring

        first, second = following(one, "first"), following(other, "second")
        old = first.current.active.kid
        assert second.current.active.kid == old

        await publish(first)
        assert [key.kid for key in first.current.pins] == [old]
        assert first.current.succession == ()
        assert is_known(token_of(first), second)
        # As a poll does.
        await other.change(lambda store: None)
        assert first.current.published is not None
        assert second.current.state_of(first.current.published.kid) is KeyState.PUBLISHED

        await first.activate()
        new = first.current.active.kid
        assert announced == [f"first {new}"]
        assert second.current.active.kid == old
        assert is_known(token_of(first), second)
        assert is_known(token_of(second), first)

        await other.change(lambda store: None)
        assert announced == [f"first {new}", f"second {new}"]
        assert is_known(token_of(second), first)
        # The second hub has nothing left to do.
        await second.activate()
        assert (second.current.active.kid, len(second.current.succession)) == (new, 1)


async def test_a_rotation_is_two_changes_of_the_directory(database: Location, tmp_path: Path) -> None:
    file = SealFile(tmp_path / "seal.key")
    async with opened(database, file) as (directory, _):
        ring = ring_on(directory, file)
        seen: list[tuple[list[KeyState], int]] = []

        def see() -> None:
            rows = directory.current.signing_keys
            seen.append((sorted(row.state for row in rows.keys), len(rows.succession)))

        directory.on_change(see)
        await ring.rotate()
        assert seen == [([KeyState.ACTIVE, KeyState.PUBLISHED], 0), ([KeyState.ACTIVE, KeyState.RETIRING], 1)]


async def test_a_new_key_signs_only_when_all_hubs_verify_by_it(database: Location, tmp_path: Path) -> None:
    file = SealFile(tmp_path / "seal.key")
    behind = ["0000000b"]

    async def spread() -> None:
        if behind:
            raise StoreUnavailableError(f"not yet in force at every hub; missing: {behind[0]}")

    async with opened(database, file) as (directory, _):
        ring = ring_on(directory, file, spread=spread)
        directory.on_change(ring.follow)
        old = ring.current.active.kid
        for attempt in (ring.rotate, ring.activate):
            with pytest.raises(StoreUnavailableError, match=r"signs by itself once .* missing: 0000000b"):
                await attempt()
            assert ring.current.active.kid == old
            assert ring.current.published is not None
        published = ring.current.published.kid
        behind.clear()
        # As `run` does.
        await ring.activate()
        assert (ring.current.active.kid, ring.current.published) == (published, None)


@pytest.mark.parametrize("rotates", [True, False])
async def test_a_hub_makes_no_key_active_for_which_it_has_not_waited(
    database: Location, tmp_path: Path, rotates: bool
) -> None:
    file = SealFile(tmp_path / "seal.key")
    async with opened(database, file) as (directory, _):
        other = ring_on(directory, file)
        later: list[str] = []

        async def spread() -> None:
            # Meanwhile another hub finishes this rotation, and begins the next one.
            other.follow()
            await other.activate()
            await publish(other)
            assert other.current.published is not None
            later.append(other.current.published.kid)

        ring = ring_on(directory, file, spread=spread)
        if rotates:
            await ring.rotate()
        else:
            await publish(ring)
            await ring.activate()
        assert ring.current.published is not None
        assert [ring.current.published.kid] == later


async def test_a_rotation_that_meets_a_published_key_finishes_that_one(
    database: Location, tmp_path: Path
) -> None:
    file = SealFile(tmp_path / "seal.key")
    async with opened(database, file) as (directory, _):
        ring = ring_on(directory, file)
        old = ring.current.active.kid
        await publish(ring)
        published = ring.current.published
        assert published is not None
        # As the hub that starts after a crash.
        again = ring_on(directory, file)
        assert await again.rotate() == old
        assert again.current.active.kid == published.kid
        assert len(again.current.all) == 2


async def test_a_published_key_that_a_crash_has_left_signs_after_the_next_start(
    database: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)
    file = SealFile(tmp_path / "seal.key")
    async with opened(database, file) as (directory, _):
        await publish(ring_on(directory, file))
    announced = trio.Event()
    async with opened(database, file) as (directory, secrets):
        assert secrets.keys.published is not None
        ring = ring_on(directory, file, announced.set)
        assert ring.current.active.kid == secrets.keys.active.kid
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ring.run)
                await announced.wait()
                nursery.cancel_scope.cancel()
        assert ring.current.active.kid == secrets.keys.published.kid
        assert len(ring.current.succession) == 1


@attrs.define
class Hub:
    """A hub's directory without its threads: it reads the database when it is told to."""

    store: Store
    file: SealFile
    now: Callable[[], float]
    current: Any = None
    ring: KeyRing = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.read_database()
        self.ring = KeyRing(
            SealedKeyring(self, self.file, alone),  # type: ignore[arg-type]
            issuer=HUB,
            clock=self.now,
            on_rotation=lambda: None,
        )

    def read_database(self) -> None:
        with self.store._read() as connection:
            keys, version = read_signing_keys(connection), read_version(connection)
        self.current = SimpleNamespace(signing_keys=keys, version=version.number)

    def apply(self) -> None:
        self.read_database()
        self.ring.reload()

    async def change(self, mutation: Callable[[Store], T]) -> T:
        try:
            return mutation(self.store)
        finally:
            self.read_database()

    def do(self, action: Callable[[], Any]) -> None:
        """Run what waits for nothing."""
        with pytest.raises(StopIteration):
            action().send(None)

    def has(self, state: KeyState) -> set[str]:
        return {row.kid for row in self.current.signing_keys.keys if row.state is state}


@pytest.fixture
def stores(in_postgres: PostgresAddress) -> Iterator[tuple[Store, Store]]:
    """Two connections to one database."""
    with (
        closing(Store(in_postgres, org="main", clock=lambda: START)) as one,
        closing(Store(in_postgres, org="main", clock=lambda: START)) as other,
    ):
        yield one, other


def start_both(stores: tuple[Store, Store], file: SealFile, time: list[float]) -> tuple[Hub, Hub]:
    """Start two hubs on a database that has no secrets."""
    with stores[0]._change() as connection:
        for table in (t.signing_keys, t.succession, t.secrets):
            connection.execute(sa.delete(table))
    stores[0].put_secrets(HubSecrets.generate(), file.load_or_make())
    return Hub(stores[0], file, lambda: time[0]), Hub(stores[1], file, lambda: time[0])


ACTIONS = "publish", "activate", "rotate", "crash after publishing", "crash after activating", "apply", "wait"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(ACTIONS)), min_size=4, max_size=16),
    waits=st.booleans(),
)
def test_no_token_is_unknown_to_a_hub_that_has_the_published_key(
    stores: tuple[Store, Store],
    tmp_path: Path,
    steps: list[tuple[int, str]],
    waits: bool,
) -> None:
    """`waits`: no key signs before both hubs have the published one, as several hubs are to do it."""
    file, time = SealFile(tmp_path / "seal.key"), [START]
    one, other = start_both(stores, file, time)
    published: dict[str, int] = {one.ring.current.active.kid: 0}
    pins = one.ring.current.pins
    for number, action in steps:
        hub = (one, other)[number]
        seal, ring = file.load(), hub.ring
        if waits and action in ("activate", "rotate", "crash after activating"):
            if action == "rotate":
                hub.do(lambda ring=ring: publish(ring))
            one.apply()
            other.apply()
            action = "activate" if action == "rotate" else action
        match action:
            case "publish":
                hub.do(lambda ring=ring: publish(ring))
            case "activate":
                hub.do(ring.activate)
            case "rotate":
                hub.do(ring.rotate)
            case "crash after publishing":
                hub.store.change_signing_keys(ring._published, seal)
                hub.start()
            case "crash after activating":
                known = "" if ring.current.published is None else ring.current.published.kid
                hub.store.change_signing_keys(partial(ring._activated, known), seal)
                hub.start()
            case "apply":
                hub.apply()
            case "wait":
                # A hub serves no call by a snapshot that is older than this.
                one.apply()
                other.apply()
                time[0] += OVERLAP_S / 2
                hub.do(ring.drop_retired)
        for each in (one, other):
            for kid in each.has(KeyState.PUBLISHED) | each.has(KeyState.ACTIVE):
                published.setdefault(kid, hub.current.version)
        for issuer, verifier in ((one, other), (other, one)):
            kid = issuer.ring.current.active.kid
            if waits or verifier.current.version >= published[kid]:
                assert is_known(token_of(issuer.ring), verifier.ring)
    # A relay of the beginning follows to the key that signs.
    hub.apply()
    trusted = TrustedKeys(pins, HUB)
    for statement in hub.ring.current.succession:
        trusted.learn(statement)
    assert hub.ring.current.active.kid in {key.kid for key in trusted.at(time[0] + OVERLAP_S + 1)}
