"""What is piped into kubectl, written on the operator's side from the names and keys that the hub says.

Whoever applies it has every right in that cluster, and does it again with each new agent. So the hub's own
text never goes there: a hub in other hands would add an object to it, and hold the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import yaml

from auth.principal import USER_PREFIX
from proxy.cli.admin.client import Object
from proxy.cli.admin.output import child, text
from proxy.cli.errors import CommandError
from proxy.manifests import ManifestError, RelayManifest, cluster_role, relay_manifests, to_yaml

_PLACE = ("namespace", "service_account")


def rendered_role(
    answer: Object, options: Mapping[str, object], *, wildcard: bool = False, constrained: bool = False
) -> str:
    """The ClusterRole for whom the hub's own one names; raises CommandError."""
    named = names_of(text(answer, "rbac"))
    agents = [user.removeprefix(USER_PREFIX) for user in named.get("users", ())]
    place = {key: str(options[key]) for key in _PLACE if options.get(key) is not None}
    try:
        return to_yaml(
            cluster_role(
                agents,
                sorted(named.get("groups", ())),
                wildcard=wildcard,
                constrained=constrained,
                **place,
            )
        )
    except ManifestError as error:
        raise CommandError(f"the hub's answer names who must not be impersonated: {error}") from error


def rendered_manifests(name: str, made: Object, options: Mapping[str, object]) -> str:
    """The relay's objects, of what the hub says of it and what the operator has said; raises CommandError."""
    relay = child(made, "relay")
    said = {key: value for key, value in options.items() if value is not None and key in _MANIFEST}
    values: dict[str, object] = {
        "hub_ca_pem": text(relay, "hub_ca_pem") or None,
        "private_key_pem": text(relay, "private_key_pem") or None,
        **{key: text(relay, key) for key in ("cluster_id", "hub_url", "hub_keys", "mode")},
    }
    try:
        return to_yaml(relay_manifests(RelayManifest(cluster_name=name, **cast("Any", values | said))))
    except ManifestError as error:
        raise CommandError(f"the hub's answer is not fit for a manifest: {error}") from error


_MANIFEST = frozenset({*_PLACE, "image", "replicas", "service_type"})


def names_of(role_yaml: str) -> dict[str, frozenset[str]]:
    """Whom a ClusterRole of the hub's names, by the resource (`users`, `groups`); raises CommandError."""
    try:
        role, _ = yaml.safe_load_all(role_yaml)
        return {
            resource: frozenset(map(str, rule.get("resourceNames", ())))
            for rule in role["rules"]
            for resource in rule.get("resources", ())
        }
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError("the hub's answer holds no ClusterRole: is it of the same version?") from error
