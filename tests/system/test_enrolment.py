"""How an agent comes to its credential, with the real hub, hawse and kubectl: codes and keys of its own."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from tests.fakes.issuer import running_issuer
from tests.system.homes import Home, add_agent
from tests.system.world import DEADLINE_S, ORG, TEAM, WAYS, World, run

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


def test_an_agent_enrolled_by_a_code_uses_kubectl_by_a_key_that_never_left(
    world: World, tmp_path: Path
) -> None:
    home, made = add_agent(world, "coded", tmp_path / "home", "--credential", "code")
    code = str(made["code"])
    assert "api_key" not in made
    done = home.login("--code", stdin=f"{code}\n".encode())
    assert done.code == 0, done.err
    assert code.encode() not in done.out + done.err
    done = home.hawse("kubeconfig")
    assert done.code == 0, done.err
    for way in WAYS:
        whoami = home.kubectl(way, "auth", "whoami", "-o", "json")
        assert whoami.code == 0, whoami.err
        user = json.loads(whoami.out)["status"]["userInfo"]
        assert (user["username"], f"{ORG}/{TEAM}" in user["groups"]) == ("agent:coded", True)
        assert home.kubectl(way, "get", "pods").code == 0

    [logins] = [file for file in home.folder.rglob("*") if file.name == "logins.json"]
    assert stat.S_IMODE(logins.stat().st_mode) == 0o600
    [entry] = json.loads(logins.read_text())["hubs"].values()
    pem = entry["private_key_pem"]
    assert "api_key" not in entry

    # C37: neither code nor key is in a log, a record, a file of the hub's, or kubectl's own words.
    loud = home.kubectl("tunnel", "get", "pods", "-v=9")
    key_line = pem.splitlines()[1]
    readable = [file for file in world.folder.rglob("*") if file.is_file() and "agent" not in file.parts]
    for secret in (code, key_line):
        assert secret.encode() not in loud.out + loud.err
        for file in readable:
            assert secret.encode() not in file.read_bytes(), file
    events = world.hub_audit("--agent", "coded")
    kinds = {str(event["kind"]) for event in events}
    assert {"key.registered", "token.issued", "call"} <= kinds
    [registered] = [e for e in events if e["kind"] == "key.registered" and e["phase"] == "complete"]
    assert f"code:{made['code_id']}" in json.dumps(registered)

    # The code is used up, even for an attacker who has seen it.
    other = Home(world, "thief", tmp_path / "thief")
    other.folder.mkdir()
    done = other.login("--code", code)
    assert done.code == 1
    assert b"the code is not accepted" in done.err

    # Its last use is known, and what is revoked buys no further token.
    shown = json.loads(world.admin("agent", "show", "coded", "--json"))
    assert (shown["state"], shown["owner"], shown["codes"]) == ("active", "tests", [])
    [key] = shown["keys"]
    assert key["type"] == "key"
    watch = home.popen("tunnel", "get", "pods", "--watch")
    assert watch.stdout is not None
    assert b"NAME" in watch.stdout.readline()
    world.admin("agent", "key", "revoke", "coded", key["id"])
    # What runs by it is ended too.
    watch.communicate(timeout=DEADLINE_S)
    home.forget_tokens()
    refused = home.kubectl("tunnel", "get", "pods")
    assert refused.code != 0
    assert b"the credential is not accepted" in refused.err


def test_a_locked_agents_key_is_refused_and_its_name_is_never_given_again(
    world: World, tmp_path: Path
) -> None:
    home, made = add_agent(world, "brief", tmp_path / "home", "--credential", "code")
    assert home.login("--code", HAWSE_ENROLMENT_CODE=str(made["code"])).code == 0
    assert home.hawse("kubeconfig").code == 0
    assert home.kubectl("tunnel", "get", "pods").code == 0
    world.admin("agent", "lock", "brief")
    assert home.kubectl("tunnel", "get", "pods").code != 0
    world.admin("agent", "unlock", "brief")
    home.forget_tokens()
    assert home.kubectl("tunnel", "get", "pods").code == 0
    world.admin("agent", "remove", "brief", "--yes")
    home.forget_tokens()
    assert home.kubectl("tunnel", "get", "pods").code != 0
    again = run(
        ["hawse", "admin", "agent", "add", "brief", "--team", TEAM, "--owner", "tests"], world.operator
    )
    assert again.code == 1
    assert b"a name is never given to another agent" in again.err
    listed = json.loads(world.admin("agent", "list", "--retired", "--json"))
    assert {agent["name"]: agent["state"] for agent in listed}["brief"] == "retired"


def test_a_workload_uses_kubectl_by_its_platforms_token_and_keeps_no_secret(
    world: World, tmp_path: Path
) -> None:
    hub = f"https://127.0.0.1:{world.hub_port}"
    home, made = add_agent(world, "federated", tmp_path / "home", "--credential", "none")
    assert {"api_key", "code"}.isdisjoint(made)
    token_file, ca = tmp_path / "token", tmp_path / "issuer-ca.pem"
    uid = {"kubernetes.io": {"namespace": "ci", "serviceaccount": {"name": "builder", "uid": "u-1"}}}
    with running_issuer() as issuer:
        ca.write_text(issuer.ca_pem)
        claim = "/kubernetes.io/serviceaccount/uid=u-1"
        add = ["federation", "add", issuer.url, "--agent", "federated", "--claim", claim, "--ca", str(ca)]
        assert b"private address" in world.try_admin(*add).err
        world.admin(*add, "--allow-private-address")
        token_file.write_text(issuer.token(aud=[hub], **uid))
        done = home.login("--token-file", str(token_file))
        assert done.code == 0, done.err
        assert b"no secret is stored" in done.out
        assert home.hawse("kubeconfig").code == 0
        for way in WAYS:
            whoami = home.kubectl(way, "auth", "whoami", "-o", "json")
            assert whoami.code == 0, whoami.err
            assert json.loads(whoami.out)["status"]["userInfo"]["username"] == "agent:federated"

        # The platform rotates the token in its file; the hub's tokens are used up and requested again.
        stale = token_file.read_text()
        token_file.write_text(issuer.token(aud=[hub], jti="fresh", **uid))
        home.forget_tokens()
        assert home.kubectl("tunnel", "get", "pods").code == 0
        for file in home.folder.rglob("*"):
            if file.is_file():
                assert stale not in file.read_text(errors="replace"), file

        # Another service account of that name is another.
        uid["kubernetes.io"]["serviceaccount"] = {"name": "builder", "uid": "u-2"}
        token_file.write_text(issuer.token(aud=[hub], **uid))
        home.forget_tokens()
        refused = home.kubectl("tunnel", "get", "pods")
        told = b"the platform's token is not accepted: no federation rule of this hub fits it"
        assert (refused.code != 0, told in refused.err) == (True, True)
    # The event is queued when the answer leaves, and written a little later.
    deadline = time.monotonic() + DEADLINE_S
    while "/kubernetes.io/serviceaccount/uid is not federated's" not in json.dumps(world.audit_rows()):
        assert time.monotonic() < deadline, "the refusal is in no event"
