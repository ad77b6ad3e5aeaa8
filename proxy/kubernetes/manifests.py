"""Renders the Kubernetes objects of a relay: namespace, service account, keys, Deployment.

They are applied once; the ClusterRole (cluster_role.py) again for each new agent or team. Names and other
inputs are validated. The relay's chart renders the same objects (deploy/charts), and a test compares both.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal, assert_never
from urllib.parse import urlsplit

import attrs

from auth.principal import IdentityError, slug
from proxy.kubernetes.cluster_role import (
    DNS_LABEL,
    NAME,
    NAMESPACE,
    SERVICE_ACCOUNT,
    ManifestError,
    Object,
    Value,
    check,
)
from proxy.process.untrusted_json import read_json
from proxy.process.version import VERSION

KEYS_SECRET = "hawse-relay-keys"  # noqa: S105 - the name of an object
TLS_SECRET = "hawse-relay-tls"  # noqa: S105
# Never printed here: the cluster's owner writes it, and the hub must not control it.
GUARDRAILS = "hawse-relay-guardrails"

# It is in no registry: operators build it (deploy/README.md).
DEFAULT_IMAGE = f"{NAME}:{VERSION}"
# The image's user; no user of a node has this number.
USER_ID = 65532
KEYS_FOLDER = "/etc/hawse/keys"
TLS_FOLDER = "/etc/hawse/tls"
GUARDRAILS_FOLDER = "/etc/hawse/guardrails"
HEALTH_PORT = 8080
DIRECT_PORT = 8443
# For open calls and the data they carry. The limit leaves 192 MiB beside it, for the process itself and for
# memory that is counted late or not at all.
MEMORY_MIB = 320
MEMORY_LIMIT_MIB = 512
# The grace for a stopping relay's streams, while its siblings take new ones. A pod whose streams have ended
# exits at once.
STOP_GRACE_S = 900
# Longer by the rest of a stop, so that the kubelet's SIGKILL never cuts a stop that is about to end.
TERMINATION_GRACE_S = STOP_GRACE_S + 15

_CLUSTER_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
# An image reference as container runtimes parse it, without the rare forms: host:port/path:tag@digest.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_URL = re.compile(r"https://[A-Za-z0-9.:\[\]-]{1,300}")
_PEM = re.compile(r"(?:-----BEGIN [A-Z0-9 ]+-----\n[A-Za-z0-9+/=\n]+-----END [A-Z0-9 ]+-----\n?)+")


@attrs.frozen(kw_only=True)
class RelayManifest:
    """The parameters of one relay's manifests; cannot be constructed with a hostile value."""

    cluster_id: str
    cluster_name: str
    hub_url: str
    hub_keys: str
    """The hub's public keys as a JWKS document."""
    hub_ca_pem: str | None = None
    """Tunnel mode: the CA of the hub's certificate, unless a public CA issued it."""
    mode: Literal["tunnel", "direct"] = "tunnel"
    private_key_pem: str | None = attrs.field(default=None, repr=False)
    """Tunnel mode: the private key that authenticates the relay to the hub."""
    tls_certificate_pem: str | None = None
    tls_key_pem: str | None = attrs.field(default=None, repr=False)
    """Direct mode; without them the operator or cert-manager creates the Secret `hawse-relay-tls`."""
    service_type: Literal["LoadBalancer", "ClusterIP", "NodePort"] = "LoadBalancer"
    image: str = DEFAULT_IMAGE
    version: str = VERSION
    namespace: str = NAMESPACE
    service_account: str = SERVICE_ACCOUNT
    replicas: int = 2

    def __attrs_post_init__(self) -> None:
        try:
            slug("cluster name", self.cluster_name)
        except IdentityError as error:
            raise ManifestError(str(error)) from error
        check("cluster id", self.cluster_id, _CLUSTER_ID)
        check("hub URL", self.hub_url, _URL)
        if not urlsplit(self.hub_url).hostname:
            raise ManifestError("hub URL has no host")
        check("image", self.image, _IMAGE)
        check("version", self.version, _VERSION)
        check("namespace", self.namespace, DNS_LABEL)
        check("service account", self.service_account, DNS_LABEL)
        for name, pem in (
            ("hub CA", self.hub_ca_pem),
            ("relay key", self.private_key_pem),
            ("TLS certificate", self.tls_certificate_pem),
            ("TLS key", self.tls_key_pem),
        ):
            if pem is not None and _PEM.fullmatch(pem) is None:
                raise ManifestError(f"{name} is not PEM")
        _check_jwks(self.hub_keys)
        if self.mode not in ("tunnel", "direct"):
            raise ManifestError(f"mode {self.mode!a} is neither tunnel nor direct")
        if self.mode == "tunnel" and self.private_key_pem is None:
            raise ManifestError("tunnel mode needs the relay's private key")
        if self.mode == "direct" and (self.tls_certificate_pem is None) != (self.tls_key_pem is None):
            raise ManifestError("TLS certificate and key are given together, or neither")
        if self.service_type not in ("LoadBalancer", "ClusterIP", "NodePort"):
            raise ManifestError(f"service type {self.service_type!a} is not valid")
        if not 1 <= self.replicas <= 16:
            raise ManifestError(f"{self.replicas} replicas: a cluster has 1 to 16 relays")


