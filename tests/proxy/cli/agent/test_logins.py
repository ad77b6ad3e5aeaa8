"""`hawse status`, `clusters` and `logout` as processes, with a hub that is up, away, or never existed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from proxy.agent.local.account import Account, load_accounts, logins_path, save_account
from tests.fakes.hub import FakeHub
from tests.proxy.agent.conftest import API_KEY, Home
from tests.proxy.cli.agent.program import BIN, run

# A port without a listener.
AWAY = Account("https://127.0.0.1:1", "other", API_KEY, None, "serial", key_id="k-7")


@pytest.fixture
def login(home: Home, hub: FakeHub, ca: str) -> str:
    """Log in with an API key at the hub, by its name; returns the kubeconfig that kubectl reads."""
    assert run(home, "login", "--hub", hub.url, "--ca", ca, stdin=API_KEY)[0] == 0
    assert run(home, "kubeconfig")[0] == 0
    return f"{home.path}/.kube/config"


def test_status_says_who_this_is_and_what_leads_there(home: Home, hub: FakeHub, login: str) -> None:
    status, stdout, stderr = run(home, "status")
    assert (status, stderr) == (0, "")
    assert stdout.splitlines() == [
        hub.url,
        "  agent       robot of acme",
        "  proof       an API key",
        f"  login       {logins_path(home.environment)}",
        "  state       accepted until its operator revokes it",
        "  clusters    prod, dev",
        f"  kubeconfig  {login}: dev, prod",
    ]
    assert API_KEY not in stdout
    [said] = json.loads(run(home, "status", "--json")[1])
    assert (said["state"], said["hub_calls_itself"], said["key_id"]) == ("accepted", hub.url, None)
    assert said["clusters"][0] == {"name": "prod", "state": None, "may": None}


def test_status_of_several_hubs_shows_what_is_known_of_one_that_is_away(
    home: Home, hub: FakeHub, login: str
) -> None:
    save_account(home.environment, AWAY)
    status, stdout, stderr = run(home, "status")
    assert (status, stderr) == (1, "hawse: cannot reach https://127.0.0.1:1: Connection refused\n")
    here, away = stdout.split("\n\n")
    assert "  state       accepted" in here
    assert away.splitlines()[:5] == [
        AWAY.hub,
        "  agent       other",
        "  proof       an API key (id k-7)",
        f"  login       {logins_path(home.environment)}",
        "  state       unknown, see below",
    ]
    assert [each["state"] for each in json.loads(run(home, "status", "--json")[1])] == ["accepted", "unknown"]
    assert run(home, "status", "--hub", hub.url)[0] == 0
    # A hub that refuses counts more than one that is away.
    hub.api_key = "another"
    status, _, stderr = run(home, "status")
    assert (status, stderr.count("\n")) == (3, 2)
    assert f"{hub.url} answered 401" in stderr


def test_clusters_of_several_hubs_are_listed_with_their_hub(home: Home, hub: FakeHub, login: str) -> None:
    assert run(home, "clusters") == (0, "CLUSTER  STATE  MAY\nprod     -      -\ndev      -      -\n", "")
    save_account(home.environment, AWAY)
    status, stdout, stderr = run(home, "clusters", "--json")
    assert (status, stderr) == (1, "hawse: cannot reach https://127.0.0.1:1: Connection refused\n")
    assert json.loads(stdout)[0] == {"name": "prod", "state": None, "may": None, "hub": hub.url}
    hub.clusters = []
    status, stdout, stderr = run(home, "clusters", "--hub", hub.url)
    assert (status, stdout) == (0, "")
    assert stderr == "no clusters: ask the hub's operator to run `hawse admin cluster grant`\n"


@pytest.mark.parametrize("command", ["status", "clusters", "logout"])
def test_without_a_login_the_next_step_is_one_line(home: Home, command: str) -> None:
    assert run(home, command) == (1, "", "hawse: not logged in: run `hawse login --hub URL`\n")


def test_logging_out_of_a_hub_that_is_gone_forgets_all_of_it_and_nothing_else(
    home: Home, hub: FakeHub, login: str
) -> None:
    save_account(home.environment, AWAY)
    several = f"hawse: logged in to several hubs: choose one with --hub: {hub.url}, {AWAY.hub}\n"
    assert run(home, "logout") == (1, "", several)
    assert run(home, "logout", "--hub", AWAY.hub) == (
        0,
        f"logged out of {AWAY.hub} (agent other)\n"
        "the key is valid until the hub's operator revokes it:\n"
        "  hawse admin agent key revoke other k-7\n",
        "",
    )
    assert list(load_accounts(home.environment)) == [hub.url]
    assert run(home, "status")[0] == 0

    for cluster in ("prod", "dev"):
        server = f"{hub.url}/clusters/{cluster}"
        assert run(home, "credential", "--server", server)[0] == 0
    tokens, answers = (home.path / "cache" / "hawse" / name for name in ("tokens", "answers"))
    (tokens / "hub.example_prod.json").write_text("{}")
    # Stored answers for a hub without a domain, and for a cluster's own host.
    (answers / "localhost:8443_prod_80").touch()
    own_host = f"prod.k8s.hub.example:{hub.url.rpartition(':')[2]}"
    (answers / f"{own_host}_{own_host}_80").touch()
    assert len(list(answers.iterdir())) == 4
    noted = load_accounts(home.environment)[hub.url]._replace(cluster_hosts="*.k8s.hub.example")
    save_account(home.environment, noted)
    status, stdout, stderr = run(home, "logout", "--json")
    assert (status, stderr) == (0, "")
    assert json.loads(stdout) == {
        "hub": hub.url,
        "agent": "robot",
        "key_id": None,
        "kubeconfigs": [{"path": login, "contexts": ["dev", "prod"], "fault": ""}],
        "left_to_do": "hawse admin agent key revoke robot ID",
    }
    assert [file.name for file in tokens.iterdir()] == ["hub.example_prod.json"]
    assert [file.name for file in answers.iterdir()] == ["localhost:8443_prod_80"]
    for file in home.files():
        assert API_KEY not in file.read_text()
    assert json.loads(Path(logins_path(home.environment)).read_text())["hubs"] == {}


def test_a_kubeconfig_that_cannot_be_changed_is_told_and_the_key_is_forgotten(home: Home, login: str) -> None:
    Path(login).write_text("{")
    status, stdout, stderr = run(home, "logout")
    assert (status, stdout.splitlines()[-1]) == (1, "  (for the ID: hawse admin agent key list robot)")
    assert stderr == f"hawse: {login} is not a kubeconfig: it is not YAML; remove its entries by hand\n"
    assert load_accounts(home.environment) == {}


def test_a_terminal_is_asked_which_of_several_logins(home: Home, hub: FakeHub, login: str) -> None:
    save_account(home.environment, AWAY)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BIN / "hawse", "logout"],
        env=home.environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        os.close(theirs)
        os.write(ours, b"3\n2\n")
        stdout, stderr = process.communicate(timeout=30)
    finally:
        os.close(ours)
    assert process.returncode == 0
    assert stdout.startswith(f"logged out of {AWAY.hub}".encode())
    assert f"  2  {AWAY.hub}, as agent other\n".encode() in stderr
    assert list(load_accounts(home.environment)) == [hub.url]


def test_a_login_by_another_name_than_the_hubs_own_is_warned(home: Home, hub: FakeHub, ca: str) -> None:
    answer = {"agent": "robot", "org": "acme", "hub": "https://hub.example", "clusters": []}
    hub.reply = lambda _: FakeHub.json(200, answer)
    status, _, stderr = run(home, "login", "--hub", hub.url, "--ca", ca, stdin=API_KEY)
    assert (status, stderr) == (
        0,
        "warning: this hub's own URL is https://hub.example, and logins other than by API key work only "
        "with that: run `hawse login --hub https://hub.example`\n",
    )
    step = f"https://hub.example: log in there, and run `hawse logout --hub {hub.url}`"
    assert f"  hub's name  {step}\n" in run(home, "status")[1]


def test_a_new_login_keeps_what_is_known_of_the_kubeconfigs(
    home: Home, hub: FakeHub, ca: str, login: str
) -> None:
    elsewhere = home.path / "elsewhere"
    for _ in range(2):
        assert run(home, "kubeconfig", "prod", "--output", str(elsewhere))[0] == 0
    assert run(home, "login", "--hub", hub.url, "--ca", ca, stdin=API_KEY)[0] == 0
    assert load_accounts(home.environment)[hub.url].kubeconfigs == (login, str(elsewhere))
    assert run(home, "kubeconfig", "prod", "--output", "-")[0] == 0
    stdout = run(home, "logout")[1]
    assert f"removed from {elsewhere}: contexts prod\n" in stdout
