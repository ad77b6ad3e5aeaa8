"""The places that state Hawse's version beside its source: names of files and images, labels, charts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs
from packaging.version import Version

SOURCE = "proxy/process/version.py"
# Of a version as Python writes it, and as Helm does (0.2.0-dev.1).
_VERSION = r"[0-9]+\.[0-9]+\.[0-9]+(?:rc[0-9]+|-rc\.[0-9]+)?(?:\.dev[0-9]+|-dev\.[0-9]+)?"
_ASSIGNED = re.compile(rf'^VERSION = "({_VERSION})"$', re.MULTILINE)
_NAMED = re.compile(
    # hawse-1.2.3.tar.gz, hawse-hub:1.2.3, hawse-relay-1.2.3-amd64.oci.tar
    rf"\bhawse(?:-[a-z]+)*[-:](?P<name>{_VERSION})"
    rf"|\bapp\.kubernetes\.io/version: \"?(?P<label>{_VERSION})"
)
_CHART = re.compile(rf"^(?P<key>version|appVersion): \"?(?P<chart>{_VERSION})", re.MULTILINE)
# Names of past versions stay in the changelog, and so does what was measured in benchmarks.
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
_FOLDERS = ("docs", "deploy")
_SUFFIXES = {".md", ".yaml", ".yml", ".toml", ".service", ".json", ".tpl", ".txt", ""}


@attrs.frozen
class Place:
    """A version that a file states, and the expected one. `start` and `end` are offsets in its text."""

    file: str
    line: int
    found: str
    expected: str
    start: int
    end: int


def chart_version(version: str) -> str:
    """The version of a chart: Helm wants SemVer, which has no `1.2.0.dev3`."""
    parsed = Version(version)
    text = parsed.base_version
    if parsed.pre is not None:
        text += f"-rc.{parsed.pre[1]}"
    return f"{text}-dev.{parsed.dev}" if parsed.is_devrelease else text


def is_version(text: str) -> bool:
    """Whether it has one of the forms 1.2.3, 1.2.3rc1, 1.2.3.dev0."""
    return re.fullmatch(_VERSION, text) is not None and str(Version(text)) == text


def source(root: Path) -> str:
    """The version. Raises ValueError when the source has none of the forms 1.2.3, 1.2.3rc1, 1.2.3.dev0."""
    found = _ASSIGNED.findall((root / SOURCE).read_text())
    if len(found) != 1 or not is_version(found[0]):
        raise ValueError(f'{SOURCE}: expected one VERSION = "1.2.3", "1.2.3rc1" or "1.2.3.dev0"')
    return str(found[0])


def places(root: Path, version: str) -> list[Place]:
    """All places below a checkout, right and wrong."""
    return [place for file in _files(root) for place in _places(root, file, version)]


def wrong(root: Path, version: str) -> list[Place]:
    """The places that state another version."""
    return [place for place in places(root, version) if place.found != place.expected]


def restate(root: Path, version: str) -> list[str]:
    """Write a version into its source and each place; returns the files that changed."""
    changed = []
    text = (root / SOURCE).read_text()
    if (new := _ASSIGNED.sub(f'VERSION = "{version}"', text)) != text:
        (root / SOURCE).write_text(new)
        changed.append(SOURCE)
    found = wrong(root, version)
    for file in sorted({place.file for place in found}):
        text = (root / file).read_text()
        # From the end, so that the offsets before stay right.
        for place in reversed([each for each in found if each.file == file]):
            text = text[: place.start] + place.expected + text[place.end :]
        (root / file).write_text(text)
        changed.append(file)
    return changed


def _files(root: Path) -> Iterator[Path]:
    yield from (root / name for name in PAGES if (root / name).exists())
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in _SUFFIXES:
                yield path


def _places(root: Path, path: Path, version: str) -> Iterator[Place]:
    text = path.read_text()
    name = str(path.relative_to(root))
    found = [(match, match.lastgroup or "", version) for match in _NAMED.finditer(text)]
    if path.name == "Chart.yaml":
        for match in _CHART.finditer(text):
            found.append(
                (match, "chart", version if match["key"] == "appVersion" else chart_version(version))
            )
    for match, group, expected in sorted(found, key=lambda each: each[0].start(each[1])):
        start, end = match.span(group)
        yield Place(name, text.count("\n", 0, start) + 1, match[group], expected, start, end)
