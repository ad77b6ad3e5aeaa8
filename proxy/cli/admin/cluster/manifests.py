"""Manifests for `kubectl apply`, written on the operator's side from the hub's names and keys.

The operator applies them with full rights in the cluster, again for each new agent. So they contain no text
from the hub: a compromised hub could otherwise add objects and take over the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from proxy.cli.errors import CommandError
from proxy.cli.output import Object, child, strict_texts, text
from proxy.kubernetes.cluster_role import ManifestError, cluster_role
from proxy.kubernetes.manifests import RelayManifest, relay_manifests
from proxy.kubernetes.write_yaml import to_yaml
from proxy.process.config import Address

_SETUP = ("namespace", "service_account")
_MANIFEST = (*_SETUP, "image", "replicas", "service_type", "hub_ca_pem")


def impersonated(answer: Object) -> tuple[list[str], list[str]]:
    """Return the agents and groups that a cluster's relay must be able to impersonate; raises CommandError.

    All groups must be of one organisation, the hub's. A group of another could be one that the cluster
    already knows from elsewhere.
    """
    named = child(answer, "impersonate")
    groups = strict_texts(named, "groups")
    orgs = sorted({group.partition("/")[0] for group in groups})
    if len(orgs) > 1:
        raise CommandError(f"the hub's answer has groups of several organisations: {', '.join(orgs)}")
    return strict_texts(named, "agents"), groups


def rendered_role(
    answer: Object, options: Mapping[str, object], *, wildcard: bool = False, constrained: bool = False
) -> str:
    """Return the ClusterRole for the hub's names, and its binding; raises CommandError."""
    agents, groups = impersonated(answer)
    setup = {key: str(value) for key, value in _given(options, _SETUP).items()}
    try:
        return to_yaml(cluster_role(agents, groups, wildcard=wildcard, constrained=constrained, **setup))
    except ManifestError as error:
        raise CommandError(f"the hub's answer has names that must not be impersonated: {error}") from error


def rendered_manifests(name: str, made: Object, options: Mapping[str, object]) -> str:
    """Return the relay's objects, from the hub's values and the operator's options; raises CommandError."""
    return to_yaml(relay_manifests(relay_manifest(name, made, options)))


def relay_manifest(name: str, made: Object, options: Mapping[str, object]) -> RelayManifest:
    """Return what the hub and the operator give for the relay's objects; raises CommandError."""
    relay = child(made, "relay")
    values: dict[str, object] = {
        "hub_ca_pem": text(relay, "hub_ca_pem") or None,
        "private_key_pem": text(relay, "private_key_pem") or None,
        **{key: text(relay, key) for key in ("cluster_id", "hub_url", "hub_keys", "mode")},
        **_given(options, _MANIFEST),
    }
    try:
        return RelayManifest(cluster_name=name, **cast("Any", values))
    except ManifestError as error:
        raise CommandError(f"the hub's answer can't be put into a manifest: {error}") from error


def dials_itself(relay: Object) -> bool:
    """Whether the hub's URL is on loopback, so that a pod would dial itself."""
    host = urlsplit(text(relay, "hub_url")).hostname or ""
    return text(relay, "mode") == "tunnel" and Address(host, 0).is_loopback


def _given(options: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    return {key: options[key] for key in keys if options.get(key) is not None}
