"""The wheel's bill of materials, held to the lock and to what is installed."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from deploy import bom
from deploy.checkout import ROOT
from deploy.lock_subset import normal
from deploy.release import ReleaseError, bill

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
# What older metadata say, without an SPDX expression.
CLASSIFIERS = {
    "Apache Software License": {"Apache-2.0"},
    "BSD License": {"BSD-2-Clause", "BSD-3-Clause"},
    "ISC License (ISCL)": {"ISC"},
    "MIT License": {"MIT"},
}


@pytest.fixture(scope="module")
def found() -> list[bill.Requirement]:
    return bill.requirements(LOCK, PROJECT)


@pytest.fixture(scope="module")
def made(found: list[bill.Requirement], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    wheel = tmp_path_factory.mktemp("wheel") / "hawse.whl"
    wheel.write_bytes(b"wheel")
    return bill.bill(wheel, "1.2.3", "c0ffee", 1_800_000_000, found, bill.licences())


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def applies(requirement: Requirement, extras: set[str], anywhere: bool) -> bool:
    """Whether a distribution with these extras requires it: on this Python, or on one of any machine."""
    if requirement.marker is None:
        return True
    if anywhere:
        text = str(requirement.marker)
        return "extra ==" not in text or any(f'"{extra}"' in text for extra in extras)
    return any(requirement.marker.evaluate({"extra": extra}) for extra in extras or {""})


def required(wanted: list[str], *, anywhere: bool) -> set[str]:
    """The packages that these requirements lead to, by the metadata of what is installed."""
    names: set[str] = set()
    waiting: list[tuple[Requirement, set[str]]] = [(Requirement(each), set()) for each in wanted]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        if not applies(requirement, extras, anywhere):
            continue
        name = normal(requirement.name)
        names.add(name)
        key = (name, frozenset(requirement.extras))
        there = installed(name)
        if there is not None and key not in seen:
            seen.add(key)
            waiting += [(Requirement(each), set(requirement.extras)) for each in there.requires or ()]
    return names


def test_it_lists_what_pip_installs_with_the_wheel(found: list[bill.Requirement]) -> None:
    table = PROJECT["project"]
    optional = table["optional-dependencies"]
    assert set(bill.EXTRAS) == set(optional) - {"dev", "fuzz"}
    listed = {normal(each.name): each for each in found}
    groups = {"": table["dependencies"], **{extra: optional[extra] for extra in bill.EXTRAS}}
    for extra, requirements in groups.items():
        of_extra = {
            name for name, each in listed.items() if each.required or (extra and extra in each.extras)
        }
        wanted = [*table["dependencies"], *requirements]
        # Beyond those of this Python, what other machines need.
        assert required(wanted, anywhere=False) <= of_extra <= required(wanted, anywhere=True)
    for name, each in listed.items():
        there = installed(name)
        assert there is None or there.version == each.version
        assert there is not None or each.marker


def test_each_component_has_the_hashes_of_the_lock(made: dict[str, Any]) -> None:
    for component in made["components"]:
        [files] = component["externalReferences"]
        hashes = {each["content"] for each in files["hashes"]}
        stanza = (
            LOCK.partition(f"\n{component['name']}==")[2]
            or LOCK.partition(f"\n{component['name']}[binary]==")[2]
        )
        assert stanza.startswith(component["version"])
        assert hashes == {
            line.split("sha256:")[1].rstrip(" \\")
            for line in stanza.partition("    # via")[0].splitlines()
            if "--hash" in line
        }
        assert hashes


def test_it_names_the_wheel_the_commit_and_what_requires_what(made: dict[str, Any]) -> None:
    subject = made["metadata"]["component"]
    assert (subject["purl"], subject["type"]) == ("pkg:pypi/hawse@1.2.3", "application")
    assert subject["properties"] == [{"name": "hawse:commit", "value": "c0ffee"}]
    assert made["metadata"]["timestamp"] == "2027-01-15T08:00:00Z"
    names = {component["bom-ref"]: component["name"] for component in made["components"]}
    names[subject["bom-ref"]] = "hawse"
    graph = {names[each["ref"]]: {names[ref] for ref in each["dependsOn"]} for each in made["dependencies"]}
    assert {"attrs", "trio", "click", "sqlalchemy"} <= graph["hawse"]
    assert graph["trio"] >= {"attrs", "idna", "outcome", "sniffio", "sortedcontainers"}
    assert "markupsafe" in graph["jinja2"]
    assert "markupsafe" not in graph["hawse"]
    # Each is reached from Hawse.
    reached, waiting = set(), ["hawse"]
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += graph[name]
    assert reached == set(graph)
    scopes = {component["name"]: component["scope"] for component in made["components"]}
    assert (scopes["trio"], scopes["websockets"]) == ("required", "optional")


def test_it_is_valid_and_what_is_not_is_refused(made: dict[str, Any]) -> None:
    bill.validate(bom.text(made))
    for path, value in (("version", "1"), ("bomFormat", "SPDX"), ("serialNumber", "1"), ("more", 1)):
        with pytest.raises(ReleaseError, match=r"is not valid CycloneDX 1\.6: "):
            bill.validate(bom.text({**made, path: value}))
    broken = json.loads(bom.text(made))
    broken["components"][0]["licenses"] = [{"license": {"id": "Apache 2"}}]
    with pytest.raises(ReleaseError, match="Apache 2"):
        bill.validate(bom.text(broken))


def test_each_licence_is_that_of_the_installed_package(found: list[bill.Requirement]) -> None:
    known = bill.licences()
    # No more than the bill needs.
    assert list(known) == sorted(each.name for each in found)
    compared = 0
    for name, expression in known.items():
        there = installed(name)
        if there is None:
            continue
        compared += 1
        if "License-Expression" in there.metadata:
            assert there.metadata["License-Expression"] == expression, name
            continue
        classifiers = there.metadata.get_all("Classifier", [])
        said = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: OSI")]
        ids = set(expression.split(" OR "))
        assert len(said) == len(ids) or there.metadata["License"] == expression, name
        assert all(CLASSIFIERS[each] & ids for each in said), name
    assert compared > 40


def test_a_package_without_a_licence_stops_the_release(found: list[bill.Requirement], tmp_path: Path) -> None:
    (tmp_path / "w").touch()
    known = bill.licences()
    del known["trio"]
    with pytest.raises(ReleaseError, match=r"trio has no licence in .*: add its SPDX expression"):
        bill.bill(tmp_path / "w", "1.2.3", "", 0, found, known)


def test_the_number_of_a_bill_is_that_of_its_contents(
    found: list[bill.Requirement], made: dict[str, Any], tmp_path: Path
) -> None:
    wheel = tmp_path / "w"
    wheel.write_bytes(b"wheel")

    def number(commit: str, timestamp: int, several: list[bill.Requirement]) -> object:
        again = bill.bill(wheel, "1.2.3", commit, timestamp, several, bill.licences())
        return again["serialNumber"]

    assert number("c0ffee", 5, found) == made["serialNumber"]
    assert number("another", 5, found) != made["serialNumber"]
    assert number("c0ffee", 5, found[:-1]) != made["serialNumber"]
