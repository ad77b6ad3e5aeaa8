from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest
import yaml

from proxy.agent.hub.requests import Reach
from proxy.agent.kubeconfig.config_file import (
    EMBEDDED_CA_BYTES_MAX,
    Document,
    avoid_shadowing,
    chosen_clusters,
    entries,
    merge,
    read,
    server_aliases,
    write,
)
from proxy.agent.local.account import Account
from proxy.agent.local.errors import AgentError

ACCOUNT = Account("https://hub.example", "robot", "hws_secret", "PEM\n", "serial")
REACH = Reach("robot", "acme", ("prod", "dev"))


def ours(*clusters: str, prefix: str = "", account: Account = ACCOUNT) -> Document:
    return entries(account, clusters or ("prod", "dev"), command="hawse-credential", prefix=prefix)


def test_all_clusters_are_taken_unless_some_are_named() -> None:
    assert chosen_clusters(REACH, ()) == ("prod", "dev")
    assert chosen_clusters(REACH, ("dev", "dev")) == ("dev",)
    with pytest.raises(AgentError, match="may not reach other; it may reach: prod, dev"):
        chosen_clusters(REACH, ("dev", "other"))
    with pytest.raises(AgentError, match="not reach any cluster"):
        chosen_clusters(Reach("robot", "acme", ()), ())


@pytest.mark.parametrize("name", ["$(id)", 'a"b', "a\nb", "--server=x", "../x", ""])
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(AgentError, match="not valid"):
        chosen_clusters(REACH, (name,))
    for field in ("namespace", "prefix"):
        if name or field == "namespace":
            with pytest.raises(AgentError, match="not valid"):
                entries(ACCOUNT, ["prod"], command="hawse-credential", **{field: name})


def test_a_kubeconfig_names_the_plugin_and_holds_no_credential() -> None:
    document = entries(ACCOUNT, ["prod"], command="hawse-credential", namespace="app")
    assert document == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "prod",
                "cluster": {
                    "server": "https://hub.example/clusters/prod",
                    "certificate-authority-data": base64.b64encode(b"PEM\n").decode(),
                },
            }
        ],
        "users": [
            {
                "name": "hawse",
                "user": {
                    "exec": {
                        "apiVersion": "client.authentication.k8s.io/v1",
                        "command": "hawse-credential",
                        "interactiveMode": "IfAvailable",
                        "provideClusterInfo": True,
                        "installHint": "hawse-credential is not on the PATH: install Hawse, "
                        "or write this kubeconfig again (hawse kubeconfig)",
                    }
                },
            }
        ],
        "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "hawse", "namespace": "app"}}],
        "current-context": "prod",
    }


HOSTS = "*.k8s.hub.example"


def test_with_hosts_a_server_has_no_path_and_the_plugin_is_told_the_hub() -> None:
    account = ACCOUNT._replace(hub="https://hub.example:8443", ca_pem=None)
    document = entries(account, ["prod", "dev"], command="hawse-credential", hosts=HOSTS, prefix="a-")
    assert document["clusters"] == [
        {"name": "a-prod", "cluster": {"server": "https://prod.k8s.hub.example:8443"}},
        {"name": "a-dev", "cluster": {"server": "https://dev.k8s.hub.example:8443"}},
    ]
    [user] = document["users"]  # type: ignore[misc]
    assert user["name"] == "a-hawse@hub.example:8443"
    assert user["user"]["exec"]["args"] == ["--hub", "https://hub.example:8443"]
    each = entries(account, ["prod"], command="hawse-credential", hosts=HOSTS, user_per_cluster=True)
    assert each["users"][0]["user"]["exec"]["args"] == [  # type: ignore[index]
        *("--server", "https://prod.k8s.hub.example:8443"),
        *("--hub", "https://hub.example:8443"),
    ]
    # The URL omits the default port.
    usual = entries(ACCOUNT, ["prod"], command="hawse-credential", embed_ca=False, hosts=HOSTS)
    assert usual["clusters"] == [{"name": "prod", "cluster": {"server": "https://prod.k8s.hub.example"}}]


def test_an_entry_may_change_its_form_and_not_its_cluster() -> None:
    reach = Reach("robot", "acme", ("prod",), 0, HOSTS)
    known = server_aliases(ACCOUNT._replace(cluster_hosts="*.old.example"), ["prod"], reach)
    by_path = entries(ACCOUNT, ["prod"], command="hawse-credential")
    by_host = entries(ACCOUNT, ["prod"], command="hawse-credential", hosts=HOSTS)
    by_old = entries(ACCOUNT, ["prod"], command="hawse-credential", hosts="*.old.example")
    for before in (by_path, by_host, by_old):
        for after in (by_path, by_host):
            merged = merge(before, after, aliases=known)
            assert merged["clusters"] == after["clusters"]
            assert merged["contexts"] == after["contexts"]
    # An entry of the same name at another hub's host is foreign.
    other = entries(ACCOUNT, ["prod"], command="hawse-credential", hosts="*.evil.example")
    with pytest.raises(AgentError, match="not for this hub"):
        merge(other, by_host, aliases=known)


