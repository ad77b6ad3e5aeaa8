"""The bill of materials of an image, in CycloneDX 1.6."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution
from urllib.parse import quote


def bom(
    packages: Sequence[Mapping[str, str]],
    distributions: Iterable[Distribution],
    *,
    name: str,
    version: str,
    timestamp: int,
) -> dict[str, object]:
    """List Debian's packages and Python's distributions.

    A package has `name`, `version`, `architecture` and `sha256`. `timestamp` is in seconds since the epoch.
    """
    components = [_package(package) for package in packages]
    components += [_distribution(each) for each in distributions]
    components.sort(key=lambda component: str(component["purl"]))
    content = json.dumps([name, version, components], sort_keys=True).encode()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Made of the contents, so that two builds of one image are equal.
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(content).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp)),
            "component": {"type": "container", "bom-ref": name, "name": name, "version": version},
        },
        "components": components,
    }


def _package(package: Mapping[str, str]) -> dict[str, object]:
    name, version = package["name"], package["version"]
    query = f"arch={package['architecture']}&distro=debian-13"
    purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?{query}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": package["sha256"]}],
    }


def _distribution(distribution: Distribution) -> dict[str, object]:
    name = distribution.metadata["Name"]
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(distribution.version, safe='')}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": distribution.version,
        "purl": purl,
    }
