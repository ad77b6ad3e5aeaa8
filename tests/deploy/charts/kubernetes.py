"""The schemas of the versions of Kubernetes that the chart is for."""

from __future__ import annotations

from typing import Any

import kubernetes_validate

VERSIONS = tuple(f"1.{minor}" for minor in range(30, 38))
# Of a custom resource, whose schema is the Prometheus operator's and in no package.
WITHOUT_SCHEMA = {"PodMonitor"}


def faults(item: dict[str, Any], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """Return what these versions of Kubernetes refuse of an object."""
    found = []
    for version in versions:
        try:
            used = kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if item["kind"] not in WITHOUT_SCHEMA:
                raise
            continue
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {item['kind']}: {error.message}")
            continue
        # It takes the schema of an older version if it lacks one.
        assert used == version
    return found