def test_without_a_ca_kubectl_uses_the_systems() -> None:
    for document in (
        entries(ACCOUNT, ["prod"], command="hawse-credential", embed_ca=False),
        entries(ACCOUNT._replace(ca_pem=None), ["prod"], command="hawse-credential"),
    ):
        assert document["clusters"] == [
            {"name": "prod", "cluster": {"server": "https://hub.example/clusters/prod"}}
        ]


def test_a_ca_that_kubectl_could_not_hand_to_the_plugin_is_refused() -> None:
    bundle = "x" * EMBEDDED_CA_BYTES_MAX
    at_most = entries(ACCOUNT._replace(ca_pem=bundle), ["prod"], command="hawse-credential")
    # The variable that kubectl builds, and Linux's limit for it.
    variable = b"KUBERNETES_EXEC_INFO=" + json.dumps({"spec": at_most["clusters"]}).encode()
    assert len(variable) + 1024 < 128 * 1024
    larger = ACCOUNT._replace(ca_pem=bundle + "x")
    with pytest.raises(AgentError, match="only the hub's own CA"):
        entries(larger, ["prod"], command="hawse-credential")
    entries(larger, ["prod"], command="hawse-credential", embed_ca=False)


FOREIGN: Document = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "home", "cluster": {"server": "https://10.0.0.1:6443"}}],
    "users": [{"name": "me", "user": {"token": "foreign-secret"}}],
    "contexts": [{"name": "home", "context": {"cluster": "home", "user": "me"}}],
    "current-context": "home",
    "preferences": {},
}


def test_merging_keeps_what_is_there_and_the_current_context() -> None:
    merged = merge(FOREIGN, ours("prod"))
    assert [entry["name"] for entry in yaml.safe_load(yaml.safe_dump(merged))["contexts"]] == ["home", "prod"]
    assert merged["current-context"] == "home"
    assert merged["preferences"] == {}
    assert merge(merged, ours("prod")) == merged


def test_merging_twice_brings_new_clusters_and_the_new_ca() -> None:
    renewed = ours("prod", account=ACCOUNT._replace(ca_pem="NEW\n"))
    merged = merge(merge({}, ours("dev", "prod")), renewed)
    assert isinstance(merged["clusters"], list)
    assert [entry["name"] for entry in merged["clusters"]] == ["dev", "prod"]
    assert merged["clusters"][1] == renewed["clusters"][0]  # type: ignore[index]
    assert merged["current-context"] == "dev"


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("clusters", {"name": "prod", "cluster": {"server": "https://10.0.0.1:6443"}}),
        ("clusters", {"name": "prod", "cluster": {"server": "https://other.example/clusters/prod"}}),
        ("clusters", {"name": "prod"}),
        ("users", {"name": "hawse", "user": {"token": "x"}}),
        ("users", {"name": "hawse", "user": {"exec": {"command": "gke-gcloud-auth-plugin"}}}),
        ("contexts", {"name": "prod", "context": {"cluster": "home", "user": "me"}}),
    ],
)
def test_an_entry_of_somebody_else_is_left_alone(section: str, entry: Document) -> None:
    with pytest.raises(AgentError, match="--prefix"):
        merge({section: [entry]}, ours("prod"))
    assert merge({section: [entry]}, ours("prod", prefix="hawse-"))


@pytest.mark.parametrize(
    "plugin",
    [
        {"command": "hawse", "args": ["credential"]},
        {"command": "/opt/hawse/bin/hawse-credential"},
        {"command": "hawse-credential", "args": ["--server", "https://hub.example/clusters/prod"]},
    ],
)
def test_a_user_with_our_plugin_is_ours_as_earlier_ones_were_written_too(plugin: Document) -> None:
    written = {"name": "hawse", "user": {"exec": plugin}}
    assert merge({"users": [written]}, ours("prod"))["users"] == ours("prod")["users"]


def test_the_same_server_with_its_port_is_ours() -> None:
    written = {"name": "prod", "cluster": {"server": "https://Hub.example:443/clusters/prod"}}
    assert merge({"clusters": [written]}, ours("prod"))["clusters"] == ours("prod")["clusters"]


@pytest.mark.parametrize("name", ["1e3", "0x1f", "on", "null", "8080"])
def test_a_name_that_looks_like_another_type_stays_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config"
    write(str(path), ours(name))
    assert f'name: "{name}"' in path.read_text().replace("'", '"')


@pytest.mark.parametrize("text", ["12:34", "-1:30.5", "2026-01-01", "2026-01-01T08:00:00Z", "="])
def test_what_is_text_to_kubectl_stays_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(f"clusters: [{{name: {text}, cluster: {{server: https://a.example}}}}]\n")
    write(str(path), ours("prod"))
    assert f'name: "{text}"' in path.read_text()


