from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from proxy.agent.kubeconfig import config_file
from proxy.agent.kubeconfig.hub_entries import HubEntries, find_hub_entries, remove_hub_entries
from proxy.agent.local.account import Account
from tests.proxy.agent.conftest import Home

HUB = "https://hub.example:8443"
HOSTS = "*.k8s.hub.example"
HERE = Account(HUB, "robot", "k", None, "s", cluster_hosts=HOSTS)
ELSEWHERE = Account("https://hub.example", "robot", "k", None, "s")
THEIRS = {
    "clusters": [{"name": "mine", "cluster": {"server": "https://192.0.2.1"}}],
    "users": [{"name": "mine", "user": {"token": "t"}}],
    "contexts": [{"name": "mine", "context": {"cluster": "mine", "user": "mine"}}],
    "current-context": "mine",
}


def written(path: Path, *documents: dict[str, object]) -> str:
    """Write the file, with the entries of all documents."""
    merged: dict[str, object] = {}
    for document in documents:
        merged = config_file.merge(merged, document)
    path.write_text(yaml.safe_dump(merged))
    return str(path)


def ours(account: Account, *clusters: str, **options: object) -> dict[str, object]:
    return config_file.entries(account, clusters, command="hawse-credential", **options)  # type: ignore[arg-type]


def names(path: str) -> dict[str, set[str]]:
    document = yaml.safe_load(Path(path).read_text())
    return {
        section: {entry["name"] for entry in document[section]}
        for section in ("clusters", "users", "contexts")
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_per_cluster": True},
        {"hosts": HOSTS},
        {"hosts": HOSTS, "user_per_cluster": True},
        {"prefix": "a-"},
    ],
)
def test_the_entries_of_one_hub_go_in_whatever_form_they_are_and_others_stay(
    home: Home, options: dict[str, object]
) -> None:
    prefix = str(options.get("prefix", ""))
    path = written(home.path / "config", THEIRS, ours(ELSEWHERE, "far"), ours(HERE, "prod", "dev", **options))
    environment = {**home.environment, "KUBECONFIG": path}
    found = HubEntries(path, (f"{prefix}dev", f"{prefix}prod"))
    assert find_hub_entries(environment, HERE) == [found]
    assert remove_hub_entries(environment, HERE) == [found]
    assert names(path) == {
        "clusters": {"mine", "far"},
        "users": {"mine", "hawse"},
        "contexts": {"mine", "far"},
    }
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert find_hub_entries(environment, HERE) == []
    # The shared user is removed with the second hub.
    remove_hub_entries(environment, ELSEWHERE)
    assert names(path) == {section: {"mine"} for section in ("clusters", "users", "contexts")}
    assert yaml.safe_load(Path(path).read_text())["current-context"] == "mine"


def test_an_entry_that_another_context_uses_stays(home: Home) -> None:
    path = written(home.path / "config", THEIRS, ours(HERE, "prod"))
    document = yaml.safe_load(Path(path).read_text())
    document["contexts"].append({"name": "straight", "context": {"cluster": "prod", "user": "mine"}})
    # Left behind by `kubectl config delete-context`.
    document["clusters"].append({"name": "old", "cluster": {"server": f"{HUB}/clusters/old"}})
    Path(path).write_text(yaml.safe_dump(document))
    remove_hub_entries({**home.environment, "KUBECONFIG": path}, HERE)
    assert names(path) == {
        "clusters": {"mine", "prod"},
        "users": {"mine"},
        "contexts": {"mine", "straight"},
    }


@pytest.mark.parametrize(
    "server", ["https://localhost:6443", "https://[::1]:6443", "https://[::ffff:1.2.3.4]"]
)
def test_a_server_that_no_cluster_of_the_hub_can_have_is_another_ones(home: Home, server: str) -> None:
    kind: dict[str, object] = {**THEIRS, "clusters": [{"name": "mine", "cluster": {"server": server}}]}
    path = written(home.path / "config", kind, ours(HERE, "prod"))
    environment = {**home.environment, "KUBECONFIG": path}
    assert remove_hub_entries(environment, HERE) == [HubEntries(path, ("prod",))]
    assert names(path) == {section: {"mine"} for section in ("clusters", "users", "contexts")}


def test_every_file_of_kubectls_and_every_one_that_was_written_for_the_hub_is_looked_at(home: Home) -> None:
    (home.path / ".kube").mkdir()
    own = written(home.path / ".kube" / "config", ours(HERE, "prod"))
    second = written(home.path / "second", ours(HERE, "dev"))
    linked = home.path / "link"
    linked.symlink_to(second)
    account = HERE._replace(kubeconfigs=(str(linked), second, str(home.path / "gone")))
    assert [each.path for each in find_hub_entries(home.environment, account)] == [own, str(linked)]
    remove_hub_entries(home.environment, account)
    assert linked.is_symlink()
    assert find_hub_entries(home.environment, account) == []


def test_what_is_no_file_is_not_opened(home: Home) -> None:
    """`hawse kubeconfig --output /dev/stdout` is recorded, but reading a terminal or a pipe would block."""
    account = HERE._replace(kubeconfigs=("/dev/zero",))
    assert find_hub_entries({**home.environment, "KUBECONFIG": str(home.path)}, account) == []


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_changed(home: Home) -> None:
    bad, good = home.path / "bad", written(home.path / "good", ours(HERE, "prod"))
    bad.write_text("{")
    environment = {**home.environment, "KUBECONFIG": f"{bad}:{good}"}
    assert remove_hub_entries(environment, HERE) == [
        HubEntries(str(bad), (), f"{bad} is not a kubeconfig: it is not YAML"),
        HubEntries(good, ("prod",)),
    ]
    assert names(good)["contexts"] == set()
    assert bad.read_text() == "{"
