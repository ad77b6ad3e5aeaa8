"""METADATA of the wheel: what a package registry and pip read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from tests.packaging.installed import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_LINK = re.compile(r"""(?:\]\(|\b(?:href|src|srcset)=")([^)\s"]+)[)"]""")


@pytest.fixture(scope="module")
def metadata() -> Message:
    builder = WheelBuilder(str(ROOT))
    return Parser().parsestr(builder.config.core_metadata_constructor(builder.metadata))


def requirements(metadata: Message, extra: str, python: str = "3.13") -> set[str]:
    """The requirements that an extra adds on that Python."""
    found = map(Requirement, metadata.get_all("Requires-Dist", []))
    return {
        each.name
        for each in found
        if each.marker is not None
        and each.marker.evaluate({"extra": extra, "python_version": python})
        and not each.marker.evaluate({"extra": "", "python_version": python})
    }


def named(requirements: Iterable[str]) -> set[str]:
    return {Requirement(each).name for each in requirements}


def test_it_says_whose_it_is_what_it_is_and_where_more_is(metadata: Message) -> None:
    assert metadata["Author"] == "The Hawse developers"
    assert {"kubernetes", "kubectl", "audit"} <= set(metadata["Keywords"].split(","))
    assert "Development Status :: 4 - Beta" in metadata.get_all("Classifier", [])
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Source", "Changelog", "Issues"} == set(urls)
    assert all(url.startswith("https://") for url in urls.values())


def test_each_link_of_the_package_page_is_absolute_and_names_what_is_there(metadata: Message) -> None:
    page = metadata.get_payload()
    assert isinstance(page, str)
    source = f"{PROJECT['urls']['Source']}/"
    links = _LINK.findall(page)
    assert all(link.startswith(("https://", "#")) for link in links), links
    here = [link.removeprefix(source) for link in links if link.startswith(source)]
    assert len(here) > 20
    assert [path for path in here if not (ROOT / path.partition("#")[0]).exists()] == []
    # No other requirement changes.
    assert page.replace(source, "") == (ROOT / "README.md").read_text()


def test_the_links_that_it_gives_lead_to_files_that_are_there() -> None:
    source = PROJECT["urls"]["Source"]
    for name in ("Documentation", "Changelog"):
        assert (ROOT / PROJECT["urls"][name].removeprefix(f"{source}/")).exists()


def test_the_development_extra_has_what_the_others_have_with_their_markers(metadata: Message) -> None:
    extras = PROJECT["optional-dependencies"]
    others = named([*extras["hub"], *extras["speed"]])
    newest = requirements(metadata, "dev", "3.15")
    assert others <= newest
    # They have no wheel for the newest Python.
    assert newest.isdisjoint({"google-re2", "psycopg"})
    assert requirements(metadata, "dev", "3.14") == newest | {"google-re2", "psycopg"}
    [mask] = extras["mask"]
    assert any(each.partition(";")[0] == mask for each in extras["dev"])


def test_each_extra_is_as_the_project_names_it(metadata: Message) -> None:
    for extra in ("hub", "mask", "guardrails", "speed"):
        assert requirements(metadata, extra) == named(PROJECT["optional-dependencies"][extra])


def test_the_hook_leaves_what_is_no_relative_link() -> None:
    text = "[a](docs/a.md#b) [b](https://x.example/c) [c](#d) [d](mailto:e@x.example) ![e](f.svg) [g]: h"
    assert absolute(text) == (
        "[a](S/docs/a.md#b) [b](https://x.example/c) [c](#d) [d](mailto:e@x.example) ![e](S/f.svg) [g]: h"
    )


def test_the_hook_knows_the_pictures_of_html() -> None:
    text = '<source media="(x: 1px)" srcset="a-dark.svg"><img alt="a" src="a.svg"><img src="https://x.example/b.svg">'
    assert absolute(text) == (
        '<source media="(x: 1px)" srcset="S/a-dark.svg"><img alt="a" src="S/a.svg"><img src="https://x.example/b.svg">'
    )


def absolute(markdown: str) -> str:
    names: dict[str, object] = {}
    exec((Path(ROOT) / "deploy" / "package_page.py").read_text(), names)
    made = names["with_absolute_links"](markdown, "S")  # type: ignore[operator]
    assert isinstance(made, str)
    return made
