"""`hawse admin login`: hubs with a name, and --hub."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import pytest

from proxy.cli.admin.api.logins import load_logins
from tests.proxy.cli.admin.conftest import Hub

READS = """kind: Policy
metadata: {name: reads}
spec:
  bind: {teams: ["*"]}
  rules: [{id: reads, effect: allow, verbs: [read], resources: ["*"]}]
"""


class Elsewhere:
    """An operator's machine: no hub's folder is on it."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub = hub
        self.url = hub.url.replace("127.0.0.1", "localhost")
        self.token = hub.data.admin.token() or ""
        self.file = home / "hawse" / "admin-logins.json"
        self.env: dict[str, str | None] = {
            "HAWSE_HUB_DATA_DIR": None,
            "XDG_CONFIG_HOME": str(home),
            "HOME": "/",
        }

    async def log_in(self, name: str, *, token: str = "", code: int = 0) -> str:
        arguments = ("login", name, "--url", self.url, "--ca", str(self.hub.ca))
        done = await self.hub.run(*arguments, stdin=f"{token or self.token}\n", env=self.env)
        assert (done.exit_code, done.stdout) == (code, ""), done.output
        return done.stderr


@pytest.fixture
def elsewhere(hub: Hub, tmp_path: Path) -> Elsewhere:
    return Elsewhere(hub, tmp_path / "config")


async def test_a_hub_is_named_once_and_then_used_by_its_name(hub: Hub, elsewhere: Elsewhere) -> None:
    said = await elsewhere.log_in("prod")
    assert said.startswith(f"logged in to prod at {elsewhere.url}: main, hawse 0.1.0; the token is in ")
    assert f" {elsewhere.file}\n" in said
    assert elsewhere.token not in said
    assert stat.S_IMODE(elsewhere.file.stat().st_mode) == 0o600
    await hub.ok("--hub", "prod", "team", "add", "sre", env=elsewhere.env)
    assert "sre" in (await hub.ok("team", "list")).stdout
    # --hub wins over the environment.
    env = {**elsewhere.env, "HAWSE_ADMIN_URL": "https://localhost:1", "HAWSE_ADMIN_TOKEN": "hws_x"}
    await hub.ok("--hub", "prod", "team", "list", env=env)


@pytest.mark.parametrize("by", ["HAWSE_ADMIN_URL", "--hub"])
async def test_a_hub_elsewhere_simulates_policies_and_is_backed_up(
    hub: Hub, elsewhere: Elsewhere, tmp_path: Path, by: str
) -> None:
    policy, archive = tmp_path / "reads.yaml", tmp_path / "hub.tar"
    policy.write_text(READS)
    env, named = hub.elsewhere(), list[str]()
    if by == "--hub":
        await elsewhere.log_in("prod")
        env, named = elsewhere.env, ["--hub", "prod"]
    simulated = await hub.ok(*named, "policy", "simulate", str(policy), env=env)
    assert "no recorded call to decide" in simulated.stderr
    await hub.ok(*named, "backup", str(archive), env=env)
    assert tarfile.is_tarfile(archive)


async def test_logins_are_listed_replaced_and_removed(hub: Hub, elsewhere: Elsewhere) -> None:
    assert "no logins" in (await hub.ok("logins", env=elsewhere.env)).stderr
    await elsewhere.log_in("prod")
    await elsewhere.log_in("dev")
    assert "it replaces the former login prod" in await elsewhere.log_in("prod")
    listed = await hub.ok("logins", "--json", env=elsewhere.env)
    assert elsewhere.token not in listed.output
    assert json.loads(listed.stdout) == [
        {"name": name, "url": elsewhere.url, "ca": "its own"} for name in ("dev", "prod")
    ]
    gone = await hub.ok("logout", "prod", env=elsewhere.env)
    assert "its token" in gone.stderr
    assert await hub.fails("--hub", "prod", "team", "list", env=elsewhere.env) == (
        "hawse: there is no login 'prod': hawse admin logins lists them, hawse admin login adds one\n"
    )
    assert "did you mean dev?" in await hub.fails("--hub", "de", "team", "list", env=elsewhere.env)
    assert "there is no login 'prod'" in await hub.fails("logout", "prod", env=elsewhere.env)


async def test_a_login_that_does_not_work_is_not_stored(hub: Hub, elsewhere: Elsewhere) -> None:
    assert "refused this admin token" in await elsewhere.log_in("prod", token="hws_wrong", code=1)
    assert "must be one line of ASCII" in await elsewhere.log_in("prod", token="hws_\x07", code=1)
    assert "is not a name" in await elsewhere.log_in("a/b", code=1)
    untrusted = await hub.run("login", "prod", "--url", elsewhere.url, stdin="hws_x\n", env=elsewhere.env)
    assert "name its CA file by --ca" in untrusted.stderr
    plain = await hub.run("login", "prod", "--url", "http://localhost", stdin="hws_x\n", env=elsewhere.env)
    assert plain.stderr == "hawse: --url must be https://host:port\n"
    no_token = await hub.run("login", "prod", "--url", elsewhere.url, stdin="", env=elsewhere.env)
    assert "no token" in no_token.stderr
    assert not elsewhere.file.exists()


async def test_a_named_hub_is_not_this_machines(hub: Hub, elsewhere: Elsewhere, tmp_path: Path) -> None:
    await elsewhere.log_in("prod")
    arguments = ("--hub", "prod", "--data-dir", str(tmp_path), "team", "list")
    both = await hub.fails(*arguments, code=2, env=elsewhere.env)
    assert "leave out --data-dir and --config" in both
    refused = await hub.fails("--hub", "prod", "restore", "hub.tar", env=elsewhere.env)
    assert "--hub names a remote hub" in refused


async def test_a_file_that_others_can_read_or_that_is_damaged_is_refused(
    hub: Hub, elsewhere: Elsewhere
) -> None:
    await elsewhere.log_in("prod")
    elsewhere.file.chmod(0o644)
    assert "other users can access" in await hub.fails("logins", env=elsewhere.env)
    elsewhere.file.chmod(0o600)
    for damaged in ("{", "[]", '{"version": 1, "hubs": {"a": {"url": 1}}}', '{"version": 1, "hubs": []}'):
        elsewhere.file.write_text(damaged)
        assert "is damaged: remove it, and log in again" in await hub.fails("logins", env=elsewhere.env)
    elsewhere.file.write_text('{"version": 2}')
    assert "another version of hawse" in await hub.fails("logins", env=elsewhere.env)


def test_a_login_never_shows_its_token(tmp_path: Path) -> None:
    file = tmp_path / "hawse" / "admin-logins.json"
    file.parent.mkdir()
    row = {"url": "https://hub", "token": "hws_SECRET", "ca_pem": None}
    file.write_text(json.dumps({"version": 1, "hubs": {"prod": row}}))
    file.chmod(0o600)
    assert "SECRET" not in repr(load_logins({"XDG_CONFIG_HOME": str(tmp_path)}))
