from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import attrs
import pytest
import trio

from auth.key_rotation import ROTATIONS_MAX, TrustedKeys
from auth.keys import KeySet
from proxy.hub.home import keyring
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files import key_folder
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.home.keyring import OVERLAP_S, FolderKeyring, KeyRing
from proxy.hub.store.engines.errors import ConflictError, StoreUnavailableError

HUB = "https://hub.example"
START = 1_800_000_000.0


@attrs.define
class Bench:
    data: DataDir
    announced: list[str]
    time: float = START

    def now(self) -> float:
        return self.time

    def ring(self) -> KeyRing:
        ring = KeyRing(
            FolderKeyring(self.data.keys),
            issuer=HUB,
            clock=self.now,
            # What a relay is told must be what the hub has settled on.
            on_rotation=lambda: self.announced.append(ring.current.active.kid),
        )
        return ring


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(DataDir.open(tmp_path / "hub"), [])


def kids(ring: KeyRing) -> list[str]:
    return [key.kid for key in ring.current.public]


async def test_a_new_key_signs_at_once_and_the_old_one_goes_when_its_tokens_have_ended(bench: Bench) -> None:
    ring = bench.ring()
    old = ring.current.active.kid
    assert ring.retiring() == {}
    await ring.rotate()
    new = ring.current.active.kid
    assert kids(ring) == [new, old]
    assert bench.announced == [new]
    assert ring.retiring() == {old: START + OVERLAP_S}
    bench.time += OVERLAP_S - 1
    await ring.drop_retired()
    assert kids(ring) == [new, old]
    bench.time += 1
    await ring.drop_retired()
    assert kids(ring) == [new]
    assert ring.retiring() == {}
    assert len(ring.current.succession) == 1
    # So does a hub that starts on the folder now.
    assert kids(bench.ring()) == [new]
    assert [file.stem for file in bench.data.keys_dir.glob("*.pem")] == [new]


async def test_of_two_rotations_in_a_row_each_key_has_its_own_time(bench: Bench) -> None:
    ring = bench.ring()
    first = ring.current.active.kid
    await ring.rotate()
    second = ring.current.active.kid
    bench.time += OVERLAP_S / 2
    await ring.rotate()
    third = ring.current.active.kid
    assert set(kids(ring)) == {first, second, third}
    bench.time += OVERLAP_S / 2
    await ring.drop_retired()
    assert set(kids(ring)) == {second, third}


async def test_the_number_of_keys_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "KEYS_MAX", 2)
    ring = bench.ring()
    await ring.rotate()
    before = kids(ring)
    with pytest.raises(ConflictError, match="the hub has 2 signing keys, the limit: try in 120 s"):
        await ring.rotate()
    assert kids(ring) == before
    bench.time += OVERLAP_S
    await ring.drop_retired()
    await ring.rotate()


async def test_whatever_a_relay_was_given_leads_to_the_key_that_signs(bench: Bench) -> None:
    ring = bench.ring()
    pins: list[KeySet] = []
    for _ in range(4):
        pins.append(ring.current.pins)
        await ring.rotate()
        # As a hub that was started anew.
        ring = bench.ring()
    pins.append(ring.current.pins)
    for given in pins:
        trusted = TrustedKeys(given, HUB)
        for statement in ring.current.succession:
            trusted.learn(statement)
        assert [key.kid for key in trusted.at(bench.now() + OVERLAP_S + 1)] == [ring.current.active.kid]


async def test_a_folder_that_cannot_be_written_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = bench.ring()
    old = ring.current

    def full(file: Path, data: bytes) -> None:
        raise DataDirError(f"cannot write {file}: No space left on device")

    monkeypatch.setattr(key_folder, "write_private", full)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        await ring.rotate()
    assert ring.current is old
    assert bench.announced == []


async def until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await trio.lowlevel.checkpoint()


async def test_a_key_that_cannot_be_deleted_ends_no_hub_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keyring, "LOOK_S", 0.0)
    ring = bench.ring()
    old = ring.current.active.kid
    await ring.rotate()
    file = bench.data.keys_dir / f"{old}.pem"
    file.unlink()
    file.mkdir()  # which nobody unlinks
    bench.time += OVERLAP_S
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring.run)
            await until(lambda: "cannot drop an expired signing key" in caplog.text)
            assert ring.retiring() == {old: START + OVERLAP_S}
            file.rmdir()
            await until(lambda: not ring.retiring())
            nursery.cancel_scope.cancel()
    assert [key.kid for key in bench.ring().current.public] == [ring.current.active.kid]


@pytest.mark.parametrize("written", [0, 1, 2, 3])
async def test_a_crash_in_a_rotation_leaves_the_old_key_or_the_new_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    ring = bench.ring()
    await ring.rotate()
    before = ring.current
    left = written
    write = key_folder.write_private

    def crash(file: Path, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("the power went")
        left -= 1
        write(file, data)

    monkeypatch.setattr(key_folder, "write_private", crash)
    with pytest.raises(RuntimeError) if written < 3 else nullcontext():
        await ring.rotate()
    monkeypatch.undo()

    again = bench.ring()
    # A new .pem, the statement, the name of the one that signs: only with the last has it happened.
    assert (again.current.active.kid == before.active.kid) == (written < 3)
    assert len(again.current.succession) == (1 if written < 3 else 2)
    # Nobody trusts what was never announced, and it goes with the next change.
    await again.rotate()
    assert {file.stem for file in bench.data.keys_dir.glob("*.pem")} == set(kids(again))


async def test_the_oldest_statements_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "ROTATIONS_MAX", 2)
    ring = bench.ring()
    said = []
    for _ in range(3):
        await ring.rotate()
        said.append(ring.current.succession[-1])
    assert ring.current.succession == tuple(said[1:])
    assert ROTATIONS_MAX > 2


async def test_a_hub_that_takes_over_has_what_the_one_before_made_of_the_keys(bench: Bench) -> None:
    old, new = bench.ring(), bench.ring()
    await old.rotate()
    assert kids(new) != kids(old)
    new.reload()
    assert kids(new) == kids(old)
    assert new.current.active.kid == old.current.active.kid
