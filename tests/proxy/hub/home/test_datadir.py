from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from auth.keys import SigningKey
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.folder_lock import FolderInUseError, FolderLock
from proxy.hub.home.local_admin import AdminEndpoint
from proxy.hub.home.private_files import DataDirError, read_private, write_private
from proxy.hub.home.signing_keys import SigningKeys


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


def test_a_new_signing_key_signs_and_the_old_one_still_verifies(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    old = data.keys.load_or_make().active
    new = SigningKey.generate()
    data.keys.store(SigningKeys(new, (old, new), ("a.b.c", "d.e.f")))
    keys = data.keys.load_or_make()
    assert keys.active.kid == new.kid
    assert [key.kid for key in keys.public] == [new.kid, old.kid]
    assert [key.kid for key in keys.pins] == [new.kid]
    assert keys.succession == ("a.b.c", "d.e.f")
    data.keys.store(SigningKeys(new, (new,), keys.succession))
    assert {file.name for file in data.keys_dir.iterdir()} == {"active", "succession", f"{new.kid}.pem"}
    assert [key.kid for key in data.keys.load_or_make().all] == [new.kid]


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


def test_a_folder_of_keys_that_cannot_be_looked_into_is_not_an_empty_one(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    data.keys_dir.rmdir()
    data.keys_dir.touch()
    with pytest.raises(DataDirError, match=r"^cannot read .*/keys: Not a directory"):
        data.keys.load_or_make()


@pytest.mark.parametrize("content", [b"a.b\n", b"a.b.c d", b"\x00\xffa.b.c", None])
def test_statements_that_are_damaged_or_lost_are_told(tmp_path: Path, content: bytes | None) -> None:
    data = DataDir.open(tmp_path)
    keys = data.keys.load_or_make()
    file = data.keys_dir / "succession"
    file.unlink()
    if content is not None:
        write_private(file, content)
    fault = "missing" if content is None else "damaged"
    with pytest.raises(DataDirError, match=rf"/keys/succession: {fault}; restore it from a backup, or make"):
        data.keys.load_or_make()
    write_private(file, b"")
    assert data.keys.load_or_make().active.kid == keys.active.kid


@pytest.mark.parametrize("written", [(), ("succession",)])
def test_a_first_key_that_was_not_put_in_force_is_the_first_one(
    tmp_path: Path, written: tuple[str, ...]
) -> None:
    data = DataDir.open(tmp_path)
    cut_short = data.keys.load_or_make().active.kid
    for name in {"active", "succession"} - set(written):
        (data.keys_dir / name).unlink()
    keys = data.keys.load_or_make()
    assert [key.kid for key in keys.all] == [keys.active.kid] == [cut_short]
    (data.keys_dir / "active").unlink()
    data.store_file.touch()
    with pytest.raises(DataDirError, match="names no existing key"):
        data.keys.load_or_make()


def test_of_several_keys_of_which_none_is_in_force_none_is_taken_or_removed(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    for key in (SigningKey.generate(), SigningKey.generate()):
        write_private(data.keys_dir / f"{key.kid}.pem", key.to_pem())
    with pytest.raises(DataDirError, match="names no existing key"):
        data.keys.load_or_make()
    assert len(list(data.keys_dir.glob("*.pem"))) == 2


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


def test_a_key_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    kid = data.keys.load_or_make().active.kid
    (tmp_path / "keys" / f"{kid}.pem").rename(tmp_path / "keys" / "other.pem")
    with pytest.raises(DataDirError, match="name the file after it"):
        data.keys.load_or_make()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    with data.locked():
        with pytest.raises(DataDirError, match="another process"):
            with DataDir.open(tmp_path).locked():
                pass
    with data.locked():
        pass


def test_the_lock_goes_with_its_descriptor_and_names_who_holds_it(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    first = data.lock()
    # As it arrives at another process: the same open file.
    second = FolderLock(os.dup(first.descriptor))
    first.release()
    first.release()
    with pytest.raises(FolderInUseError) as caught:
        data.lock()
    assert caught.value.pid == str(os.getpid())
    assert f"({os.getpid()})" in str(caught.value)
    second.release()
    data.lock().release()


def test_a_lock_that_cannot_be_written_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = DataDir.open(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        with pytest.raises(DataDirError, match=r"^cannot write .*hub\.lock: No space left .*: free some"):
            data.lock()
    # Nor is it held any more.
    data.lock().release()


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    with pytest.raises(DataDirError, match=r"^.*/keys is no folder: move it away, or choose another"):
        DataDir.open(tmp_path)


@pytest.mark.parametrize(
    ("size", "state"), [(None, "missing"), (0, "empty"), (100, r"damaged \(100 bytes are no database\)")]
)
def test_a_store_that_is_gone_is_no_first_start(tmp_path: Path, size: int | None, state: str) -> None:
    data = DataDir.open(tmp_path)
    if size is not None:
        data.store_file.write_bytes(b"x" * size)
    # As after a first start that a full disk has ended.
    data.check_databases()
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    with pytest.raises(DataDirError, match=rf"hub\.db is {state}, .*: restore a backup, or remove "):
        data.check_databases()
    data.store_file.write_bytes(b"x" * 512)
    data.check_databases()


def test_a_trail_that_is_empty_is_no_new_one(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", "pem"))
    data.store_file.write_bytes(b"x" * 512)
    # As when it was moved away.
    data.check_databases()
    for content, state in ((b"", "empty"), (b"x", "damaged")):
        data.audit_file.write_bytes(content)
        with pytest.raises(DataDirError, match=rf"audit\.db is {state}.*: put a copy in its place"):
            data.check_databases()
    data.audit_file.write_bytes(b"x" * 512)
    data.check_databases()


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
