from __future__ import annotations

import datetime
import errno
import fcntl
import io
import json
import os
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from auth.keys import SigningKey
from proxy.hub.admin.data.backup import BackupError, backup
from proxy.hub.admin.data.restore import restore
from proxy.hub.approvals.request import State
from proxy.hub.home.databases import check_databases
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import ensure_certificate
from proxy.hub.home.files.local_admin import AdminEndpoint
from proxy.hub.home.files.private_files import DataDirError, read_private
from proxy.hub.home.hub_instances import HubInstances
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from tests.proxy.hub.approvals.requests.bench import grant, opened


def clock() -> float:
    return 1000.0


@pytest.fixture
def hub(tmp_path: Path) -> DataDir:
    data = DataDir.open(tmp_path / "hub")
    old, new = data.keys.load_or_make().active, SigningKey.generate()
    data.keys.store(SigningKeys(new, (old, new), ("a.b.c",)))
    data.pepper()
    data.admin.make_token()
    ensure_certificate(data.tls_dir, (), datetime.datetime.now(datetime.UTC))
    store = Store(data.store_file, org="main", clock=clock)
    store.add_team("sre")
    store.add_agent("sre-1", owner="ada", teams=["sre"], key_hash="h1", key_hint="x")
    store.add_cluster("prod", relay_key=SigningKey.generate().public, teams=["sre"])
    store.close()
    data.audit_file.write_bytes(b"trail")
    return data


