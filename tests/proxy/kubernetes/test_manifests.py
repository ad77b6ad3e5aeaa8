from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import attrs
import kubernetes_validate
import pytest
import trustme
import yaml
from hypothesis import given
from hypothesis import strategies as st

from auth.impersonation import AGENT_ID_KEY, SESSION_KEY
from auth.keys import KeySet, SigningKey
from proxy.kubernetes.cluster_role import CLUSTER_ROLE, ManifestError, Object, cluster_role
from proxy.kubernetes.manifests import RelayManifest, relay_manifests
from proxy.kubernetes.write_yaml import to_yaml
from proxy.process.settings import MIB
from proxy.relay import config as relay_config

ROOT = Path(__file__).parents[3]
# The oldest version that Kubernetes still maintains beside the newest that the schemas know.
SCHEMAS = ("1.33", kubernetes_validate.latest_version())
# Shaped like keys and certificates without being any, so that the example holds nothing that a scanner
# would have to report.
FAKE_KEY = "-----BEGIN PRIVATE KEY-----\nprintedByHawseAdminClusterAdd\n-----END PRIVATE KEY-----\n"
FAKE_CA = "-----BEGIN CERTIFICATE-----\nprintedByHawseAdminClusterAdd\n-----END CERTIFICATE-----\n"
FAKE_JWKS = '{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"example","x":"printedByHawseAdminClusterAdd"}]}'

EXAMPLE = RelayManifest(
    cluster_id="0199a1b2-0000-7000-8000-000000000000",
    cluster_name="prod",
    hub_url="https://hub.example",
    hub_keys=FAKE_JWKS,
    hub_ca_pem=FAKE_CA,
    private_key_pem=FAKE_KEY,
)
DIRECT = attrs.evolve(EXAMPLE, mode="direct", tls_certificate_pem=FAKE_CA, tls_key_pem=FAKE_KEY)
EXAMPLE_HEAD = """\
# What `hawse admin cluster add` prints for a cluster in tunnel mode, with the ClusterRole that
# `hawse admin cluster rbac` prints for one agent and one team. Its keys are placeholders: do not apply it.
# A test keeps it equal to the rendered manifests.
"""
HOSTILE = [
    "$(id)",
    'a"b',
    "a\nb",
    "--server=x",
    "a b",
    "",
    "a'b",
    "a: b",
    "{{x}}",
    "system:masters",
    "ſ",
    "a\n",
]


def by_kind(objects: list[Object], kind: str) -> dict[str, object]:
    # By way of the YAML, so that what is looked at is what the cluster reads.
    (found,) = [item for item in yaml.safe_load_all(to_yaml(objects)) if item["kind"] == kind]
    assert isinstance(found, dict)
    return found


def container(manifest: RelayManifest) -> dict[str, object]:
    deployment = json.loads(json.dumps(by_kind(relay_manifests(manifest), "Deployment")))
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize(
    "manifest", [EXAMPLE, DIRECT, attrs.evolve(DIRECT, tls_certificate_pem=None, tls_key_pem=None)]
)
def test_every_object_is_strictly_valid(manifest: RelayManifest) -> None:
    objects = [*relay_manifests(manifest), *cluster_role(["robot"], ["acme/demo"])]
    read_back = list(yaml.safe_load_all(to_yaml(objects)))
    assert read_back == objects
    for item in read_back:
        for version in SCHEMAS:
            kubernetes_validate.validate(item, version, strict=True)


def test_the_example_is_what_is_rendered() -> None:
    rendered = EXAMPLE_HEAD + to_yaml([*relay_manifests(EXAMPLE), *cluster_role(["robot"], ["acme/demo"])])
    assert (ROOT / "deploy" / "relay.example.yaml").read_text() == rendered


def test_the_role_names_exactly_the_enrolled_and_our_own_extras() -> None:
    role = by_kind(cluster_role(["robot", "abe", "robot"], ["acme/sre", "acme/demo"]), "ClusterRole")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["users"],
            "verbs": ["impersonate"],
            "resourceNames": ["agent:abe", "agent:robot"],
        },
        {
            "apiGroups": [""],
            "resources": ["groups"],
            "verbs": ["impersonate"],
            "resourceNames": ["acme/demo", "acme/sre"],
        },
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": [f"userextras/{AGENT_ID_KEY}", f"userextras/{SESSION_KEY}"],
            "verbs": ["impersonate"],
        },
        # Its own, and all of it: the namespace whose UID is the cluster's.
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "verbs": ["get"],
            "resourceNames": ["kube-system"],
        },
    ]


def test_without_agents_there_is_no_rule_because_no_names_would_mean_all_names() -> None:
    role = by_kind(cluster_role([], []), "ClusterRole")
    assert isinstance(role["rules"], list)
    assert [rule["resources"][0].partition("/")[0] for rule in role["rules"]] == [
        "userextras",
        "namespaces",
    ]


def test_only_the_flag_gives_a_wildcard() -> None:
    role = by_kind(cluster_role(["robot"], ["acme/sre"], wildcard=True), "ClusterRole")
    assert isinstance(role["rules"], list)
    assert role["rules"][0] == {
        "apiGroups": [""],
        "resources": ["users", "groups"],
        "verbs": ["impersonate"],
    }


