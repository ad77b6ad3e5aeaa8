"""The folders of short-lived files: what is removed, and parallel writers."""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy.agent.token import cache
from proxy.agent.token.cache import KEPT_S, store


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_file_is_private_and_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    for data in (b"longer", b"new"):
        store(str(folder), "a", data)
        assert (folder / "a").read_bytes() == data
    assert names(folder) == {"a"}
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("age_s", [KEPT_S + 1, -KEPT_S - 1])
def test_expired_files_and_those_of_the_future_are_removed_but_no_locks(tmp_path: Path, age_s: int) -> None:
    left = f"a_1.{'0f' * 8}.new"
    for name in ("hub_a.json", "hub_a_20", left, "hub_a.json.lock", "notes.txt", "recent_1"):
        (tmp_path / name).touch()
        if name != "recent_1":
            os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    (tmp_path / "folder_1").mkdir()
    store(str(tmp_path), "a", b"")
    assert names(tmp_path) == {"a", "hub_a.json.lock", "notes.txt", "recent_1", "folder_1"}


@pytest.mark.parametrize("whose", ["a link", "another user's"])
def test_nothing_is_removed_from_a_folder_that_is(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = elsewhere
    if whose == "a link":
        folder = tmp_path / "answers"
        folder.symlink_to(elsewhere)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    old = elsewhere / "secrets.json"
    old.touch()
    os.utime(old, (time.time() - KEPT_S - 1,) * 2)
    store(str(folder), "a", b"")
    assert names(elsewhere) == {"a", "secrets.json"}


def test_above_the_bound_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FILES_MAX", 3)
    for age_s in (20, 5, 10, 15):
        (tmp_path / f"a_{age_s}").touch()
        os.utime(tmp_path / f"a_{age_s}", (time.time() - age_s,) * 2)
    store(str(tmp_path), "a_1", b"")
    assert names(tmp_path) == {"a_1", "a_5", "a_10"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    store(str(tmp_path / "taken"), "a", b"")
    assert names(tmp_path) == {"taken"}


def test_parallel_writers_leave_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each removes files that others are about to remove.
    monkeypatch.setattr(cache, "FILES_MAX", 2)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(store, str(tmp_path), f"f_{i % 4}", b"x" * 5000) for i in range(80)]:
            done.result()
    monkeypatch.undo()
    store(str(tmp_path), "last", b"")
    assert "last" in names(tmp_path)
    assert all(file.read_bytes() in {b"", b"x" * 5000} for file in tmp_path.iterdir())
    assert not [name for name in names(tmp_path) if name.endswith(".new")]
