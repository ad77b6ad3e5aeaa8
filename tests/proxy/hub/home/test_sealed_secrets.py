"""What a start, and its check, make of the sealed rows and of the file that opens them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from audit.store import TrailMark
from auth.keys import KEYS_MAX, SigningKey
from proxy.hub.home.files.private_files import DataDirError, write_private
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.home.sealed_secrets import check_secrets, open_secrets
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.sealed import HubSecrets, SealedSecrets
from proxy.hub.store.secrets.sealing import KEY_BYTES, Seal
from proxy.hub.store.secrets.signing_keys import SigningKeys, row_of
from proxy.hub.store.store import Store
from tests.fakes.databases import run

TRAIL = TrailMark("trail", 7)
ROWS = "SELECT kid, state, sealed FROM signing_keys UNION ALL SELECT name, '', sealed FROM secrets ORDER BY 1"


@pytest.fixture
def store(in_postgres: PostgresAddress) -> Iterator[Store]:
    with closing(Store(in_postgres, org="main", clock=lambda: 1000.0)) as store:
        yield store


@pytest.fixture
def file(tmp_path: Path) -> SealFile:
    return SealFile(tmp_path / "seal.key")


@pytest.fixture
def made(store: Store, file: SealFile) -> HubSecrets:
    """The secrets of a hub that has run, with an old key and a new one."""
    old, new = SigningKey.generate(), SigningKey.generate()
    keys = SigningKeys(new, (old, new), ("a.b.c", "d.e.f"))
    secrets = HubSecrets(b"p" * 32, keys)
    store.put_secrets(secrets, file.load_or_make())
    return secrets


def shown(secrets: HubSecrets) -> tuple[object, ...]:
    pems = sorted(key.to_pem() for key in secrets.keys.all)
    return secrets.pepper, secrets.keys.active.kid, pems, secrets.keys.succession


def refused(store: Store, file: SealFile, address: PostgresAddress) -> str:
    """Return why a hub does not start; `--check` says the same, and neither changes anything."""
    before = run(address, ROWS)
    with pytest.raises(DataDirError) as told:
        open_secrets(store, TRAIL, file)
    with pytest.raises(DataDirError) as checked:
        check_secrets(store.sealed_secrets(), TRAIL, file)
    assert str(told.value) == str(checked.value)
    assert "\n" not in str(told.value)
    assert run(address, ROWS) == before
    return str(told.value)


def test_the_secrets_are_made_once(store: Store, file: SealFile) -> None:
    check_secrets(store.sealed_secrets(), None, file)
    assert not file.path.exists()
    made = open_secrets(store, None, file)
    assert shown(open_secrets(store, TRAIL, file)) == shown(made)
    check_secrets(store.sealed_secrets(), TRAIL, file)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "seal.key is missing, with the key that opens the signing keys in the database: copy it from"),
        (b"", "seal.key holds 0 keys, and not 1 to 8; restore it from a backup"),
        (b"\n".join([b"00" * 32] * 9), "seal.key holds 9 keys, and not 1 to 8; restore it from a backup"),
        (b"00" * 32 + b"\n" + b"5EC4E7" * 9, "seal.key: line 2 is not 32 bytes in hexadecimal; correct it"),
        (b"5EC4E7\xff" * 9, "seal.key: line 1 is not 32 bytes in hexadecimal; correct it"),
        (b"5ec4e75e" * 8, "seal.key does not open the secrets in the database: 'secrets/pepper' is sealed"),
    ],
)
@pytest.mark.usefixtures("made")
def test_a_file_that_does_not_open_the_rows_is_refused(
    store: Store, file: SealFile, in_postgres: PostgresAddress, content: bytes | None, why: str
) -> None:
    file.path.unlink()
    if content is not None:
        write_private(file.path, content)
    told = refused(store, file, in_postgres)
    assert why in told
    assert "5ec4e7" not in told.lower()
    assert file.path.exists() == (content is not None)


@pytest.mark.usefixtures("made")
def test_a_file_that_others_can_read_is_refused(
    store: Store, file: SealFile, in_postgres: PostgresAddress
) -> None:
    file.path.chmod(0o640)
    assert "seal.key is open to other users: run chmod 600" in refused(store, file, in_postgres)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.usefixtures("made")
def test_a_path_of_anything_but_a_file_is_refused(
    store: Store, file: SealFile, in_postgres: PostgresAddress, make: Callable[[Path], None]
) -> None:
    file.path.unlink()
    make(file.path)
    assert "seal.key is not a regular file: put the file" in refused(store, file, in_postgres)


def test_a_link_without_a_file_is_refused(store: Store, file: SealFile) -> None:
    file.path.symlink_to("nowhere")
    with pytest.raises(DataDirError, match=r"seal\.key is missing"):
        open_secrets(store, None, file)
    with pytest.raises(DataDirError, match=r"seal\.key is missing"):
        check_secrets(store.sealed_secrets(), None, file)
    assert file.path.is_symlink()
    assert store.sealed_secrets().missing


def test_of_two_hubs_that_make_the_file_at_once_both_use_the_first_one(
    store: Store, file: SealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate() -> Seal:
        # The other hub is between its look at the file and this one's.
        monkeypatch.undo()
        open_secrets(store, None, file)
        return Seal((b"x" * KEY_BYTES,))

    monkeypatch.setattr(Seal, "generate", generate)
    opened = open_secrets(store, None, file)
    assert shown(open_secrets(store, TRAIL, file)) == shown(opened)
    assert [path.name for path in file.path.parent.iterdir()] == ["seal.key"]


EXCHANGED = "UPDATE signing_keys AS k SET sealed = o.sealed FROM signing_keys AS o WHERE o.kid <> k.kid"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("UPDATE secrets SET sealed = left(sealed, 40)", "'secrets/pepper' is damaged, or was sealed for"),
        ("UPDATE secrets SET sealed = 'x'", "'secrets/pepper' is not a sealed value that this version knows"),
        ("UPDATE secrets SET sealed = (SELECT min(sealed) FROM signing_keys)", "'secrets/pepper' is damaged"),
        ("UPDATE signing_keys SET kid = 'x' WHERE state = 'active'", "'signing_keys/x' is damaged, or was"),
        ("UPDATE signing_keys SET sealed = (SELECT sealed FROM secrets)", "is damaged, or was sealed"),
        (EXCHANGED, "is damaged, or was sealed for another row"),
        ("UPDATE signing_keys SET state = 'retiring'", "signing_keys has 0 active and 0 published keys"),
        ("UPDATE signing_keys SET state = 'active'", "signing_keys has 2 active and 0 published keys"),
        ("DELETE FROM signing_keys", "signing_keys has 0 active and 0 published keys"),
        ("DELETE FROM secrets", "secrets/pepper is missing"),
        ("DELETE FROM signing_keys; DELETE FROM secrets", "has no signing keys, though a hub has run on it"),
    ],
)
@pytest.mark.usefixtures("made")
def test_rows_that_no_hub_has_written_are_refused(
    store: Store, file: SealFile, in_postgres: PostgresAddress, damage: str, why: str
) -> None:
    run(in_postgres, damage)
    told = refused(store, file, in_postgres)
    assert why in told
    assert told.endswith("restore a backup")


def test_more_keys_than_a_hub_uses_are_refused(
    store: Store, file: SealFile, in_postgres: PostgresAddress
) -> None:
    keys = [SigningKey.generate() for _ in range(KEYS_MAX)]
    store.put_secrets(HubSecrets(b"p" * 32, SigningKeys(keys[0], tuple(keys))), file.load_or_make())
    more = SigningKey.generate()
    sealed = file.load().seal(more.to_pem(), row_of(more.kid))
    run(in_postgres, f"INSERT INTO signing_keys VALUES ('{more.kid}', 'retiring', '{{}}', '{sealed}')")
    assert "signing_keys has 65 keys, more than 64: restore a backup" in refused(store, file, in_postgres)


def test_secrets_that_another_hub_seals_by_its_own_key_meanwhile_are_refused(
    store: Store, file: SealFile, made: HubSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_current(found: SealedSecrets, seal: Seal) -> bool:
        store.reseal(Seal((b"x" * KEY_BYTES, *seal.keys)))
        return False

    monkeypatch.setattr(SealedSecrets, "is_current", is_current)
    with pytest.raises(DataDirError, match=r"seal\.key does not open the secrets in the database"):
        open_secrets(store, TRAIL, file)


def test_a_new_key_on_the_first_line_seals_all_at_the_next_start(
    store: Store, file: SealFile, in_postgres: PostgresAddress, made: HubSecrets
) -> None:
    old = file.path.read_bytes()
    write_private(file.path, b"ab" * KEY_BYTES + b"\n" + old)
    check_secrets(store.sealed_secrets(), TRAIL, file)
    before = store.version()
    assert shown(open_secrets(store, TRAIL, file)) == shown(made)
    # Other hubs read what has changed.
    assert store.version() != before
    after, rows = store.version(), run(in_postgres, ROWS)
    # The old key is not needed any more.
    write_private(file.path, b"ab" * KEY_BYTES)
    assert shown(open_secrets(store, TRAIL, file)) == shown(made)
    assert (store.version(), run(in_postgres, ROWS)) == (after, rows)
    write_private(file.path, old)
    assert "is sealed by another key" in refused(store, file, in_postgres)