def relay_manifests(manifest: RelayManifest) -> list[Object]:
    """Render the relay's own objects, in the order in which they are applied."""
    objects = [
        namespace(manifest),
        _object("v1", "ServiceAccount", manifest.service_account, manifest)
        # The account may impersonate, so only pods that request its token get it.
        | {"automountServiceAccountToken": False},
        keys_secret(manifest),
    ]
    if manifest.tls_certificate_pem is not None and manifest.tls_key_pem is not None:
        objects.append(
            _object("v1", "Secret", TLS_SECRET, manifest)
            | {
                "type": "kubernetes.io/tls",
                "stringData": {"tls.crt": manifest.tls_certificate_pem, "tls.key": manifest.tls_key_pem},
            }
        )
    objects.append(_deployment(manifest))
    objects.append(
        _object("policy/v1", "PodDisruptionBudget", NAME, manifest)
        | {"spec": {"maxUnavailable": 1, "selector": {"matchLabels": _selector(manifest)}}}
    )
    if manifest.mode == "direct":
        objects.append(_service(manifest))
    return objects


def keys_secret(manifest: RelayManifest) -> Object:
    """Render the Secret with the relay's private key, the hub's public keys and its CA."""
    return _object("v1", "Secret", KEYS_SECRET, manifest) | {
        "type": "Opaque",
        "stringData": _key_files(manifest),
    }


def keys_digest(manifest: RelayManifest) -> str:
    """Return a digest of the Secret's files: 32 hexadecimal digits, which disclose none of them."""
    content = json.dumps(_key_files(manifest), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _key_files(manifest: RelayManifest) -> Object:
    files: Object = {"hub-keys.json": manifest.hub_keys}
    if manifest.mode == "tunnel":
        assert manifest.private_key_pem is not None
        files["relay-key.pem"] = manifest.private_key_pem
        if manifest.hub_ca_pem is not None:
            files["hub-ca.pem"] = manifest.hub_ca_pem
    return files


def namespace(manifest: RelayManifest) -> Object:
    """Render the relay's namespace, under the restricted Pod Security profile."""
    levels: Object = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
    }
    labels = _labels(manifest) | levels
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": manifest.namespace, "labels": labels},
    }


def _deployment(manifest: RelayManifest) -> Object:
    return _object("apps/v1", "Deployment", NAME, manifest) | {
        "spec": {
            "replicas": manifest.replicas,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": _selector(manifest)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": _rolling(manifest.replicas)},
            "template": {
                "metadata": {
                    "labels": _labels(manifest),
                    # The relay reads its keys at its start, so new keys must create new pods.
                    "annotations": {"hawse.dev/keys": keys_digest(manifest)},
                },
                "spec": _pod(manifest),
            },
        }
    }


def _rolling(replicas: int) -> Object:
    """Keep at least one relay, and never more than the hub accepts from a cluster.

    With several replicas, one stops first: it finishes its open streams, its siblings take new ones, and its
    successor gets its slot. A single replica has no sibling, so its successor starts first.
    """
    alone = replicas == 1
    return {"maxUnavailable": 0 if alone else 1, "maxSurge": 1 if alone else 0}