def test_the_binding_names_the_relays_account() -> None:
    binding = by_kind(cluster_role([], [], namespace="ns", service_account="sa"), "ClusterRoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "sa", "namespace": "ns"}]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": CLUSTER_ROLE,
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(ManifestError):
        cluster_role([name], [])
    for group in (name, f"{name}/team", f"acme/{name}"):
        with pytest.raises(ManifestError):
            cluster_role([], [group])
    with pytest.raises(ManifestError):
        cluster_role([], [], namespace=name)
    for field in (
        "cluster_id",
        "cluster_name",
        "hub_url",
        "image",
        "namespace",
        "service_account",
        "version",
        "hub_keys",
    ):
        if (field, name) == ("image", "system:masters"):
            continue  # the image `system` with the tag `masters`
        with pytest.raises(ManifestError):
            attrs.evolve(EXAMPLE, **{field: name})


@pytest.mark.parametrize(
    "changes",
    [
        {"private_key_pem": None},
        {"private_key_pem": "a: b"},
        {"private_key_pem": FAKE_KEY + "rules: []\n"},
        {"hub_ca_pem": "-----BEGIN CERTIFICATE-----"},
        {"hub_keys": "{}"},
        {"hub_keys": "[" * 100_000},
        {"hub_keys": '{"keys":[]}'},
        {"hub_url": "http://hub.example"},
        {"hub_url": "https://hub.example/path"},
        {"hub_url": "https://user@hub.example"},
        {"mode": "other"},
        {"replicas": 0},
        {"mode": "direct", "tls_key_pem": FAKE_KEY},
        {"service_type": "ExternalName"},
    ],
)
def test_a_manifest_that_could_not_work_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ManifestError) as refusal:
        attrs.evolve(EXAMPLE, **changes)
    assert "printedBy" not in str(refusal.value)
    assert "printedBy" not in repr(EXAMPLE).replace(FAKE_JWKS, "").replace(repr(FAKE_CA), "")


@given(st.text())
def test_any_string_stays_that_string(text: str) -> None:
    # Any but what YAML cannot hold at all.
    printable = re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]", "?", text)
    assert yaml.safe_load(to_yaml([{"value": printable}])) == {"value": printable}


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "1e3",
        "0o7",
        "1_0",
        "null",
        "~",
        "=",
        "<<",
        "2026-01-01",
        "!x",
        "&x",
        "*x",
        "a: b",
        "0x1f",
        "08",
        "-",
        "y",
        "N",
        "inf",
        ".inf",
    ],
)
def test_what_some_parser_takes_for_another_type_is_quoted(text: str) -> None:
    written = to_yaml([{"value": text}]).removeprefix("---\nvalue: ").rstrip("\n")
    assert written in {f'"{text}"', f"'{text}'"} or text == "inf"


@pytest.mark.parametrize("mode", ["tunnel", "direct"])
def test_the_relay_reads_its_configuration_out_of_the_environment(
    mode: Literal["tunnel", "direct"], tmp_path: Path
) -> None:
    key = SigningKey.generate()
    manifest = attrs.evolve(
        DIRECT,
        mode=mode,
        private_key_pem=key.to_pem().decode(),
        hub_keys=KeySet([key.public]).to_jwks(),
        hub_ca_pem=trustme.CA().cert_pem.bytes().decode(),
    )
    environment = {}
    deployment = container(manifest)
    assert isinstance(deployment["env"], list)
    for variable in deployment["env"]:
        environment[variable["name"]] = variable.get("value", "relay-pod-1")
    # The Secrets as the kubelet mounts them, but under a folder of the test's own.
    for secret in (item for item in relay_manifests(manifest) if item["kind"] == "Secret"):
        assert isinstance(secret["metadata"], dict)
        folder = tmp_path / ("tls" if secret["metadata"]["name"] == "hawse-relay-tls" else "keys")
        folder.mkdir()
        assert isinstance(secret["stringData"], dict)
        for name, content in secret["stringData"].items():
            (folder / name).write_text(str(content))
    # The owner's ConfigMap is optional; its folder is there all the same.
    (tmp_path / "guardrails").mkdir()
    environment = {name: value.replace("/etc/hawse", str(tmp_path)) for name, value in environment.items()}
    config = relay_config.load(environment=environment)
    assert config.instance == "relay-pod-1"
    assert config.hub_url == "https://hub.example"
    assert str(config.health_listen) == "[::]:8080"
    # What the relay would choose itself, stated beside the limit that it goes with.
    assert config.memory_bytes == relay_config.MEMORY_MIB * MIB
    expected = relay_config.TunnelDial if mode == "tunnel" else relay_config.DirectListener
    assert isinstance(config.way, expected)


