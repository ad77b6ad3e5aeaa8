"""What is piped into kubectl, written on the operator's side from the names and keys that the hub says.

Whoever applies it has every right in that cluster, and does it again with each new agent. So no text of the
hub's goes there: a hub in other hands would add an object to it, and hold the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from proxy.cli.admin.client import Object
from proxy.cli.admin.output import child, strict_texts, text
from proxy.cli.errors import CommandError
from proxy.kubernetes.manifests import ManifestError, RelayManifest, cluster_role, relay_manifests, to_yaml
from proxy.process.config import Address

_PLACE = ("namespace", "service_account")
_MANIFEST = (*_PLACE, "image", "replicas", "service_type", "hub_ca_pem")


def impersonated(answer: Object) -> tuple[list[str], list[str]]:
    """The agents and the groups whom a cluster's relay has to be able to impersonate; raises CommandError.

    All groups are of the hub's one organisation. One that it brings along from another would be one that the
    cluster has from elsewhere.
    """
    named = child(answer, "impersonate")
    groups = strict_texts(named, "groups")
    orgs = sorted({group.partition("/")[0] for group in groups})
    if len(orgs) > 1:
        raise CommandError(f"the hub's answer names groups of several organisations: {', '.join(orgs)}")
    return strict_texts(named, "agents"), groups


def rendered_role(
    answer: Object, options: Mapping[str, object], *, wildcard: bool = False, constrained: bool = False
) -> str:
    """The ClusterRole for whom the hub names, and its binding; raises CommandError."""
    agents, groups = impersonated(answer)
    place = {key: str(value) for key, value in _said(options, _PLACE).items()}
    try:
        return to_yaml(cluster_role(agents, groups, wildcard=wildcard, constrained=constrained, **place))
    except ManifestError as error:
        raise CommandError(f"the hub's answer names who must not be impersonated: {error}") from error


def rendered_manifests(name: str, made: Object, options: Mapping[str, object]) -> str:
    """The relay's objects, of what the hub says of it and what the operator has said; raises CommandError."""
    relay = child(made, "relay")
    values: dict[str, object] = {
        "hub_ca_pem": text(relay, "hub_ca_pem") or None,
        "private_key_pem": text(relay, "private_key_pem") or None,
        **{key: text(relay, key) for key in ("cluster_id", "hub_url", "hub_keys", "mode")},
        **_said(options, _MANIFEST),
    }
    try:
        return to_yaml(relay_manifests(RelayManifest(cluster_name=name, **cast("Any", values))))
    except ManifestError as error:
        raise CommandError(f"the hub's answer is not fit for a manifest: {error}") from error


def dials_itself(relay: Object) -> bool:
    """Whether the relay is to dial a hub on loopback, where a pod finds nothing but itself."""
    host = urlsplit(text(relay, "hub_url")).hostname or ""
    return text(relay, "mode") == "tunnel" and Address(host, 0).is_loopback


def _said(options: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    return {key: options[key] for key in keys if options.get(key) is not None}
