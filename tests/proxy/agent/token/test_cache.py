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
    for name in ("over", "left.1234.new", "a.lock", "recent"):
        (tmp_path / name).touch()
        if name != "recent":
            os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    (tmp_path / "folder").mkdir()
    store(str(tmp_path), "a", b"")
    assert names(tmp_path) == {"a", "a.lock", "recent", "folder"}


def test_above_the_bound_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FILES_MAX", 3)
    for age_s in (20, 5, 10, 15):
        (tmp_path / str(age_s)).touch()
        os.utime(tmp_path / str(age_s), (time.time() - age_s,) * 2)
    store(str(tmp_path), "a", b"")
    assert names(tmp_path) == {"a", "5", "10"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    store(str(tmp_path / "taken"), "a", b"")
    assert names(tmp_path) == {"taken"}


def test_parallel_writers_leave_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each removes files that others are about to remove.
    monkeypatch.setattr(cache, "FILES_MAX", 2)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(store, str(tmp_path), f"f{i % 4}", b"x" * 5000) for i in range(80)]:
            done.result()
    monkeypatch.undo()
    store(str(tmp_path), "last", b"")
    assert "last" in names(tmp_path)
    assert all(file.read_bytes() in {b"", b"x" * 5000} for file in tmp_path.iterdir())
    assert not [name for name in names(tmp_path) if name.endswith(".new")]
