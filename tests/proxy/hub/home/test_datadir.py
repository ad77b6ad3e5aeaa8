from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.home.files.private_files import DataDirError, read_private, write_private


def modes(path: Path) -> set[tuple[bool, int]]:
    return {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in (path, *path.rglob("*"))}


def test_everything_in_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        data = DataDir.open(tmp_path / "a" / "hub")
        data.keys.load_or_make()
        data.pepper()
        data.admin.make_token()
        data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
        with data.locked():
            assert modes(data.path) == {(True, 0o700), (False, 0o600)}
    finally:
        os.umask(old)


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(DataDirError, match="chmod 700"):
        DataDir.open(tmp_path)


def test_a_secret_open_to_others_is_refused(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    data.pepper()
    (tmp_path / "pepper").chmod(0o640)
    with pytest.raises(DataDirError, match="chmod 600"):
        data.pepper()


def test_keys_and_pepper_are_made_once(tmp_path: Path) -> None:
    first = DataDir.open(tmp_path)
    keys, pepper, token = first.keys.load_or_make(), first.pepper(), first.admin.make_token()
    second = DataDir.open(tmp_path)
    assert second.keys.load_or_make().active.kid == keys.active.kid
    assert second.pepper() == pepper
    assert second.admin.token() == token


def test_lost_secrets_are_not_silently_replaced(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    data.store_file.touch()
    with pytest.raises(DataDirError, match="restore a backup"):
        data.keys.load_or_make()
    with pytest.raises(DataDirError, match="restore a backup"):
        data.pepper()


def test_what_cannot_be_looked_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    for name in ("pepper", "admin-token", "admin.json", "hub.db"):
        (tmp_path / name).symlink_to("x" * 300)
    for read in (data.pepper, data.admin.token, data.admin.endpoint, data.keys.load_or_make):
        with pytest.raises(DataDirError, match=r"^cannot read .*: File name too long"):
            read()
    assert list(data.keys_dir.iterdir()) == []
    assert (tmp_path / "pepper").is_symlink()


def test_damaged_files_name_the_file_and_not_its_contents(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    kid = data.keys.load_or_make().active.kid
    write_private(tmp_path / "pepper", b"SECRET")
    write_private(tmp_path / "admin-token", b"SECRET")
    write_private(tmp_path / "admin.json", b"SECRET")
    write_private(tmp_path / "keys" / "active", b"SECRET")
    for read in (data.pepper, data.admin.token, data.admin.endpoint, data.keys.load_or_make):
        with pytest.raises(DataDirError) as caught:
            read()
        assert str(tmp_path) in str(caught.value)
        assert "SECRET" not in str(caught.value)
    write_private(tmp_path / "admin.json", b"[" * 100_000)
    with pytest.raises(DataDirError, match=r"admin\.json: damaged"):
        data.admin.endpoint()
    write_private(tmp_path / "keys" / f"{kid}.pem", b"SECRET")
    with pytest.raises(DataDirError, match="backup") as caught:
        data.keys.load_or_make()
    assert "SECRET" not in str(caught.value)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    with pytest.raises(DataDirError, match=r"^.*/keys is no folder: move it away, or choose another"):
        DataDir.open(tmp_path)


def test_the_admin_endpoint_comes_back(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    assert data.admin.endpoint() is None
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:8444", "pem\n"))
    assert data.admin.endpoint() == AdminEndpoint("https://127.0.0.1:8444", "pem\n")
    assert data.admin.token() is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    write_private(tmp_path / "folder" / "file", b"old")
    (tmp_path / "target").mkdir()
    with pytest.raises(DataDirError, match="cannot write"):
        write_private(tmp_path / "target", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "target"]
    assert read_private(tmp_path / "folder" / "file") == b"old"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataDirError, match="none"):
        read_private(tmp_path / "none")
    write_private(tmp_path / "big", b"x" * (1024 * 1024 + 1))
    with pytest.raises(DataDirError, match="larger"):
        read_private(tmp_path / "big")


def test_the_id_of_a_folder_is_made_once(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    assert data.admin.hub_id() == data.admin.hub_id()
    write_private(tmp_path / "hub-id", b"SECRET")
    with pytest.raises(DataDirError, match=r"/hub-id: damaged; remove it, and start the hub again for"):
        data.admin.hub_id()
