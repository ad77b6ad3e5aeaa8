from __future__ import annotations

from pathlib import Path

import pytest

from auth.keys import SigningKey
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.private_files import DataDirError, write_private
from proxy.hub.store.secrets.signing_keys import SigningKeys


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


def test_a_key_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    kid = data.keys.load_or_make().active.kid
    (tmp_path / "keys" / f"{kid}.pem").rename(tmp_path / "keys" / "other.pem")
    with pytest.raises(DataDirError, match="name the file after it"):
        data.keys.load_or_make()
