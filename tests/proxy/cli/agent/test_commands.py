"""The agent's commands, as an agent and the real kubectl run them."""

from __future__ import annotations

import calendar
import json
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from auth.apikey import new_code
from proxy.agent.local.account import Account, save_account
from tests.fakes.https import Asked, Reply
from tests.fakes.hub import FakeHub
from tests.proxy.agent.conftest import API_KEY, Home
from tests.proxy.cli.agent.program import BIN, run

CODE = new_code(b"c" * 20)


def test_logging_in_by_the_environment_or_by_stdin_stores_the_key(home: Home, hub: FakeHub, ca: str) -> None:
    for stdin, environment in ((None, {"HAWSE_API_KEY": API_KEY}), (f"{API_KEY}\n", {})):
        status, stdout, stderr = run(home, "login", "--hub", hub.url, "--ca", ca, stdin=stdin, **environment)
        assert (status, stderr) == (0, "")
        assert f"logged in to {hub.url} as agent robot of acme" in stdout
        assert "clusters: prod, dev" in stdout
        assert API_KEY not in stdout
        assert stdout.endswith("\nnext: hawse kubeconfig\n")
    save_account(home.environment, Account("https://other.example", "robot", API_KEY, None, "serial"))
    _, stdout, _ = run(home, "login", "--hub", hub.url, "--ca", ca, HAWSE_API_KEY=API_KEY)
    assert stdout.endswith(f"\nnext: hawse kubeconfig --hub {hub.url}\n")
    (file,) = [file for file in home.files() if file.name == "logins.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_on_the_command_line_is_no_option(home: Home, hub: FakeHub) -> None:
    for option in ("--key", "--api-key", "--insecure"):
        status, _, stderr = run(home, "login", "--hub", hub.url, option, API_KEY)
        assert status == 2
        assert "No such option" in stderr


def test_enrolling_by_a_code_from_wherever_it_comes(
    home: Home, hub: FakeHub, ca: str, tmp_path: Path
) -> None:
    hub.code = CODE
    file = tmp_path / "code"
    file.write_text(f"{CODE}\n")
    kids = set()
    for arguments, stdin, environment in (
        (["--code", CODE], None, {}),
        (["--code"], f"{CODE}\n", {}),
        (["--code"], None, {"HAWSE_ENROLMENT_CODE": CODE}),
        (["--code-file", str(file)], None, {}),
    ):
        status, stdout, stderr = run(
            home, "login", *arguments, "--hub", hub.url, "--ca", ca, stdin=stdin, **environment
        )
        assert (status, stderr) == (0, "")
        assert f"logged in to {hub.url} as agent robot of acme" in stdout
        assert CODE not in stdout
        kids.add(hub.keys.pop().kid)
    assert len(kids) == 4
    (file,) = [file for file in home.files() if file.name == "logins.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert CODE not in file.read_text()
    for arguments, code in (
        (["--code", CODE, "--code-file", "/dev/null"], 2),
        (["--code-file", "/missing"], 2),
        (["--code"], 1),
        (["--code", "hwc_x"], 1),
    ):
        assert run(home, "login", "--hub", hub.url, "--ca", ca, *arguments)[0] == code


@pytest.mark.parametrize(("ahead_s", "side"), [(600, "behind"), (-600, "ahead of")])
def test_who_logs_in_with_a_wrong_clock_is_told_and_kubectl_is_not(
    home: Home, hub: FakeHub, ca: str, ahead_s: int, side: str
) -> None:
    hub.code, hub.ahead_s = CODE, ahead_s
    status, stdout, stderr = run(home, "login", "--code", CODE, "--hub", hub.url, "--ca", ca)
    assert (status, stdout.splitlines()[1]) == (0, "clusters: prod, dev")
    assert re.fullmatch(
        rf"warning: this machine's clock is (599|60[01]) s {side} the hub's: set the clock;.*\n", stderr
    )
    server = f"{hub.url}/clusters/prod"
    status, stdout, stderr = run(home, "credential", "--server", server)
    assert (status, stderr) == (0, "")
    # kubectl compares it with its own clock.
    ends = json.loads(stdout)["status"]["expirationTimestamp"]
    assert 40 < calendar.timegm(time.strptime(ends, "%Y-%m-%dT%H:%M:%SZ")) - time.time() < 50


def test_a_hub_that_is_no_url_is_told_before_a_secret_is_asked_for(home: Home) -> None:
    for way in ([], ["--code"]):
        code, out, err = run(home, "login", "--hub", "hub.example", *way)
        assert (code, out) == (1, "")
        assert err == "hawse: the hub's URL hub.example is not https://host or https://host:port\n"


def test_a_failed_login_is_one_line_without_the_key(home: Home, hub: FakeHub, ca: str) -> None:
    hub.api_key = "another"
    for arguments, key, words in (
        (["--ca", ca], API_KEY, "not accepted"),
        ([], API_KEY, "--ca FILE"),
        (["--ca", ca], "", "for a one-time code use --code"),
        (["--ca", ca], "hwc_", "use --code for a one-time code"),
        (["--ca", "/missing"], API_KEY, "--ca: cannot read /missing: No such file"),
    ):
        status, stdout, stderr = run(home, "login", "--hub", hub.url, *arguments, stdin=key)
        assert (status, stdout) == (1, "")
        assert stderr.startswith("hawse: ")
        assert words in stderr
        assert stderr.count("\n") == 1
        assert API_KEY not in stderr


def test_the_kubeconfig_is_printed_or_merged(home: Home, hub: FakeHub, ca: str) -> None:
    assert run(home, "kubeconfig")[2] == "hawse: not logged in: run `hawse login --hub URL`\n"
    run(home, "login", "--hub", hub.url, "--ca", ca, stdin=API_KEY)
    status, stdout, stderr = run(home, "kubeconfig", "dev", "--output", "-")
    assert (status, stderr) == (0, "")
    printed = yaml.safe_load(stdout)
    assert [cluster["cluster"]["server"] for cluster in printed["clusters"]] == [f"{hub.url}/clusters/dev"]
    assert API_KEY not in stdout
    path = home.path / "kubeconfig"
    for _ in range(2):
        status, stdout, stderr = run(home, "kubeconfig", "--output", str(path))
        assert (status, stderr) == (0, "")
        assert stdout == (
            f"wrote prod, dev to {path}\nnext: kubectl --kubeconfig {path} --context prod get pods\n"
        )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [context["name"] for context in yaml.safe_load(path.read_text())["contexts"]] == ["prod", "dev"]
    next_step = "next: kubectl --context dev get pods\n"
    assert run(home, "kubeconfig", "dev")[1] == f"wrote dev to {home.path}/.kube/config\n{next_step}"
    elsewhere = f":{home.path}/mine:/else"
    stdout = run(home, "kubeconfig", "dev", KUBECONFIG=elsewhere)[1]
    assert stdout == f"wrote dev to {home.path}/mine\n{next_step}"
    theirs = "{contexts: [{name: dev, context: {cluster: mine}}], current-context: dev}"
    (home.path / "other").write_text(theirs)
    beside = f"{home.path}/fresh:{home.path}/other"
    refused = run(home, "kubeconfig", "dev", KUBECONFIG=beside)
    assert (refused[0], refused[2].startswith(f"hawse: {home.path}/other already has an entry dev")) == (
        1,
        True,
    )
    assert run(home, "kubeconfig", "prod", KUBECONFIG=beside)[0] == 0
    # kubectl's current context does not change either.
    assert "current-context" not in yaml.safe_load((home.path / "fresh").read_text())
    assert run(home, "kubeconfig", "other")[0] == 1
    assert run(home, "kubeconfig", "--hub", "https://else.example")[0] == 1


def test_a_kubeconfig_has_hosts_where_the_hub_has_them_and_the_plugin_holds_to_those(
    home: Home, hub: FakeHub, ca: str
) -> None:
    run(home, "login", "--hub", hub.url, "--ca", ca, stdin=API_KEY)
    assert run(home, "kubeconfig", "--hosts") == (
        1,
        "",
        f"hawse: {hub.url} has no hosts for its clusters: leave out --hosts, or ask its operator "
        "to set cluster_hosts\n",
    )
    port = hub.url.rpartition(":")[2]
    server = f"https://dev.k8s.hub.example:{port}"
    plugin = ["credential", "--server", server, "--hub", hub.url]
    hub.cluster_hosts = "*.k8s.hub.example"
    # This login does not know the hub's hosts yet.
    status, stdout, stderr = run(home, *plugin)
    assert (status, stdout) == (1, "")
    assert f"is not a cluster of {hub.url}, which has no hosts for its clusters" in stderr
    printed = yaml.safe_load(run(home, "kubeconfig", "--hosts", "dev", "-o", "-")[1])
    assert [cluster["cluster"]["server"] for cluster in printed["clusters"]] == [server]
    assert printed["users"][0]["user"]["exec"]["args"] == ["--hub", hub.url]
    assert json.loads(run(home, *plugin)[1])["status"]["token"].endswith("-dev")
    # When the hub's pattern changes, the old hosts get no more tokens.
    hub.cluster_hosts = "*.new.example"
    assert run(home, "kubeconfig", "--hosts", "-o", "-")[0] == 0
    status, stdout, stderr = run(home, *plugin)
    assert (status, stdout) == (1, "")
    assert f"is not a cluster of {hub.url}, which uses *.new.example: if that has changed" in stderr


def test_a_plugin_that_is_not_installed_is_told_and_nothing_written(
    home: Home, hub: FakeHub, ca: str, tmp_path: Path
) -> None:
    run(home, "login", "--hub", hub.url, "--ca", ca, HAWSE_API_KEY=API_KEY)
    alone = tmp_path / "bin"
    alone.mkdir()
    script = shutil.copy(BIN / "hawse", alone)
    done = subprocess.run(
        [script, "kubeconfig", "dev"],
        env=home.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    missing = f"{alone}/hawse-credential is missing, and kubectl needs it: install hawse again"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"hawse: {missing}\n")
    assert not (home.path / ".kube").exists()


@pytest.mark.kubectl
def test_the_real_kubectl_authenticates_by_it(home: Home, hub: FakeHub, ca: str) -> None:
    run(home, "login", "--hub", hub.url, "--ca", ca, stdin=API_KEY)
    path = home.path / "kubeconfig"
    run(home, "kubeconfig", "--output", str(path))
    answer = hub.reply
    seen: list[str] = []

    def reply(asked: Asked) -> Reply:
        if not asked.path.startswith("/clusters/"):
            hub.reply = answer
            try:
                hub.asked.pop()
                return hub.answer(asked)
            finally:
                hub.reply = reply
        seen.append(f"{asked.path} {asked.headers.get('authorization')}")
        return hub.json(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    hub.reply = reply
    kubectl = shutil.which("kubectl", path=str(BIN))
    assert kubectl is not None
    for context in ("prod", "dev", "prod"):
        done = subprocess.run(
            [kubectl, f"--kubeconfig={path}", f"--context={context}", "get", "--raw", "/readyz"],
            env=home.environment | {"PATH": f"{BIN}:{home.environment['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "Success"
    assert [line.split()[0] for line in seen] == [
        f"/clusters/{name}/readyz" for name in ("prod", "dev", "prod")
    ]
    first, second, third = (line.split()[2] for line in seen)
    assert first == third == "token-1-prod"
    assert second == "token-2-dev"


def test_a_command_of_connect_without_the_dashes_is_told_of_them(home: Home, hub: FakeHub) -> None:
    save_account(home.environment, Account(hub.url, "robot", API_KEY, hub.ca_pem, "serial"))
    status, _, stderr = run(home, "connect", "kubectl", "get", "pods")
    assert status == 1
    assert stderr.endswith("; put a command after --: `hawse connect -- kubectl`\n")
    _, _, stderr = run(home, "connect", "prod2")
    assert stderr.endswith("it may reach: prod, dev\n")
