"""The wheels of the images, and the bill of materials."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from deploy.image import ImageError, bom
from deploy.image.build import ARCHITECTURES, TARGETS
from deploy.image.environment import LEAVES, NOT_IN_RELAY, applies, is_script, pip_install, requirements
from tests.packaging.installed import CONTAINERFILE, image_packages

NAMES = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==\S+ \\$", re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_has_the_packages_of_the_containerfile(target: str, architecture: str) -> None:
    text = requirements(target, architecture)
    names = set(NAMES.findall(text))
    containerfile = set(image_packages("relay")) | (set(image_packages("hub")) if target == "hub" else set())
    assert names == containerfile
    # Markers are decided for Python 3.13, so pip has none to decide for the Python that runs it.
    assert " ; " not in text
    line = re.compile(r"\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert all(line.fullmatch(each) for each in text.splitlines())


@pytest.mark.parametrize(
    ("marker", "architectures"),
    [
        ("python_full_version < '3.13'", ()),
        ("python_version >= '3.13'", ARCHITECTURES),
        ("sys_platform == 'win32'", ()),
        ("implementation_name != 'pypy' and os_name == 'posix'", ARCHITECTURES),
        ("platform_machine == 'aarch64'", ("arm64",)),
    ],
)
def test_a_marker_is_decided_for_the_python_of_the_image(marker: str, architectures: tuple[str, ...]) -> None:
    assert tuple(each for each in ARCHITECTURES if applies(marker, each)) == architectures


def test_the_relay_lacks_what_it_lacks_by_the_containerfile() -> None:
    assert f"RUN rm -r {' '.join(NOT_IN_RELAY)} \\" in CONTAINERFILE
    assert set(re.findall(r"--leaf (\S+)", CONTAINERFILE)) == LEAVES


@pytest.mark.parametrize(
    ("path", "script"),
    [
        ("../../bin/hawse", True),
        ("bin/alembic", True),
        ("trio/bin/a.py", False),
        ("hawse/main.py", False),
    ],
)
def test_programs_are_told_from_modules(path: str, script: bool) -> None:
    assert is_script(path) is script


def test_the_bill_of_materials_lists_each_once_and_in_order(tmp_path: Path) -> None:
    for name, version in (("Foo_Bar", "2.0+x"), ("attrs", "1")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    package = {"name": "libstdc++6", "version": "1:14~2", "architecture": "amd64", "sha256": "0" * 64}

    def bill(order: Callable[[list[Any]], object]) -> dict[str, object]:
        found = sorted(distributions(path=[str(tmp_path)]), key=lambda each: each.version)
        order(found)
        return bom.bom([package], found, name="hawse-relay", version="1", timestamp=7)

    made = bill(lambda found: None)
    components = made["components"]
    assert isinstance(components, list)
    assert [component["purl"] for component in components] == [
        "pkg:deb/debian/libstdc%2B%2B6@1%3A14~2?arch=amd64&distro=debian-13",
        "pkg:pypi/attrs@1",
        "pkg:pypi/foo-bar@2.0%2Bx",
    ]
    assert bill(list.reverse) == made


def test_a_wheel_with_another_hash_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "foo-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("foo-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: foo\nVersion: 1\n")
        wheel.writestr("foo-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"foo==1 --hash=sha256:{'0' * 64}\n")
    site = tmp_path / "site"
    argv = ("--no-index", f"--find-links={tmp_path}", "--require-hashes", "--requirement", str(lock))
    with pytest.raises(ImageError, match=r"(?s)DO NOT MATCH THE HASHES.*foo==1 .*Expected sha256 0000"):
        pip_install(site, *argv)
    assert not site.exists()
