"""Bills of materials in CycloneDX 1.6: of an image, and of the wheel.

The bytes depend on the contents and a given time alone.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import quote

Component = dict[str, object]


def document(
    subject: Mapping[str, object],
    components: Sequence[Component],
    *,
    timestamp: int,
    dependencies: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, object]:
    """The bill of a subject, a component too. `timestamp` is in seconds since the epoch.

    `dependencies` has for each `bom-ref` those that it requires.
    """
    listed = sorted(components, key=lambda component: str(component["purl"]))
    content: list[object] = [subject["name"], subject["version"], listed]
    bill: dict[str, object] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp)),
            "component": dict(subject),
        },
        "components": listed,
    }
    if dependencies is not None:
        content = [dict(subject), listed, dependencies]
        bill["dependencies"] = [
            {"ref": ref, "dependsOn": sorted(required)} for ref, required in sorted(dependencies.items())
        ]
    # Made of the contents, so that two builds of one commit are equal.
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    bill["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}"
    return bill


def text(bill: Mapping[str, object]) -> str:
    return json.dumps(bill, indent=1) + "\n"


def python_package(name: str, version: str) -> Component:
    """A distribution of Python."""
    return _library(f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}", name, version)


def debian_package(package: Mapping[str, str]) -> Component:
    """A package of Debian, with `name`, `version`, `architecture` and `sha256`."""
    name, version = package["name"], package["version"]
    query = f"arch={package['architecture']}&distro=debian-13"
    purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?{query}"
    return {**_library(purl, name, version), "hashes": [sha256(package["sha256"])]}


def sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _library(purl: str, name: str, version: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
