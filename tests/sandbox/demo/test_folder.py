from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.demo.folder import own_folder
from sandbox.demo.processes import DemoError


def test_a_new_folder_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    with own_folder(tmp_path / "a" / "demo"):
        assert (tmp_path / "a" / "demo").stat().st_mode & 0o777 == 0o700


def test_what_an_earlier_demo_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with own_folder(folder):
        (folder / "hub").mkdir()
        (folder / "hub" / "store").touch()
        (folder / "link").symlink_to(tmp_path)
    with own_folder(folder):
        assert [entry.name for entry in folder.iterdir()] == ["demo.lock"]
    assert tmp_path.exists()


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(DemoError, match="not a demo's folder"), own_folder(tmp_path):
        pass
    assert (tmp_path / "precious").exists()
    with pytest.raises(DemoError, match="not a demo's folder"), own_folder(tmp_path / "precious"):
        pass


def test_two_demos_never_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with own_folder(folder):
        (folder / "hub.toml").touch()
        with pytest.raises(DemoError, match="another demo runs"), own_folder(folder):
            pass
        assert (folder / "hub.toml").exists()
