"""What is piped into kubectl is written on the operator's side, whatever the hub's own text is."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml

from auth.keys import KeySet, SigningKey
from proxy.cli.admin.rendered import names_of, rendered_manifests, rendered_role
from proxy.cli.errors import CommandError
from proxy.manifests import RelayManifest, cluster_role, relay_manifests, to_yaml
from tests.proxy.cli.admin.conftest import Hub

KEY = SigningKey.generate()
JWKS = KeySet([KEY.public]).to_jwks()
PEM = KEY.to_pem().decode("ascii")
OPTIONS: dict[str, object] = {"namespace": "tools", "service_account": "r", "image": "reg/x:1", "replicas": 3}
RELAY: dict[str, object] = {
    "cluster_id": "c-1",
    "hub_url": "https://hub.example",
    "hub_keys": JWKS,
    "hub_ca_pem": None,
    "private_key_pem": PEM,
    "mode": "tunnel",
}


def role_text(change: Callable[[dict[str, object]], object] = lambda role: None) -> str:
    role, binding = cluster_role(["sre-1", "sre-2"], ["main/sre"])
    change(role)  # type: ignore[arg-type]
    return to_yaml([role, binding])


@pytest.mark.parametrize("constrained", [True, False])
def test_an_honest_hubs_text_is_what_is_written(constrained: bool) -> None:
    place = {"namespace": "tools", "service_account": "r"}
    own = to_yaml(
        cluster_role(["sre-1"], ["main/sre"], constrained=constrained, namespace="tools", service_account="r")
    )
    assert rendered_role({"rbac": own}, place, constrained=constrained) == own
    manifest = RelayManifest(
        cluster_name="prod",
        cluster_id="c-1",
        hub_url="https://hub.example",
        hub_keys=JWKS,
        private_key_pem=PEM,
        namespace="tools",
        service_account="r",
        image="reg/x:1",
        replicas=3,
    )
    assert rendered_manifests("prod", {"relay": RELAY}, OPTIONS) == to_yaml(  # type: ignore[dict-item]
        relay_manifests(manifest)
    )


async def test_the_commands_print_what_the_hub_says_as_long_as_it_is_honest(hub: Hub) -> None:
    await hub.ok("team", "add", "sre")
    await hub.ok("cluster", "add", "prod", "--team", "sre")
    await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    role = (await hub.ok("cluster", "rbac", "prod")).stdout
    assert names_of(role) == {
        "users": frozenset({"agent:sre-1"}),
        "groups": frozenset({"main/sre"}),
        "userextras/hawse.dev/agent-id": frozenset(),
        "userextras/hawse.dev/session": frozenset(),
    }


def test_a_rule_that_the_hub_adds_goes_nowhere() -> None:
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    anybody = {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"]}
    for rule in (everything, anybody, {"nonResourceURLs": ["*"], "verbs": ["*"]}):
        text = role_text(lambda role, rule=rule: role["rules"].append(rule))  # type: ignore[misc,attr-defined]
        printed = rendered_role({"rbac": text}, {})
        role, _ = yaml.safe_load_all(printed)
        assert rule not in role["rules"]
        assert all(each.get("resourceNames") for each in role["rules"] if each["resources"] == ["groups"])
    with pytest.raises(CommandError, match="holds no ClusterRole"):
        rendered_role({"rbac": role_text() + "---\nkind: ClusterRoleBinding\n"}, {})
    made: dict[str, object] = {"relay": RELAY, "manifests": "kind: ClusterRoleBinding\n"}
    assert "ClusterRoleBinding" not in rendered_manifests("prod", made, OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["system:masters", "system:admin", "*", "sre", "main/sre\nx: y"])
def test_a_name_that_is_none_of_ours_is_refused(name: str) -> None:
    for resource in ("users", "groups"):
        rule = {"resources": [resource], "resourceNames": [name]}
        text = role_text(lambda role, rule=rule: role["rules"].append(rule))  # type: ignore[misc,attr-defined]
        # A user is an agent's by its prefix, and "sre" is an agent's name.
        if (resource, name) == ("users", "sre"):
            continue
        with pytest.raises(CommandError, match="must not be impersonated"):
            rendered_role({"rbac": text}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster_id", "c\n---\nkind: Pod"),
        ("hub_url", "https://hub.example\n"),
        ("hub_keys", "[]"),
        ("hub_ca_pem", "x"),
        ("private_key_pem", ""),
        ("mode", "other"),
    ],
)
def test_a_value_that_belongs_into_no_manifest_is_refused(key: str, value: str) -> None:
    with pytest.raises(CommandError, match="not fit for a manifest"):
        rendered_manifests("prod", {"relay": {**RELAY, key: value}}, OPTIONS)  # type: ignore[dict-item]


@pytest.mark.parametrize("text", ["", "[]", "a: b", "{", json.dumps({"rules": 1}) + "\n---\n{}"])
def test_what_is_no_role_is_told_as_that(text: str) -> None:
    with pytest.raises(CommandError, match="holds no ClusterRole"):
        names_of(text)
