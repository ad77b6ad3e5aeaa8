"""Manifests for kubectl are written on the operator's side, from the hub's names and keys."""

from __future__ import annotations

import pytest
import yaml

from auth.keys import KeySet, SigningKey
from proxy.cli.admin.cluster.manifests import dials_itself, rendered_manifests, rendered_role
from proxy.cli.errors import CommandError
from proxy.cli.output import Object
from proxy.kubernetes.cluster_role import cluster_role
from proxy.kubernetes.manifests import RelayManifest, relay_manifests
from proxy.kubernetes.write_yaml import to_yaml
from tests.proxy.cli.admin.conftest import Hub

KEY = SigningKey.generate()
JWKS = KeySet([KEY.public]).to_jwks()
PEM = KEY.to_pem().decode("ascii")
OPTIONS: dict[str, object] = {"namespace": "tools", "service_account": "r", "image": "reg/x:1", "replicas": 3}
RELAY: Object = {
    "cluster_id": "c-1",
    "hub_url": "https://hub.example",
    "hub_keys": JWKS,
    "hub_ca_pem": None,
    "private_key_pem": PEM,
    "mode": "tunnel",
}


@pytest.mark.parametrize(
    ("url", "mode", "itself"),
    [
        ("https://localhost:8443", "tunnel", True),
        ("https://[::1]", "tunnel", True),
        ("https://hub.example", "tunnel", False),
        ("https://localhost:8443", "direct", False),
    ],
)
def test_a_relay_in_a_pod_that_is_to_dial_loopback_is_told_of(url: str, mode: str, itself: bool) -> None:
    assert dials_itself({**RELAY, "hub_url": url, "mode": mode}) is itself


def named(*agents: str, groups: tuple[str, ...] = ("main/sre",)) -> Object:
    return {"impersonate": {"agents": [*agents], "groups": [*groups]}}


@pytest.mark.parametrize("constrained", [True, False])
def test_a_role_is_written_of_names_and_manifests_of_keys(constrained: bool) -> None:
    role = rendered_role(named("sre-1"), OPTIONS, constrained=constrained)
    assert role == to_yaml(
        cluster_role(["sre-1"], ["main/sre"], constrained=constrained, namespace="tools", service_account="r")
    )
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
    assert rendered_manifests("prod", {"relay": RELAY}, OPTIONS) == to_yaml(relay_manifests(manifest))


async def test_a_new_clusters_manifests_hold_the_key_that_the_hub_knows(hub: Hub) -> None:
    printed = (await hub.ok("cluster", "add", "prod", "--namespace", "tools")).stdout
    objects = [item for item in yaml.safe_load_all(printed) if item["kind"] == "Secret"]
    key = SigningKey.from_pem(objects[0]["stringData"]["relay-key.pem"].encode())
    cluster = hub.directory.current.clusters_by_name["prod"]
    assert cluster.relay_keys == (key.public,)
    assert objects[0]["metadata"]["namespace"] == "tools"


@pytest.mark.parametrize("name", ["system:masters", "system:admin", "*", "agent:sre", "main/sre\nx: y", ""])
def test_a_name_that_is_none_of_ours_is_refused(name: str) -> None:
    for answer in (named(name), named(groups=(name,))):
        with pytest.raises(CommandError, match="must not be impersonated"):
            rendered_role(answer, {})


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
    with pytest.raises(CommandError, match="can't be put into a manifest"):
        rendered_manifests("prod", {"relay": {**RELAY, key: value}}, OPTIONS)


def test_groups_of_two_organisations_are_refused() -> None:
    with pytest.raises(CommandError, match="several organisations: corp, main"):
        rendered_role(named("sre-1", groups=("main/sre", "corp/admins")), {})


def test_what_the_operator_says_counts_and_not_what_the_hub_makes_of_it() -> None:
    ca = "-----BEGIN CERTIFICATE-----\nbWluZQ==\n-----END CERTIFICATE-----\n"
    theirs: Object = {**RELAY, "hub_ca_pem": ca.replace("bWluZQ==", "dGhlaXJz")}
    printed = rendered_manifests("prod", {"relay": theirs}, {**OPTIONS, "hub_ca_pem": ca})
    assert "bWluZQ==" in printed
    assert "dGhlaXJz" not in printed


@pytest.mark.parametrize(
    "answer", [{}, {"impersonate": []}, {"impersonate": {"agents": []}}, {"impersonate": {"groups": []}}]
)
def test_no_names_at_all_are_not_taken_for_none(answer: Object) -> None:
    # Applying a role without names would take all impersonation from the relay.
    with pytest.raises(CommandError, match="does the hub run the same version"):
        rendered_role(answer, {})
