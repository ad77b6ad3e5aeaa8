"""The bill of materials of an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution

from deploy.bom import debian_package, document, python_package


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
    components = [debian_package(package) for package in packages]
    components += [python_package(each.metadata["Name"], each.version) for each in distributions]
    subject = {"type": "container", "bom-ref": name, "name": name, "version": version}
    return document(subject, components, timestamp=timestamp)