def test_a_file_is_made_for_its_owner_alone_and_a_link_is_followed(tmp_path: Path) -> None:
    path, link = tmp_path / "deep" / "config", tmp_path / "link"
    link.symlink_to(path)
    write(str(link), ours())
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read(str(path)) == ours()
    path.chmod(0o644)
    write(str(path), ours())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_entry_that_would_hide_another_files_is_refused(tmp_path: Path) -> None:
    other, missing, broken = (str(tmp_path / name) for name in ("other", "missing", "broken"))
    Path(broken).write_text("[")
    Path(other).write_text(json.dumps(FOREIGN))
    assert avoid_shadowing([missing, broken], ours("prod")) == ours("prod")
    avoid_shadowing([missing, broken, other], ours("prod"))
    context = {"name": "prod", "context": {"cluster": "elsewhere", "user": "me"}}
    Path(other).write_text(json.dumps({**FOREIGN, "contexts": [context]}))
    with pytest.raises(
        AgentError, match="other already has an entry prod in contexts, which is not for this hub"
    ):
        avoid_shadowing([missing, broken, other], ours("prod"))
    write(other, ours("stage"))
    avoid_shadowing([other], ours("stage"))
    Path(other).write_text("clusters: {home: there}")
    with pytest.raises(AgentError, match="other is not a kubeconfig: clusters is not a list"):
        avoid_shadowing([other], ours("stage"))


def test_the_current_context_of_another_file_stays(tmp_path: Path) -> None:
    first, other = str(tmp_path / "first"), str(tmp_path / "other")
    Path(other).write_text(json.dumps({**FOREIGN, "current-context": "mine"}))
    # kubectl uses the first entry that it finds.
    write(first, avoid_shadowing([other], ours("prod")))
    assert "current-context" not in read(first)
    Path(other).write_text(json.dumps({**FOREIGN, "current-context": ""}))
    write(first, avoid_shadowing([other], ours("prod")))
    assert read(first)["current-context"] == "prod"


def test_a_file_that_another_user_has_laid_there_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kubeconfig"
    text = "current-context: theirs\nusers: [{name: u, user: {exec: {command: /tmp/theirs}}}]\n"
    file.write_text(text)
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
    else:
        # Only root can give a file away, so the test changes the reader's uid instead.
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(AgentError, match="belongs to another user"):
        write(str(file), ours("prod"))
    assert file.read_text() == text


def test_a_file_of_roots_is_as_good_as_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    # Root's file is read, and only then found not to be a kubeconfig.
    with pytest.raises(AgentError, match=r"/etc/passwd is not a "):
        read("/etc/passwd")


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "kind: Pod", "a: b: secret", "clusters: {a: b}", "users: [secret]", "[" * 9999),
        *("token: !!int secret", "token: !!bool secret", "at: !!timestamp 1-13-01", "at: !!timestamp {=: 3}"),
    ],
)
def test_a_file_that_is_no_kubeconfig_is_left_as_it_is_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(AgentError) as error:
        write(str(path), ours())
    assert "secret" not in str(error.value)
    assert path.read_text() == content


@pytest.mark.parametrize("value", ["&a [*a]", "&a {b: *a}", "0x" + "f" * 5000])
def test_a_file_that_cannot_be_written_again_is_left_as_it_is(tmp_path: Path, value: str) -> None:
    path = tmp_path / "config"
    path.write_text(f"preferences: {value}")
    with pytest.raises(AgentError, match="can't write back"):
        write(str(path), ours())
    assert path.read_text() == f"preferences: {value}"


def test_an_empty_file_is_an_empty_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("")
    write(str(path), ours())
    assert read(str(path)) == ours()


def test_each_cluster_can_have_a_user_whose_plugin_is_told_which_it_is() -> None:
    account = Account("https://hub.example", "robot", "k", None, "1")
    made = entries(account, ["prod", "dev"], command="hawse-credential", prefix="x-", user_per_cluster=True)
    users = {user["name"]: user["user"]["exec"] for user in made["users"]}  # type: ignore[attr-defined]
    assert list(users) == ["x-hawse-prod", "x-hawse-dev"]
    plugin = users["x-hawse-dev"]
    assert plugin["args"] == ["--server", "https://hub.example/clusters/dev"]
    assert plugin["apiVersion"] == "client.authentication.k8s.io/v1beta1"
    contexts = [each["context"]["user"] for each in made["contexts"]]  # type: ignore[attr-defined]
    assert contexts == list(users)
    # A second run replaces its own entries.
    assert merge(made, made) == made
    # It also replaces entries of the other form.
    other = entries(ACCOUNT, ("prod", "dev"), command="hawse-credential", prefix="x-")
    for before, after in ((made, other), (other, made)):
        assert merge(before, after)["contexts"] == after["contexts"]
