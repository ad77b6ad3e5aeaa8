"""Twelve sets of values, which cover each value of the chart, and the objects that each must render.

One truth: the objects are those of `proxy.kubernetes.manifests` for the same input, with the differences that
are named here. What no manifest has is stated here, set by set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import yaml

from deploy.charts import FOLDER
from proxy.kubernetes.chart_values import relay_values
from proxy.kubernetes.cluster_role import cluster_role
from proxy.kubernetes.manifests import RelayManifest, relay_manifests

CHART = FOLDER / "hawse-relay"
VERSION: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
DEFAULTS: Mapping[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
PEM = "-----BEGIN {0}-----\nprintedByHawseAdminClusterAdd\n-----END {0}-----\n"
BASE = RelayManifest(
    cluster_id="0199a1b2-0000-7000-8000-000000000000",
    cluster_name="prod",
    hub_url="https://hub.example",
    hub_keys='{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"example","x":"printedByHawseAdminClusterAdd"}]}',
    hub_ca_pem=PEM.format("CERTIFICATE"),
    private_key_pem=PEM.format("PRIVATE KEY"),
)
SELECTOR = {"app.kubernetes.io/name": "hawse-relay", "app.kubernetes.io/instance": "prod"}
# Applied before the chart, by the file that `--secret` names.
NOT_IN_THE_CHART = {"Namespace", "Secret"}

Objects = dict[tuple[str, str], dict[str, Any]]


@attrs.frozen
class ValueSet:
    """Values, and what they change beside what the manifests have."""

    name: str
    manifest: RelayManifest = BASE
    agents: tuple[str, ...] = ("robot", "abe")
    groups: tuple[str, ...] = ("acme/demo",)
    form: str = "plain"
    more: Mapping[str, Any] = attrs.Factory(dict)
    """Values beside those that `cluster add --output helm` prints."""
    change: Callable[[Objects], None] = lambda objects: None
    """Makes of the manifests' objects what these values make of them."""

    @property
    def values(self) -> dict[str, Any]:
        constrained = self.form == "constrained"
        printed = relay_values(self.manifest, self.agents, self.groups, constrained=constrained)
        return merged(printed, self.more)

    @property
    def expected(self) -> Objects:
        place = {"namespace": self.manifest.namespace, "service_account": self.manifest.service_account}
        role = cluster_role(
            self.agents,
            self.groups,
            wildcard=self.form == "wildcard",
            constrained=self.form == "constrained",
            **place,
        )
        made = by_name(copy.deepcopy([*relay_manifests(self.manifest), *role]))
        objects = {key: each for key, each in made.items() if key[0] not in NOT_IN_THE_CHART}
        self.change(objects)
        for each in objects.values():
            each["metadata"]["labels"] |= {
                "app.kubernetes.io/managed-by": "Helm",
                "helm.sh/chart": f"hawse-relay-{VERSION}",
            }
        pod = objects["Deployment", "hawse-relay"]["spec"]["template"]
        pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
        return objects


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merge values as Helm does: maps by key, and all else is replaced."""
    both = dict(values)
    for key, value in more.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def by_name(objects: list[Any]) -> Objects:
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found


def pod_of(objects: Objects) -> dict[str, Any]:
    pod = objects["Deployment", "hawse-relay"]["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def volume(objects: Objects) -> dict[str, Any]:
    [found] = [each for each in pod_of(objects)["volumes"] if each["name"] == "guardrails"]
    config_map = found["configMap"]
    assert isinstance(config_map, dict)
    return config_map


def add(objects: Objects, api_version: str, kind: str, name: str, **content: object) -> dict[str, Any]:
    """Add an object with the metadata of the others."""
    metadata = copy.deepcopy(objects["Deployment", "hawse-relay"]["metadata"]) | {"name": name}
    made: dict[str, Any] = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
    objects[kind, name] = made
    return made


TEXT = "kind: Policy\nmetadata: {name: own}\nspec:\n  bind: {teams: ['*']}\n"


def guardrails_of_a_text(objects: Objects) -> None:
    add(objects, "v1", "ConfigMap", "hawse-relay-guardrails", data={"guardrails.yaml": TEXT})
    # Without its limits the relay must not start.
    del volume(objects)["optional"]


def guardrails_of_a_map(objects: Objects) -> None:
    config_map = volume(objects)
    del config_map["optional"]
    config_map["name"] = "owners-limits"


def pull_secret(objects: Objects) -> None:
    pod_of(objects)["imagePullSecrets"] = [{"name": "registry"}]


def network_policy(objects: Objects, *ports: int, scrape: list[dict[str, Any]] | None = None) -> None:
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": SELECTOR},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [
            {
                "ports": [
                    {"port": 53, "protocol": "UDP"},
                    {"port": 53, "protocol": "TCP"},
                    *({"port": port, "protocol": "TCP"} for port in ports),
                ]
            }
        ],
    }
    if scrape is not None:
        spec["ingress"] = [{"from": scrape, "ports": [{"port": "health"}]}]
    add(objects, "networking.k8s.io/v1", "NetworkPolicy", "hawse-relay", spec=spec)


def pod_monitor(objects: Objects, interval: str, labels: Mapping[str, str]) -> None:
    spec = {
        "jobLabel": "app.kubernetes.io/name",
        "selector": {"matchLabels": SELECTOR},
        "podMetricsEndpoints": [{"port": "health", "path": "/metrics", "interval": interval}],
    }
    made = add(objects, "monitoring.coreos.com/v1", "PodMonitor", "hawse-relay", spec=spec)
    made["metadata"]["labels"] |= labels


SCRAPER: list[dict[str, Any]] = [
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["prometheus"]}]},
    },
    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
]
DIGEST = "sha256:" + "0123456789abcdef" * 4
EVERYTHING: Mapping[str, Any] = {
    "image": {"pullSecrets": ["registry"]},
    "impersonate": {"iKnow": False},
    "guardrails": {"text": TEXT, "configMap": ""},
    "memoryMib": 834,
    "resources": {
        "requests": {"cpu": "200m", "memory": "256Mi"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    },
    "networkPolicy": {"enabled": True, "egressPorts": [6443, 3128], "scrapeFrom": SCRAPER},
    "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "infra", "operator": "Equal", "value": "y", "effect": "NoExecute"}],
    "topologySpread": [{"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
    "extraEnv": [
        {"name": "HTTPS_PROXY", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}}},
        {"name": "HAWSE_RELAY_TUNNEL_PING_S", "value": "20"},
    ],
    "global": {"of": "a parent chart"},
}


def everything(objects: Objects) -> None:
    guardrails_of_a_text(objects)
    pull_secret(objects)
    network_policy(objects, 8443, 6443, 3128, scrape=SCRAPER)
    pod_monitor(objects, "15s", {"release": "prometheus"})
    pod = pod_of(objects)
    pod["priorityClassName"] = "system-cluster-critical"
    pod["nodeSelector"] = {"kubernetes.io/os": "linux"}
    pod["tolerations"] = EVERYTHING["tolerations"]
    spread = {"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
    pod["topologySpreadConstraints"] = [spread | {"labelSelector": {"matchLabels": SELECTOR}}]
    [container] = pod["containers"]
    container["resources"] = EVERYTHING["resources"]
    [memory] = [each for each in container["env"] if each["name"] == "HAWSE_RELAY_MEMORY_MIB"]
    memory["value"] = "834"
    container["env"] += EVERYTHING["extraEnv"]


SETS = {
    each.name: each
    for each in (
        ValueSet("example"),
        ValueSet("public-ca-and-no-names", attrs.evolve(BASE, hub_ca_pem=None), (), ()),
        ValueSet("constrained", form="constrained"),
        ValueSet("wildcard", form="wildcard", more={"impersonate": {"form": "wildcard", "iKnow": True}}),
        ValueSet("one-replica", attrs.evolve(BASE, replicas=1), agents=("b", "a", "b")),
        ValueSet(
            "eight-replicas-of-a-registry",
            attrs.evolve(BASE, replicas=8, image="reg.example:5000/hawse/relay:2.0"),
            more={"image": {"pullSecrets": ["registry"]}},
            change=pull_secret,
        ),
        ValueSet("digest", attrs.evolve(BASE, image=f"reg.example/relay@{DIGEST}")),
        ValueSet("guardrails-text", more={"guardrails": {"text": TEXT}}, change=guardrails_of_a_text),
        ValueSet(
            "guardrails-map", more={"guardrails": {"configMap": "owners-limits"}}, change=guardrails_of_a_map
        ),
        ValueSet(
            "network-policy",
            attrs.evolve(BASE, namespace="tools"),
            more={"networkPolicy": {"enabled": True}},
            change=lambda objects: network_policy(objects, 443, 6443),
        ),
        ValueSet(
            "pod-monitor",
            more={"podMonitor": {"enabled": True}},
            change=lambda objects: pod_monitor(objects, "30s", {}),
        ),
        ValueSet(
            "everything",
            attrs.evolve(
                BASE,
                hub_url="https://hub.example:8443",
                image=f"reg.example/relay:2.0@{DIGEST}",
                namespace="tools",
                service_account="tunnel",
                replicas=3,
            ),
            groups=("acme/demo", "acme/a"),
            form="constrained",
            more=EVERYTHING,
            change=everything,
        ),
    )
}
