"""One source of the version, and every other place agrees with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from deploy.checkout import ROOT
from deploy.release import stated
from proxy.process.version import VERSION

VERSIONS = st.builds(
    lambda numbers, rc, dev: ".".join(map(str, numbers)) + rc + dev,
    st.tuples(*[st.integers(0, 99)] * 3),
    st.sampled_from(["", "rc1", "rc12"]),
    st.sampled_from(["", ".dev0", ".dev10"]),
)
README = """\
    uv tool install dist/hawse-{0}-py3-none-any.whl
    tar xf hawse-{0}.tar.gz
    podman load -i dist/hawse-relay-{0}-amd64.oci.tar
    --image registry.example/hawse-hub:{0}. Another sentence.
    app.kubernetes.io/version: "{0}"
"""
OTHERS = "trio-0.35.0 hawse 9.9.9 measured; kubectl:1.37.0, unhawse-1.2.3, hawse-relay:latest\n"


def test_every_place_of_this_checkout_states_the_version() -> None:
    assert stated.source(ROOT) == VERSION
    found = stated.places(ROOT, VERSION)
    assert {"README.md", "deploy/README.md", "deploy/relay.example.yaml"} <= {each.file for each in found}
    assert [(each.file, each.line, each.found) for each in found if each.found != each.expected] == []


def make(root: Path, version: str) -> None:
    """A checkout with all kinds of places."""
    texts = {
        stated.SOURCE: f'"""It."""\n\nVERSION = "{version}"\n',
        "README.md": README.format(version) + OTHERS,
        "docs/page.md": README.format(version),
        "deploy/charts/hawse-relay/Chart.yaml": (
            f"apiVersion: v2\nname: hawse-relay\nversion: {stated.chart_version(version)}\n"
            f'appVersion: "{version}"\nkubeVersion: ">=1.30.0"\n'
        ),
        "deploy/image.bin": "hawse-1.2.3.tar.gz",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@settings(max_examples=20)  # each writes ten files
@given(VERSIONS, VERSIONS)
def test_every_place_can_be_set_to_another_version(
    tmp_path_factory: pytest.TempPathFactory, old: str, new: str
) -> None:
    root = tmp_path_factory.mktemp("checkout")
    make(root, old)
    assert len(stated.places(root, old)) == 12
    assert stated.wrong(root, old) == []
    assert len(stated.wrong(root, new)) == (0 if old == new else 12)
    assert len(stated.restate(root, new)) == (0 if old == new else 4)
    assert stated.source(root) == new
    expected = root / "expected"
    make(expected, new)
    for file in expected.rglob("*"):
        if file.is_file():
            assert (root / file.relative_to(expected)).read_text() == file.read_text()
    shutil.rmtree(root)


def test_a_place_is_named_by_its_line(tmp_path: Path) -> None:
    make(tmp_path, "1.2.3")
    (tmp_path / "docs" / "page.md").write_text("\n\n`hawse-hub:1.2.2`\n")
    [place] = stated.wrong(tmp_path, "1.2.3")
    assert (place.file, place.line, place.found, place.expected) == ("docs/page.md", 3, "1.2.2", "1.2.3")


@given(VERSIONS)
def test_a_chart_has_the_version_in_the_form_of_helm(version: str) -> None:
    text = stated.chart_version(version)
    number, *_ = text.split("-")
    assert number == Version(version).base_version
    assert ("-" in text) == Version(version).is_prerelease
    # YAML must not make a number of it.
    assert yaml.safe_load(text) == text


@pytest.mark.parametrize("text", ["", 'VERSION = "1.2"\n', 'VERSION = "1.2.3.dev00"\n', "VERSION = x\n"])
def test_a_source_without_a_version_is_refused(tmp_path: Path, text: str) -> None:
    make(tmp_path, "1.2.3")
    (tmp_path / stated.SOURCE).write_text(text)
    with pytest.raises(ValueError, match="expected one VERSION"):
        stated.source(tmp_path)
