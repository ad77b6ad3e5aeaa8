from __future__ import annotations

import json
import os
import re
import stat
import tarfile
from datetime import datetime
from pathlib import Path

from audit.reader import AuditReader
from audit.record import Kind
from proxy.hub.home.datadir import DataDir
from tests.proxy.cli.admin.conftest import Hub


async def test_a_running_hub_is_backed_up_and_restored_elsewhere(hub: Hub, tmp_path: Path) -> None:
    await hub.ok("team", "add", "sre")
    archive, other = tmp_path / "hub.tar", tmp_path / "other"
    done = await hub.ok("backup", str(archive))
    assert done.stdout == ""
    assert "all secrets of the hub" in done.stderr
    assert "exists already" in await hub.fails("backup", str(archive))
    done = await hub.ok("--data-dir", str(other), "restore", str(archive))
    assert f"; start the hub: HAWSE_HUB_DATA_DIR={other} hawse hub\n" in done.stderr
    # An older store accepts agents again that were locked or revoked since.
    assert "are undone: repeat them" in done.stderr
    [since] = re.findall(
        rf"hawse audit list --data-dir {other} --kind admin.action --since (\S+)\n", done.stderr
    )
    assert datetime.fromisoformat(since).tzinfo is not None
    assert DataDir.open(other).keys.load_or_make().active.kid == hub.data.keys.load_or_make().active.kid
    assert "--overwrite" in await hub.fails("--data-dir", str(other), "restore", str(archive))
    done = await hub.ok("--data-dir", str(other), "restore", str(archive), "--overwrite")
    assert ".before-restore-" in done.stderr


async def test_backup_and_restore_stand_in_the_trail(hub: Hub, tmp_path: Path) -> None:
    archive, other = tmp_path / "hub.tar", tmp_path / "other"
    await hub.ok("backup", str(archive))
    await hub.ok("--data-dir", str(other), "restore", str(archive))
    for folder, verb in ((hub.data.path, '"backup"'), (other, '"restore"')):
        reader = AuditReader(DataDir(folder).audit_file)
        (event,) = [stored for stored in reader.query() if verb in str(stored.line)]
        assert Kind.ADMIN in str(event.line)
        assert str(archive) in str(event.line)
        reader.close()


async def test_a_hub_elsewhere_is_not_mistaken_for_one_that_has_run_here(hub: Hub, tmp_path: Path) -> None:
    archive, here = str(tmp_path / "hub.tar"), tmp_path / "here"
    await hub.ok("backup", archive)
    elsewhere = {"HAWSE_ADMIN_URL": hub.url, "HAWSE_HUB_DATA_DIR": None, "XDG_DATA_HOME": str(here)}
    told = await hub.fails("restore", archive, env=elsewhere)
    assert "HAWSE_ADMIN_URL names a remote hub: run it on the hub's machine, or name the folder with" in told
    assert not here.exists()
    await hub.ok("--data-dir", str(here), "restore", archive, env=elsewhere)
    await hub.ok("backup", str(tmp_path / "again.tar"), env={"HAWSE_ADMIN_URL": hub.url})


async def test_what_is_no_backup_is_one_line(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 1024)
    await hub.fails("--data-dir", str(tmp_path / "other"), "restore", str(tmp_path / "x.tar"))
    await hub.fails("--data-dir", str(tmp_path / "none"), "backup", str(tmp_path / "y.tar"))


async def test_a_restored_hub_is_started_by_the_configuration_that_named_it(hub: Hub, tmp_path: Path) -> None:
    archive, config = tmp_path / "hub.tar", tmp_path / "hub.toml"
    config.write_text(f'data_dir = "{tmp_path / "other"}"\n')
    await hub.ok("backup", str(archive))
    restore = ("restore", str(archive))
    done = await hub.ok("--config", str(config), *restore, env={"HAWSE_HUB_DATA_DIR": None})
    assert done.stderr.endswith(f"; start the hub: hawse hub --config {config}\n")
    assert f"by hawse audit list --config {config} --kind" in done.stderr
    done = await hub.ok(*restore, env={"HAWSE_HUB_DATA_DIR": str(tmp_path / "third")})
    assert done.stderr.endswith("; start the hub: hawse hub\n")


async def test_a_hub_elsewhere_is_backed_up_over_the_api(hub: Hub, tmp_path: Path) -> None:
    await hub.ok("team", "add", "sre")
    here, there, other = tmp_path / "here.tar", tmp_path / "there.tar", tmp_path / "other"
    await hub.ok("backup", str(here))
    done = await hub.ok("backup", str(there), env=hub.elsewhere())
    assert done.stderr.endswith(f" to {there}, which holds all secrets of the hub: protect it\n")
    assert stat.S_IMODE(there.stat().st_mode) == 0o600
    assert {*os.listdir(tmp_path)} == {"hub", "here.tar", "there.tar"}
    with tarfile.open(here) as one, tarfile.open(there) as two:
        assert one.getnames() == two.getnames()
        assert all(member.mode == 0o600 for member in two)
    # Nothing of it is left at the hub, and another can be made.
    assert not [name for name in os.listdir(hub.data.path) if name.startswith(".hawse-backup")]
    assert "exists already" in await hub.fails("backup", str(there), env=hub.elsewhere())
    await hub.ok("backup", str(tmp_path / "again.tar"), env=hub.elsewhere())
    await hub.ok("--data-dir", str(other), "restore", str(there))
    assert DataDir.open(other).keys.load_or_make().active.kid == hub.data.keys.load_or_make().active.kid


async def test_a_backup_from_elsewhere_needs_the_role_admin_and_is_recorded_first(
    hub: Hub, tmp_path: Path
) -> None:
    file = tmp_path / "hub.tar"
    made = await hub.json("token", "add", "ops", "--role", "operator")
    refused = await hub.fails(
        "backup", str(file), env={**hub.elsewhere(), "HAWSE_ADMIN_TOKEN": made["token"]}
    )
    assert "that takes the role admin" in refused
    assert "cannot write" in await hub.fails("backup", str(tmp_path / "none" / "x"), env=hub.elsewhere())
    assert os.listdir(tmp_path) == ["hub"]
    await hub.ok("backup", str(file), env=hub.elsewhere())
    reader = AuditReader(hub.data.audit_file)
    bodies = [json.loads(stored.body) for stored in reader.query() if b'"backup"' in stored.body]
    reader.close()
    phases = [(each["phase"], each["actor"]["name"]) for each in bodies]
    assert phases[0] == ("complete", "ops")
    assert phases[1] == ("intent", "local")
