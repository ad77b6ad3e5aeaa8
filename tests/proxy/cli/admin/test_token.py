"""`hawse admin token`, and the user that the trail names for a command on the hub's machine."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import time
from contextlib import closing
from functools import partial

import pytest

from audit.reader import AuditReader
from proxy.hub.store.roles import MEANINGS, Role
from proxy.hub.store.store import Store
from tests.proxy.cli.admin.conftest import Hub


async def test_a_token_is_added_with_a_role_that_was_chosen(hub: Hub) -> None:
    for args in ((), ("--role", "root")):
        refused = await hub.fails("token", "add", "ci", *args, code=2)
        for role, meaning in MEANINGS.items():
            assert f"\n  {role:<9} {meaning}\n" in refused
    for lifetime in ("90", "d", "1w", "-1d", "1.5h", ""):
        assert "such as 12h or 90d" in await hub.fails(
            "token", "add", "ci", "--role", "viewer", "--expires", lifetime, code=2
        )
    assert "60 s to 3650 days" in await hub.fails(
        "token", "add", "ci", "--role", "viewer", "--expires", "9999d"
    )
    assert len(hub.directory.current.admin_tokens_by_hash) == 1
    help_text = (await hub.ok("token", "add", "--help")).stdout
    assert all(f"  {role:<9} {meaning}" in help_text for role, meaning in MEANINGS.items())
    assert max(map(len, help_text.splitlines())) <= 80


async def test_tokens_are_listed_with_role_and_end_and_with_what_is_to_be_done(hub: Hub) -> None:
    now = time.time()
    for name, role, expires_at in (
        ("scrape", Role.METRICS, now + 365 * 86400),
        ("soon", Role.OPERATOR, now + 3 * 86400 + 60),
        ("over", Role.AUDITOR, now - 60),
    ):
        add = partial(Store.add_admin_token, name=name, token_hash=name, role=role, expires_at=expires_at)
        await hub.directory.change(add)
    old = await hub.json("token", "add", "old", "--role", "admin")
    with closing(sqlite3.connect(hub.data.store_file)) as store, store:
        store.execute("UPDATE directory SET version = version + 1, nonce = 'by another process'")
        store.execute("UPDATE admin_tokens SET role_chosen = 0 WHERE id = ?", (old["id"],))
    await hub.directory.change(lambda store: None)
    listed = await hub.ok("token", "list")
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["TOKEN", "ROLE", "EXPIRES", "LAST", "USED", "CREATED"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["local", "admin", "never", lines[1].split()[3]],
        ["old", "admin", "never", "never"],
        ["over", "auditor", "expired", "never"],
        ["scrape", "metrics", "in", "365d"],
        ["soon", "operator", "in", "3d"],
    ]
    assert max(map(len, lines)) <= 80
    old_warning, over, soon = listed.stderr.splitlines()
    assert old_warning.startswith("token old may do everything, since it is older than roles: ")
    assert "`hawse admin token remove old`" in old_warning
    assert over.startswith("token over expired at ")
    assert soon.startswith("token soon ends at ")
    rows = await hub.json("token", "list")
    assert [len(row["warnings"]) for row in rows] == [0, 1, 1, 0, 1]
    shown = await hub.ok("token", "show", "old")
    assert "role       admin" in shown.stdout
    assert shown.stderr.splitlines() == [old_warning]


async def test_a_token_may_do_what_its_role_may_and_is_told_when_it_has_expired(hub: Hub) -> None:
    token = (await hub.ok("token", "add", "see", "--role", "viewer", "--expires", "1d")).stdout.strip()
    env = {"HAWSE_ADMIN_TOKEN": token}
    await hub.ok("agent", "list", env=env)
    refused = await hub.fails("team", "add", "sre", env=env)
    assert refused == (
        "hawse: the admin token see has the role viewer, which may not create teams: "
        "that takes the role admin\n"
    )
    assert "that takes the role operator or admin" in await hub.fails("session", "list", env=env)
    with closing(sqlite3.connect(hub.data.store_file)) as store, store:
        store.execute("UPDATE directory SET version = version + 1, nonce = 'by another process'")
        store.execute("UPDATE admin_tokens SET expires_at = 1.0 WHERE name = 'see'")
    await hub.directory.change(lambda store: None)
    refused = await hub.fails("agent", "list", env=env)
    assert refused.startswith("hawse: the admin token see expired at 1970-01-01T00:00:01Z: hawse admin token")


async def test_the_removal_of_a_token_is_asked_about_at_a_terminal(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The runner's standard input for the command.
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stdin: True)
    await hub.ok("token", "add", "ci", "--role", "viewer")
    refused = await hub.run("token", "remove", "ci", stdin="n\n")
    assert "Remove token ci? All its users are refused at once [y/N]:" in refused.stderr
    assert refused.exit_code != 0
    await hub.ok("token", "show", "ci")
    removed = await hub.run("token", "remove", "ci", stdin="y\n")
    assert removed.exit_code == 0
    await hub.ok("token", "add", "ci", "--role", "viewer")
    assert "[y/N]" not in (await hub.ok("token", "remove", "ci", "--yes")).stderr
    assert [token["name"] for token in await hub.json("token", "list")] == ["local"]


async def test_the_trail_names_the_user_of_the_hubs_machine_and_no_other(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await hub.ok("token", "add", "ci", "--role", "admin")).stdout.strip()
    me = pwd.getpwuid(os.getuid()).pw_name
    for env in (
        {"SUDO_USER": None},
        {"SUDO_USER": me},
        {"SUDO_USER": "alice"},
        {"SUDO_USER": "alice) x"},
        {"HAWSE_ADMIN_TOKEN": token, "SUDO_USER": "alice"},
        {"HAWSE_ADMIN_TOKEN": token, "HAWSE_ADMIN_URL": hub.url, "HAWSE_ADMIN_CA": str(hub.ca)},
    ):
        await hub.ok("hub", "show", env=env)  # type: ignore[arg-type]
    # Events of reads are written after their answers. A write waits until all earlier events are on disk.
    await hub.ok("team", "add", "platform")
    await hub.ok("backup", str(hub.data.path / "hub.tar"), env={"SUDO_USER": "alice"})
    reader = AuditReader(hub.data.audit_file)
    events = [json.loads(each.body) for each in reader.query()]
    reader.close()
    names = [event["actor"]["name"] for event in events if event["req"].get("method") != "POST"]
    assert names == [
        f"local:{me}",
        f"local:{me}",
        f"local:{me}(sudo:alice)",
        f"local:{me}",
        "ci",
        "ci",
        f"local:{me}(sudo:alice)",
    ]
