from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.home.files.reserve import BLOCK_BYTES, RESERVE_BYTES, Reserve, ReserveError, open_reserve


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reserve"


def reopened(path: Path) -> list[bytes]:
    reserve = open_reserve(path)
    try:
        return reserve.entries()
    finally:
        reserve.close()


def test_what_was_added_is_there_after_a_restart_in_its_order(path: Path) -> None:
    reserve = open_reserve(path)
    added = [b"one", b"two" * 5000, b"three"]
    for payload in added:
        reserve.add(payload)
    # As after kill -9: it is not closed.
    assert reopened(path) == added
    assert reserve.entries() == added
    reserve.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_entry_makes_the_file_larger_or_needs_another_block(path: Path) -> None:
    reserve = open_reserve(path)
    before = path.stat()
    assert before.st_size == RESERVE_BYTES
    assert before.st_blocks * 512 >= RESERVE_BYTES
    for _ in range(255):
        reserve.add(b"x" * 700)
    with pytest.raises(ReserveError) as refused:
        reserve.add(b"x")
    assert str(refused.value) == f"{path} is full: 255 revocations wait there already"
    assert len(reserve.entries()) == 255
    assert (path.stat().st_size, path.stat().st_blocks) == (before.st_size, before.st_blocks)
    reserve.close()


def test_only_all_entries_are_cleared_and_none_that_another_hub_has_added(path: Path) -> None:
    ours, theirs = open_reserve(path), open_reserve(path)
    ours.add(b"ours")
    theirs.add(b"theirs")
    assert not ours.clear(lambda payload: payload == b"ours")
    assert reopened(path) == [b"ours", b"theirs"]
    assert ours.clear(lambda payload: True)
    assert theirs.entries() == []
    theirs.add(b"later")
    assert ours.entries() == [b"later"]
    ours.close()
    theirs.close()


@given(payloads=st.lists(st.binary(min_size=1, max_size=10_000), max_size=6), data=st.data())
def test_a_write_that_was_cut_short_costs_its_own_entry_alone(
    payloads: list[bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("torn") / "reserve"
    reserve = open_reserve(path)
    # Entries of an earlier generation lie beneath.
    for _ in range(3):
        reserve.add(b"of before" * 700)
    assert reserve.clear(lambda payload: True)
    for payload in payloads:
        reserve.add(payload)
    whole = path.read_bytes()
    reserve.add(last := b"the last one" * 800)
    # Of the last write any of its blocks reached the disk, or not.
    torn = bytearray(path.read_bytes())
    begin = next(
        at for at in range(0, len(whole), BLOCK_BYTES) if torn[at] != whole[at] or _differ(torn, whole, at)
    )
    blocks = range(begin, begin + len(last) + 8, BLOCK_BYTES)
    lost = data.draw(st.sets(st.sampled_from(list(blocks)), min_size=1))
    for at in lost:
        torn[at : at + BLOCK_BYTES] = whole[at : at + BLOCK_BYTES]
    path.write_bytes(bytes(torn))
    assert reserve.entries() == payloads
    reserve.add(b"and after it")
    assert reopened(path) == [*payloads, b"and after it"]
    reserve.close()


def _differ(one: bytearray, other: bytes, at: int) -> bool:
    return one[at : at + BLOCK_BYTES] != other[at : at + BLOCK_BYTES]


def test_a_start_that_was_cut_short_allocates_anew(path: Path) -> None:
    for left in (b"", b"hawse", bytes(RESERVE_BYTES)):
        path.write_bytes(left)
        assert reopened(path) == []
        assert path.stat().st_size == RESERVE_BYTES


def test_a_damaged_header_is_an_error_and_no_empty_reserve(path: Path) -> None:
    reserve = open_reserve(path)
    reserve.add(b"a revocation")
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"X", 17)
    os.close(descriptor)
    with pytest.raises(ReserveError, match="is damaged: move it away, and repeat the latest revocations"):
        open_reserve(path)
    with pytest.raises(ReserveError, match="is damaged"):
        reserve.add(b"another")
    reserve.close()


def test_an_entry_whose_flush_failed_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = open_reserve(path)
    reserve.add(b"one")
    flush, failures = os.fdatasync, [OSError(28, "No space left on device")]

    def fail_once(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(ReserveError, match="No space left on device"):
        reserve.add(b"two")
    assert reopened(path) == [b"one"]
    reserve.add(b"three")
    assert reopened(path) == [b"one", b"three"]
    reserve.close()


def test_a_reserve_that_was_removed_takes_no_entry(path: Path) -> None:
    reserve = open_reserve(path)
    path.unlink()
    with pytest.raises(ReserveError, match="was removed while the hub had it open: restart the hub"):
        reserve.add(b"a revocation")
    reserve.close()


def test_what_the_system_refuses_is_said(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ReserveError, match="Is a directory"):
        open_reserve(path)
    unopened = Reserve(path, 10**6)
    with pytest.raises(ReserveError, match="Bad file descriptor"):
        unopened.add(b"x")