def contents(path: Path) -> dict[str, bytes]:
    """All but the database, whose bytes may differ while it says the same."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and not file.name.startswith(("hub.", "audit.db"))
    }


def agents(data: DataDir) -> list[str]:
    store = Store(data.store_file, org="main", clock=clock)
    try:
        return list(store.snapshot().agents_by_name)
    finally:
        store.close()


def test_a_restored_hub_is_the_hub_that_was_backed_up(hub: DataDir, tmp_path: Path) -> None:
    archive = tmp_path / "hub.tar"
    backup(hub.path, archive)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    done = restore(tmp_path / "other", archive, overwrite=False)
    assert done.replaced is None
    assert done.created.endswith("Z")
    other = DataDir.open(tmp_path / "other")
    assert contents(other.path) == contents(hub.path)
    assert other.keys.load_or_make().active.kid == hub.keys.load_or_make().active.kid
    assert (other.pepper(), other.admin.token()) == (hub.pepper(), hub.admin.token())
    assert agents(other) == ["sre-1"]
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in other.path.rglob("*")}
    assert modes == {(True, 0o700), (False, 0o600)}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_approval_in_a_backup_serves_no_call(hub: DataDir, tmp_path: Path, overwrite: bool) -> None:
    store = Store(hub.store_file, org="main", clock=clock)
    request_id = grant(hub.store_file, store.snapshot(), "sre-1")
    store.close()
    backup(hub.path, tmp_path / "hub.tar")
    with opened(hub.store_file) as table:
        assert table.use(request_id, 0)
        table.spend(request_id)
    # Back into its own folder, or into an empty one.
    folder = hub.path if overwrite else tmp_path / "other"
    restore(folder, tmp_path / "hub.tar", overwrite=overwrite)
    with opened(DataDir.open(folder).store_file) as table:
        request = table.get(request_id)
        assert (request.state, request.because) == (
            State.CANCELLED,
            "the hub's data was restored from a backup",
        )
        assert not table.use(request_id, 0)
        assert table.find(request.new.agent_id, request.new.plan) is None


def test_a_hub_of_before_keys_were_rotated_is_restored(hub: DataDir, tmp_path: Path) -> None:
    (hub.keys_dir / "succession").unlink()
    backup(hub.path, tmp_path / "hub.tar")
    restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)
    assert DataDir.open(tmp_path / "other").keys.load_or_make().succession == ()


def test_a_hub_with_a_certificate_of_its_operator_needs_no_folder_for_others(
    hub: DataDir, tmp_path: Path
) -> None:
    for file in hub.tls_dir.iterdir():
        file.unlink()
    hub.tls_dir.rmdir()
    backup(hub.path, tmp_path / "hub.tar")
    restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)
    assert contents(tmp_path / "other") == contents(hub.path)


def test_a_running_hub_is_backed_up_with_what_is_only_in_its_wal(hub: DataDir, tmp_path: Path) -> None:
    with hub.locked():
        store = Store(hub.store_file, org="main", clock=clock)
        store.add_agent("sre-2", owner="ada", teams=["sre"], key_hash="h2", key_hint="x")
        assert hub.store_file.with_name("hub.db-wal").stat().st_size > 0
        backup(hub.path, tmp_path / "hub.tar")
        store.close()
    restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)
    assert agents(DataDir(tmp_path / "other")) == ["sre-1", "sre-2"]


def rotate(hub: DataDir) -> None:
    """Give up the key that signs, and drop those before it, as a hub does while it runs."""
    old, new = hub.keys.load_or_make().active, SigningKey.generate()
    hub.keys.store(SigningKeys(new, (old, new)))


@pytest.mark.parametrize("reads", range(1, 12))
def test_a_backup_is_whole_though_the_keys_are_rotated_meanwhile(
    hub: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    asked = 0

    def read(file: Path) -> bytes:
        nonlocal asked
        asked += 1
        if asked == reads:
            rotate(hub)
        return read_private(file)

    monkeypatch.setattr("proxy.hub.admin.data.backup.read_private", read)
    backup(hub.path, tmp_path / "hub.tar")
    restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)
    assert DataDir(tmp_path / "other").keys.load_or_make().active.kid == hub.keys.load_or_make().active.kid


def test_a_folder_that_never_rests_is_not_backed_up(
    hub: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(file: Path) -> bytes:
        rotate(hub)
        return read_private(file)

    monkeypatch.setattr("proxy.hub.admin.data.backup.read_private", read)
    with pytest.raises(BackupError, match="keeps changing: try later"):
        backup(hub.path, tmp_path / "hub.tar")


def test_a_backup_never_replaces_a_file(hub: DataDir, tmp_path: Path) -> None:
    (tmp_path / "hub.tar").write_bytes(b"precious")
    with pytest.raises(BackupError, match="exists already"):
        backup(hub.path, tmp_path / "hub.tar")
    assert (tmp_path / "hub.tar").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub", "hub.tar"]


def test_a_folder_that_is_no_hub_is_not_backed_up(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no hub's data folder"):
        backup(tmp_path, tmp_path / "hub.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["hub.db", "pepper"])
def test_a_file_that_cannot_be_looked_at_is_not_left_out(hub: DataDir, tmp_path: Path, name: str) -> None:
    (hub.path / name).unlink()
    (hub.path / name).symlink_to("x" * 300)
    with pytest.raises(BackupError, match=r"cannot back up .*name too long"):
        backup(hub.path, tmp_path / "hub.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_a_hub_is_not_overwritten_by_accident(hub: DataDir, tmp_path: Path) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    before = contents(hub.path)
    with pytest.raises(BackupError, match="--overwrite"):
        restore(hub.path, tmp_path / "hub.tar", overwrite=False)
    assert contents(hub.path) == before


def test_overwriting_moves_the_old_files_aside_and_keeps_the_trail(hub: DataDir, tmp_path: Path) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    store = Store(hub.store_file, org="main", clock=clock)
    store.retire_agent("sre-1")
    store.add_agent("late", owner="ada", teams=["sre"], key_hash="h3", key_hint="x")
    store.close()
    done = restore(hub.path, tmp_path / "hub.tar", overwrite=True)
    assert agents(hub) == ["sre-1"]
    assert hub.audit_file.read_bytes() == b"trail"
    assert done.replaced is not None
    assert set(agents(DataDir(done.replaced))) == {"late", "sre-1"}
    # And once more, over a folder that has been restored into.
    restore(hub.path, tmp_path / "hub.tar", overwrite=True)


@pytest.mark.parametrize("over", ["nothing", "another", "one that never ran", "one without a store"])
@pytest.mark.parametrize("moved", range(10))
def test_no_hub_starts_on_half_of_a_restore(
    hub: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str, moved: int
) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    present = DataDir.open(tmp_path / "other")
    whole = {(hub.keys.load_or_make().active.kid, read_private(hub.tls_dir / "ca.pem"))}
    if over != "nothing":
        present.keys.load_or_make()
        present.pepper()
        present.admin.make_token()
        ensure_certificate(present.tls_dir, (), datetime.datetime.now(datetime.UTC))
        if over != "one without a store":
            Store(present.store_file, org="main", clock=clock).close()
        if over == "another":
            present.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", ""))
        whole.add((present.keys.load_or_make().active.kid, read_private(present.tls_dir / "ca.pem")))
    rename, left = Path.rename, moved

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with suppress(KeyboardInterrupt):
        restore(present.path, tmp_path / "hub.tar", overwrite=True)
    present = DataDir.open(present.path)
    try:
        check_databases(present)
        present.pepper()
        kid = present.keys.load_or_make().active.kid
    except DataDirError as error:
        told = str(error)
        assert "restore a backup" in told
    else:
        files = ensure_certificate(present.tls_dir, (), datetime.datetime.now(datetime.UTC))
        assert (kid, read_private(files.ca)) in whole
    # Once more is enough, and leaves nothing of what was cut short.
    monkeypatch.setattr(Path, "rename", rename)
    restore(present.path, tmp_path / "hub.tar", overwrite=True)
    assert agents(present) == ["sre-1"]
    assert not [*present.path.glob(".restore-*")]


def test_a_disk_that_is_full_changes_nothing(
    hub: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    before = contents(hub.path)

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(BackupError, match="No space left on device"):
        restore(hub.path, tmp_path / "hub.tar", overwrite=True)
    assert contents(hub.path) == before
    assert not [*hub.path.glob(".*re*")]


def test_a_disk_that_has_no_room_for_a_backup_is_named(
    hub: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def connect_small(path: Path, timeout: float = 5.0) -> sqlite3.Connection:
        connection = connect(path, timeout=timeout)
        if path != hub.store_file:
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_small)
    archive = tmp_path / "elsewhere" / "hub.tar"
    archive.parent.mkdir()
    told = f"{archive.parent}: database or disk is full: free some of the disk"
    assert fault_of_backup(hub, archive) == told


def test_what_a_killed_backup_has_left_goes_with_the_next_one(hub: DataDir, tmp_path: Path) -> None:
    left, other = tmp_path / ".hawse-backup-1", tmp_path / ".hawse-backup-2"
    for folder in (left, other):
        folder.mkdir(mode=0o700)
        (folder / "hub.db").write_bytes(b"SECRET")
    descriptor = os.open(other, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    backup(hub.path, tmp_path / "hub.tar")
    # Another backup is still at work there.
    assert [*tmp_path.glob(".hawse-backup-*")] == [other]
    os.close(descriptor)
    # Whose name begins so by chance.
    daily = tmp_path / ".hawse-backup-daily"
    daily.mkdir()
    (daily / "hub.tar").write_bytes(b"precious")
    backup(hub.path, tmp_path / "hub2.tar")
    assert [*tmp_path.glob(".hawse-backup-*")] == [daily]
    assert (daily / "hub.tar").is_file()


def test_a_link_to_an_empty_folder_is_moved_aside(hub: DataDir, tmp_path: Path) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    other, elsewhere = tmp_path / "other", tmp_path / "elsewhere"
    for folder in (other, elsewhere):
        folder.mkdir(mode=0o700)
    (other / "tls").symlink_to(elsewhere)
    with pytest.raises(BackupError, match="holds a hub already"):
        restore(other, tmp_path / "hub.tar", overwrite=False)
    done = restore(other, tmp_path / "hub.tar", overwrite=True)
    assert done.replaced is not None
    assert (done.replaced / "tls").readlink() == elsewhere
    assert agents(DataDir.open(other)) == ["sre-1"]
    assert not [*elsewhere.iterdir()]


def test_a_running_hub_is_not_restored_into(hub: DataDir, tmp_path: Path) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    with hub.locked():
        with pytest.raises(BackupError, match="another process"):
            restore(hub.path, tmp_path / "hub.tar", overwrite=True)


def test_nor_is_one_that_only_finishes_what_it_has_begun(hub: DataDir, tmp_path: Path) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    with HubInstances(hub.instances_dir).registered("boot"):
        with pytest.raises(BackupError, match="wait for its end"):
            restore(hub.path, tmp_path / "hub.tar", overwrite=True)
    restore(hub.path, tmp_path / "hub.tar", overwrite=True)


def rewrite(archive: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(archive) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(archive, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def torn_database(members: dict[str, bytes]) -> None:
    page = bytearray(members["hub.db"])
    page[4096 * 2 : 4096 * 6] = b"\xff" * (4096 * 4)
    members["hub.db"] = bytes(page)


def key_of_another(members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.endswith(".pem") and name.startswith("keys/"))
    members[name] = SigningKey.generate().to_pem()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.pop("hub.db"), "no store"),
        (lambda m: m.pop("pepper"), "pepper"),
        (lambda m: m.update({"pepper": b"SECRET"}), "pepper"),
        (lambda m: m.update({"keys/active": b"none"}), "names no existing key"),
        (key_of_another, "name the file after it"),
        (torn_database, "damaged|failed"),
        (lambda m: m.update({"hub.db": b"SECRET" * 1000}), "not a database"),
        (lambda m: m.pop("hawse-backup.json"), "not a backup"),
        (lambda m: m.update({"hawse-backup.json": b"{}"}), "damaged"),
        (lambda m: m.update({"hawse-backup.json": b"[" * 60_000}), "damaged"),
        (
            lambda m: m.update({"hawse-backup.json": json.dumps({"format": 9, "created": "x"}).encode()}),
            "format 9",
        ),
        (lambda m: m.update({"../evil": b""}), "has no place"),
        (lambda m: m.update({"/etc/evil": b""}), "has no place"),
        (lambda m: m.update({"keys/../../evil.pem": b""}), "has no place"),
        (lambda m: m.update({"audit.db": b""}), "has no place"),
        (lambda m: m.update({f"keys/k{n}.pem": b"" for n in range(300)}), "has no place"),
    ],
)
def test_an_archive_that_no_hub_could_start_on_changes_nothing(
    hub: DataDir, tmp_path: Path, change: Callable[[dict[str, bytes]], None], why: str
) -> None:
    archive = tmp_path / "hub.tar"
    backup(hub.path, archive)
    rewrite(archive, change)
    before = contents(hub.path)
    with pytest.raises(BackupError, match=why) as caught:
        restore(hub.path, archive, overwrite=True)
    assert "SECRET" not in str(caught.value)
    assert ".restore-" not in str(caught.value)
    assert contents(hub.path) == before
    assert agents(hub) == ["sre-1"]
    assert not (tmp_path / "evil").exists()
    assert [p.name for p in hub.path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_anything_but_files_is_refused(hub: DataDir, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "hub.tar", "w") as tar:
        member = tarfile.TarInfo("pepper")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(BackupError, match="has no place"):
        restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)


def test_what_is_no_archive_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "hub.tar").write_bytes(b"x" * 2000)
    with pytest.raises(BackupError, match=r"hub\.tar is not a backup of a hub: "):
        restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)


def test_an_archive_whose_numbers_are_none_is_no_backup(tmp_path: Path) -> None:
    member = tarfile.TarInfo("hub.db")
    member.pax_headers = {"GNU.sparse.map": "0,x"}
    with tarfile.open(tmp_path / "hub.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    with pytest.raises(BackupError, match=r"hub\.tar is not a backup of a hub: "):
        restore(tmp_path / "new", tmp_path / "hub.tar", overwrite=False)


def test_what_cannot_be_read_or_written_is_named(hub: DataDir, tmp_path: Path) -> None:
    none, other, archive = tmp_path / "none", tmp_path / "other", tmp_path / "hub.tar"
    assert fault_of_backup(hub, none / "hub.tar") == f"{none}: No such file or directory"
    assert fault_of_restore(other, none) == f"{none}: No such file or directory"
    (hub.path / "keys").rename(none)
    assert fault_of_backup(hub, archive) == f"{hub.path / 'keys'}: No such file or directory"
    none.rename(hub.path / "keys")
    hub.store_file.unlink()
    hub.store_file.mkdir()
    assert fault_of_backup(hub, archive).startswith(f"{hub.store_file}: unable to open database file: ")
    assert not archive.exists()


def test_but_by_no_name_that_is_gone_when_it_is_read(
    hub: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    monkeypatch.setattr("secrets.token_hex", lambda _: "x" * 300)
    other = tmp_path / "other"
    assert fault_of_restore(other, tmp_path / "hub.tar") == f"{other}: File name too long"


def fault_of_backup(hub: DataDir, archive: Path) -> str:
    """What stands behind what could not be done."""
    with pytest.raises(BackupError) as caught:
        backup(hub.path, archive)
    return str(caught.value).removeprefix(f"cannot back up {hub.path} to {archive}: ")


def fault_of_restore(data_dir: Path, archive: Path) -> str:
    with pytest.raises(BackupError) as caught:
        restore(data_dir, archive, overwrite=False)
    return str(caught.value).removeprefix(f"cannot restore {archive} into {data_dir}: ")


def test_a_hub_that_runs_is_to_be_stopped_before_a_restore(hub: DataDir, tmp_path: Path) -> None:
    backup(hub.path, tmp_path / "hub.tar")
    with (
        hub.locked(),
        pytest.raises(BackupError, match=r": another process runs there: stop that hub first$"),
    ):
        restore(hub.path, tmp_path / "hub.tar", overwrite=True)


def test_a_backup_of_a_newer_version_is_refused(hub: DataDir, tmp_path: Path) -> None:
    raw = sqlite3.connect(hub.store_file)
    raw.execute("update alembic_version set version_num = '9999'")
    raw.execute("update directory set oldest = '9999'")
    raw.commit()
    raw.close()
    backup(hub.path, tmp_path / "hub.tar")
    with pytest.raises(BackupError, match="9999"):
        restore(tmp_path / "other", tmp_path / "hub.tar", overwrite=False)