def test_the_pod_keeps_to_the_restricted_profile() -> None:
    relay = container(EXAMPLE)
    assert relay["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    namespace = by_kind(relay_manifests(EXAMPLE), "Namespace")
    assert isinstance(namespace["metadata"], dict)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_relay_is_not_process_1_which_misses_a_signal_that_comes_early() -> None:
    deployment = json.loads(json.dumps(by_kind(relay_manifests(EXAMPLE), "Deployment")))
    assert deployment["spec"]["template"]["spec"]["shareProcessNamespace"] is True


def test_liveness_never_asks_for_the_hub() -> None:
    relay = json.loads(json.dumps(container(EXAMPLE)))
    paths = {name: relay[name]["httpGet"]["path"] for name in relay if name.endswith("Probe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_tunnel_mode_has_no_inbound_port_and_direct_mode_no_relay_key() -> None:
    assert "Service" not in {item["kind"] for item in relay_manifests(EXAMPLE)}
    assert json.loads(json.dumps(container(EXAMPLE)))["ports"] == [{"name": "health", "containerPort": 8080}]
    direct = relay_manifests(DIRECT)
    assert "Service" in {item["kind"] for item in direct}
    assert "relay-key.pem" not in to_yaml(direct)


def test_new_keys_make_new_pods() -> None:
    def annotation(manifest: RelayManifest) -> object:
        deployment = json.loads(json.dumps(by_kind(relay_manifests(manifest), "Deployment")))
        return deployment["spec"]["template"]["metadata"]["annotations"]

    other = attrs.evolve(EXAMPLE, private_key_pem=FAKE_KEY.replace("printed", "rotated"))
    assert annotation(EXAMPLE) == annotation(attrs.evolve(EXAMPLE))
    assert annotation(EXAMPLE) != annotation(other)


def test_the_constrained_form_names_the_same_and_every_verb() -> None:
    role = by_kind(cluster_role(["robot"], ["acme/demo"], constrained=True), "ClusterRole")
    assert isinstance(role["rules"], list)
    *identity, resources, urls = role["rules"]
    assert identity == [
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["users"],
            "verbs": ["impersonate:user-info"],
            "resourceNames": ["agent:robot"],
        },
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["groups"],
            "verbs": ["impersonate:user-info"],
            "resourceNames": ["acme/demo"],
        },
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["userextras/hawse.dev/agent-id", "userextras/hawse.dev/session"],
            "verbs": ["impersonate:user-info"],
        },
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "verbs": ["get"],
            "resourceNames": ["kube-system"],
        },
    ]
    # Never "*": that would be the plain verbs too, which the relay itself must not have.
    verbs = [*resources["verbs"], *urls["verbs"]]
    assert all(re.fullmatch(r"impersonate-on:user-info:[a-z]+", verb) for verb in verbs)
    assert (resources["resources"], urls["nonResourceURLs"]) == (["*"], ["*"])
    assert "impersonate-on:user-info:deletecollection" in resources["verbs"]
    wild = by_kind(cluster_role([], [], wildcard=True, constrained=True), "ClusterRole")
    assert isinstance(wild["rules"], list)
    assert wild["rules"][0] == {
        "apiGroups": ["authentication.k8s.io"],
        "resources": ["users", "groups"],
        "verbs": ["impersonate:user-info"],
    }


def test_the_owners_guardrails_are_always_mounted() -> None:
    for manifest in (EXAMPLE, DIRECT):
        deployment = json.loads(json.dumps(by_kind(relay_manifests(manifest), "Deployment")))
        volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
        assert volumes["guardrails"]["configMap"] == {"name": "hawse-relay-guardrails", "optional": True}
        mounts = {
            mount["name"]: mount for mount in json.loads(json.dumps(container(manifest)))["volumeMounts"]
        }
        assert mounts["guardrails"]["readOnly"] is True
        # What they say is not the hub's to write.
        assert "ConfigMap" not in {item["kind"] for item in relay_manifests(manifest)}


@pytest.mark.parametrize("manifest", [EXAMPLE, DIRECT], ids=["tunnel", "direct"])
def test_the_relay_mounts_every_volume_of_its_pod(manifest: RelayManifest) -> None:
    deployment = json.loads(json.dumps(by_kind(relay_manifests(manifest), "Deployment")))
    pod = deployment["spec"]["template"]["spec"]
    (relay,) = pod["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in relay["volumeMounts"]}
    assert folders.keys() == {volume["name"] for volume in pod["volumes"]}
    files = [
        each["value"]
        for each in relay["env"]
        if each["name"]
        in {"HAWSE_RELAY_HUB_KEYS", "HAWSE_RELAY_PRIVATE_KEY", "HAWSE_RELAY_DIRECT_CERTIFICATE"}
    ]
    assert len(files) == 2
    assert {str(Path(file).parent) for file in files} <= set(folders.values())


def test_a_rollout_keeps_one_relay_and_never_has_more_than_the_hub_takes() -> None:
    def strategy(replicas: int) -> object:
        manifest = attrs.evolve(EXAMPLE, replicas=replicas)
        deployment = json.loads(json.dumps(by_kind(relay_manifests(manifest), "Deployment")))
        return deployment["spec"]["strategy"]["rollingUpdate"]

    # The hub counts no relay that goes away, and two at the most of all others.
    assert strategy(2) == {"maxUnavailable": 1, "maxSurge": 0}
    assert strategy(1) == {"maxUnavailable": 0, "maxSurge": 1}
