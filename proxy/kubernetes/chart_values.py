"""The values of the relay's chart (deploy/charts/hawse-relay), from the same data as the manifests.

They hold no key. What holds one is the Secret, with the namespace that it is in: `secret_manifests`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from proxy.kubernetes.cluster_role import (
    SERVICE_ACCOUNT,
    ManifestError,
    Object,
    Value,
    impersonated_group,
    impersonated_user,
)
from proxy.kubernetes.manifests import (
    DEFAULT_IMAGE,
    KEYS_SECRET,
    RelayManifest,
    keys_digest,
    keys_secret,
    namespace,
)

# The chart's schema has the same patterns.
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,254}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REPLICAS_MAX = 8


def relay_values(
    manifest: RelayManifest, agents: Sequence[str], groups: Sequence[str], *, constrained: bool
) -> Object:
    """Return the values for a relay in tunnel mode; raises ManifestError."""
    if manifest.mode != "tunnel":
        raise ManifestError("the chart is for tunnel mode")
    if manifest.replicas > REPLICAS_MAX:
        raise ManifestError(f"{manifest.replicas} replicas: the chart takes 1 to {REPLICAS_MAX}")
    values: Object = {
        "hub": {"url": manifest.hub_url, "caInSecret": manifest.hub_ca_pem is not None},
        "cluster": {"id": manifest.cluster_id},
        "existingSecret": KEYS_SECRET,
        "keysDigest": keys_digest(manifest),
        "replicas": manifest.replicas,
    }
    if manifest.image != DEFAULT_IMAGE:
        values["image"] = split_image(manifest.image)
    if manifest.service_account != SERVICE_ACCOUNT:
        values["serviceAccount"] = {"name": manifest.service_account}
    form = "constrained" if constrained else "plain"
    values["impersonate"] = {"form": form, **names_values(agents, groups)}
    return values


def names_values(agents: Sequence[str], groups: Sequence[str]) -> dict[str, list[Value]]:
    """Return the values that change with agents and teams; raises ManifestError for a name to refuse."""
    for agent in agents:
        impersonated_user(agent)
    return {
        "agents": [*sorted(set(agents))],
        "groups": [*sorted({impersonated_group(group) for group in groups})],
    }


def secret_manifests(manifest: RelayManifest) -> list[Object]:
    """Render what is applied before the chart is installed: the namespace, and the Secret with the keys."""
    return [namespace(manifest), keys_secret(manifest)]


def split_image(image: str) -> Object:
    """Return repository, tag and digest of an image reference, those that it has; raises ManifestError."""
    name, _, digest = image.partition("@")
    # A colon before the last slash is that of the registry's port.
    folder, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    found: Object = {"repository": f"{folder}{slash}{last}"}
    for key, value, pattern in (("tag", tag, _TAG), ("digest", digest, _DIGEST)):
        if value:
            if pattern.fullmatch(value) is None:
                raise ManifestError(f"image {ascii(image)[:80]} has a {key} that is not valid")
            found[key] = value
    if _REPOSITORY.fullmatch(str(found["repository"])) is None or image.endswith(("@", ":")):
        raise ManifestError(f"image {ascii(image)[:80]} is not valid")
    return found
