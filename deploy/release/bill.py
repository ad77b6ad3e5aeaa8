"""The wheel's bill of materials: what pip may install with it, as requirements.lock has it."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import attrs

from deploy import bom, lock_subset
from deploy.release import ReleaseError

# What a user may ask for; the others are for development.
EXTRAS = ("guardrails", "hub", "mask", "postgres", "speed")
_LICENCES = Path(__file__).with_name("licences.toml")
_PIN = re.compile(r"(?P<name>[^=\[]+)(?:\[[^]]*\])?==(?P<version>\S+)(?: ; (?P<marker>.*))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@attrs.frozen
class Requirement:
    """A package of the lock. `hashes` are those of all its files, `extras` those of Hawse that require it.

    Without `required`, it comes with an extra alone. `marker` is that of the lock, empty without.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    required: bool
    extras: tuple[str, ...]
    via: frozenset[str]


def requirements(lock: str, project: dict[str, object]) -> list[Requirement]:
    """What the project requires, by itself and with its extras.

    Raises ReleaseError if the lock lacks some of it.
    """
    packages = lock_subset.read_lock(lock)
    try:
        always = set(lock_subset.subset(packages, lock_subset.roots(project, ())))
        by_extra = {
            extra: set(lock_subset.subset(packages, lock_subset.roots(project, (extra,)))) for extra in EXTRAS
        }
    except KeyError as error:
        raise ReleaseError(f"requirements.lock has no {error.args[0]}: run `make lock`") from error
    found = []
    for name in sorted(always.union(*by_extra.values())):
        text, via = packages[name]
        match = _PIN.fullmatch(text.splitlines()[0].rstrip(" \\"))
        if match is None:
            raise ReleaseError(f"requirements.lock has no version of {name}: run `make lock`")
        extras = () if name in always else tuple(extra for extra in EXTRAS if name in by_extra[extra])
        found.append(
            Requirement(
                match["name"],
                match["version"],
                match["marker"] or "",
                tuple(_HASH.findall(text)),
                name in always,
                extras,
                frozenset(via),
            )
        )
    return found


def licences() -> dict[str, str]:
    """The SPDX expression of each package."""
    return {name: str(value) for name, value in tomllib.loads(_LICENCES.read_text()).items()}


def bill(
    wheel: Path, version: str, commit: str, timestamp: int, found: list[Requirement], known: Mapping[str, str]
) -> dict[str, object]:
    """The bill of a wheel that is built. Raises ReleaseError for a package whose licence is not known."""
    if unknown := [each.name for each in found if each.name not in known]:
        raise ReleaseError(
            f"{unknown[0]} has no licence in deploy/release/licences.toml: add its SPDX expression"
        )
    components = {each.name: _component(each, known[each.name]) for each in found}
    subject = {
        **bom.python_package("hawse", version),
        "type": "application",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "hashes": [bom.sha256(hashlib.sha256(wheel.read_bytes()).hexdigest())],
        "properties": [_property("commit", commit)],
    }
    refs = {name: str(component["bom-ref"]) for name, component in components.items()}
    refs["hawse"] = str(subject["bom-ref"])
    required: dict[str, list[str]] = {ref: [] for ref in refs.values()}
    for each in found:
        # A parent that is of development alone is no part of the bill.
        for parent in each.via & refs.keys():
            required[refs[parent]].append(refs[each.name])
    return bom.document(subject, list(components.values()), timestamp=timestamp, dependencies=required)


def _component(requirement: Requirement, licence: str) -> bom.Component:
    compound = " " in licence
    properties = [_property("extra", extra) for extra in requirement.extras]
    if requirement.marker:
        properties.append(_property("marker", requirement.marker))
    component: bom.Component = {
        **bom.python_package(requirement.name, requirement.version),
        "scope": "required" if requirement.required else "optional",
        "licenses": [{"expression": licence}] if compound else [{"license": {"id": licence}}],
        # Of the files in a registry, of which pip takes one: for this machine, or the source.
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{requirement.name}/{requirement.version}/#files",
                "hashes": [bom.sha256(digest) for digest in sorted(requirement.hashes)],
            }
        ],
    }
    if properties:
        component["properties"] = properties
    return component


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"hawse:{name}", "value": value}


def validate(text: str) -> None:
    """Raise ReleaseError unless the text is CycloneDX 1.6."""
    # Here, since `make image` writes checksums without the packages of `make dist`.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ReleaseError(f"the bill of materials is not valid CycloneDX 1.6: {error.data.message}")