def _pod(manifest: RelayManifest) -> Object:
    volumes: list[Value] = [
        {"name": "keys", "secret": {"secretName": KEYS_SECRET, "defaultMode": 0o440}},
        # Mounted always, so that manifests that are applied later cannot leave the owner's limits out.
        {"name": "guardrails", "configMap": {"name": GUARDRAILS, "optional": True}},
    ]
    if manifest.mode == "direct":
        volumes.append({"name": "tls", "secret": {"secretName": TLS_SECRET, "defaultMode": 0o440}})
    return {
        "serviceAccountName": manifest.service_account,
        "automountServiceAccountToken": True,
        # Kubernetes would add variables named after the namespace's Services to the relay's own.
        "enableServiceLinks": False,
        # Otherwise the relay is process 1, which ignores a signal without a handler. A pod that is stopped
        # while Python starts would then stay, and take calls, until the SIGKILL a quarter of an hour later.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # On two nodes if there are two, otherwise on one.
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _selector(manifest)},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "containers": [_container(manifest)],
        "volumes": volumes,
    }


def _container(manifest: RelayManifest) -> Object:
    mounts: list[Value] = [
        {"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True},
        {"name": "guardrails", "mountPath": GUARDRAILS_FOLDER, "readOnly": True},
    ]
    ports: list[Value] = [{"name": "health", "containerPort": HEALTH_PORT}]
    if manifest.mode == "direct":
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
        ports.append({"name": "https", "containerPort": DIRECT_PORT})
    return {
        "name": "relay",
        "image": manifest.image,
        "args": ["relay"],
        "env": _environment(manifest),
        "ports": ports,
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # An idle relay has about 60 MB.
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": f"{MEMORY_LIMIT_MIB}Mi"},
        },
        "startupProbe": _probe("/healthz", period_s=1, failures=60),
        # Alive means that the event loop answers. A restart would not help against an unreachable hub.
        "livenessProbe": _probe("/healthz", period_s=10, failures=3),
        "readinessProbe": _probe("/readyz", period_s=5, failures=2),
    }


def _environment(manifest: RelayManifest) -> list[Value]:
    values = {
        "MODE": manifest.mode,
        "CLUSTER_ID": manifest.cluster_id,
        "HUB_URL": manifest.hub_url,
        "HUB_KEYS": f"{KEYS_FOLDER}/hub-keys.json",
        "GUARDRAILS": GUARDRAILS_FOLDER,
        "HEALTH_LISTEN": f"[::]:{HEALTH_PORT}",
        "STOP_GRACE_S": str(STOP_GRACE_S),
        "MEMORY_MIB": str(MEMORY_MIB),
    }
    match manifest.mode:
        case "tunnel":
            values["PRIVATE_KEY"] = f"{KEYS_FOLDER}/relay-key.pem"
            if manifest.hub_ca_pem is not None:
                values["HUB_CA"] = f"{KEYS_FOLDER}/hub-ca.pem"
        case "direct":
            values["DIRECT_LISTEN"] = f"[::]:{DIRECT_PORT}"
            values["DIRECT_CERTIFICATE"] = f"{TLS_FOLDER}/tls.crt"
            values["DIRECT_KEY"] = f"{TLS_FOLDER}/tls.key"
        case _:
            assert_never(manifest.mode)
    environment: list[Value] = [
        {"name": f"HAWSE_RELAY_{name}", "value": value} for name, value in values.items()
    ]
    environment.append(
        {"name": "HAWSE_RELAY_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    )
    return environment


def _service(manifest: RelayManifest) -> Object:
    return _object("v1", "Service", NAME, manifest) | {
        "spec": {
            "type": manifest.service_type,
            "selector": _selector(manifest),
            # The relay terminates TLS: a load balancer in front of it must forward TCP.
            "ports": [{"name": "https", "port": 443, "targetPort": "https"}],
        }
    }


def _probe(path: str, *, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "health"},
        "periodSeconds": period_s,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def _object(api_version: str, kind: str, name: str, manifest: RelayManifest) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": manifest.namespace, "labels": _labels(manifest)},
    }


def _selector(manifest: RelayManifest) -> Object:
    return {"app.kubernetes.io/name": NAME, "app.kubernetes.io/instance": manifest.cluster_name}


def _labels(manifest: RelayManifest) -> Object:
    return _selector(manifest) | {
        "app.kubernetes.io/version": manifest.version,
        "app.kubernetes.io/component": "relay",
        "app.kubernetes.io/part-of": "hawse",
        "app.kubernetes.io/managed-by": "hawse",
    }


def _check_jwks(text: str) -> None:
    try:
        document = read_json(text)
    except ValueError as error:
        raise ManifestError("hub keys are not JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list) or not document["keys"]:
        raise ManifestError("hub keys are not a JWKS with at least one key")
