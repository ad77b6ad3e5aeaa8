"""The form of CHANGELOG.md, and whether it has the version."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from deploy.checkout import ROOT
from deploy.release import changelog, stated

GOOD = """\
# Changelog

What users notice.

## [Unreleased]

## [0.2.0] - 2026-12-31

A sentence.

### Added

- One.
  More of it.

**A group**

- Two.

### Fixed

- Three.

## [0.1.0] - 2026-12-01

### Added

- Four.
"""


def faults(text: str) -> list[str]:
    return list(changelog.read(text).faults)


def test_the_changelog_has_the_form_and_the_version() -> None:
    log = changelog.read((ROOT / "CHANGELOG.md").read_text())
    assert log.faults == []
    section, fault = changelog.entry(log, stated.source(ROOT))
    assert fault == ""
    assert section is not None


def test_the_list_of_the_newest_version_names_its_parts() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    kinds = changelog.read(text).sections[0].kinds
    assert " · ".join(f"[{kind}](#{kind.lower()})" for kind in kinds) in " ".join(text.split())


def test_sections_and_their_entries_are_found() -> None:
    log = changelog.read(GOOD)
    assert log.faults == []
    assert [(each.name, each.date, each.kinds) for each in log.sections] == [
        ("Unreleased", "", {}),
        ("0.2.0", "2026-12-31", {"Added": 2, "Fixed": 1}),
        ("0.1.0", "2026-12-01", {"Added": 1}),
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# Changelog", "# Changes", "1: expected '# Changelog'"),
        ("## [0.2.0] -", "## 0.2.0", "7: expected '## [version] - date', found '## 0.2.0 2026-12-31'"),
        ("[0.2.0] - 2026-12-31", "[0.2.0]", "7: [0.2.0] needs a date, such as 2026-12-31, or 'unreleased'"),
        ("2026-12-31", "2026-02-30", "7: [0.2.0] needs a date, such as 2026-12-31, or 'unreleased'"),
        ("2026-12-31", "20261231", "7: [0.2.0] needs a date, such as 2026-12-31, or 'unreleased'"),
        ("[0.2.0]", "[next]", "7: [next] is no version"),
        ("[Unreleased]", "[Unreleased] - 2027-01-01", "5: [Unreleased] has a date: it is for a version"),
        ("[0.1.0] - 2026-12-01", "[Unreleased]", "24: [Unreleased] is not the first"),
        ("2026-12-01", "2027-12-01", "24: [0.1.0] is later than [0.2.0]"),
        ("[0.1.0]", "[0.2.0]", "24: [0.2.0] stands below [0.2.0], which is not newer"),
        ("[0.1.0]", "[0.10.0]", "24: [0.10.0] stands below [0.2.0], which is not newer"),
        (
            "2026-12-01",
            "unreleased",
            "24: [0.1.0] is 'unreleased', and a newer version follows it",
        ),
        ("### Fixed", "### Faster", "20: 'Faster' is none of Added, Changed, "),
        ("### Fixed", "### Added", "20: 'Added' is there twice"),
        ("- Three.", "Three.", "7: [0.2.0], 'Fixed' has no entry"),
        ("### Added\n\n- Four.\n", "", "24: [0.1.0] has no entry"),
        (
            "A sentence.",
            "- A sentence.",
            "9: an entry stands below none of Added, ",
        ),
        ("What users notice.", "### Added", "3: 'Added' stands below no version"),
    ],
)
def test_each_fault_of_the_form_has_a_line(old: str, new: str, fault: str) -> None:
    assert old in GOOD
    [found] = faults(GOOD.replace(old, new, 1))
    assert found.startswith(fault)


@given(st.text(alphabet="# [](x)-.012\nAdded", max_size=200))
def test_any_text_is_read(text: str) -> None:
    changelog.entry(changelog.read(text), "0.1.0")


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=1, unique=True), st.data())
def test_versions_in_their_order_have_no_fault_and_out_of_it_one(
    numbers: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    versions = sorted((Version(".".join(map(str, each))) for each in numbers), reverse=True)
    day = datetime.date(2027, 1, 1)
    parts = [
        f"## [{version}] - {day - datetime.timedelta(days=number)}\n\n### Added\n\n- One.\n"
        for number, version in enumerate(versions)
    ]
    assert faults("# Changelog\n\n" + "\n".join(parts)) == []
    if len(parts) > 1:
        first = data.draw(st.integers(0, len(parts) - 2))
        parts[first], parts[first + 1] = parts[first + 1], parts[first]
        assert faults("# Changelog\n\n" + "\n".join(parts)) != []


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.2.0", ""),
        ("0.3.0", "no entry for 0.3.0: add '## [0.3.0] - date'"),
        ("0.1.0", "[0.2.0] stands above [0.1.0]: set the version in proxy/process/version.py"),
        ("0.3.0.dev0", "[Unreleased] is empty: say what users notice in 0.3.0.dev0"),
    ],
)
def test_a_version_needs_its_entry_on_top(version: str, fault: str) -> None:
    assert changelog.entry(changelog.read(GOOD), version)[1] == fault


def test_a_version_of_development_has_unreleased() -> None:
    log = changelog.read(GOOD.replace("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- Five.\n"))
    section, fault = changelog.entry(log, "0.3.0.dev0")
    assert section is not None
    assert (section.name, fault) == ("Unreleased", "")
    # What came after a version is in no build of that version.
    assert "[Unreleased] stands above [0.2.0]" in changelog.entry(log, "0.2.0")[1]
    without = changelog.read(GOOD.replace("## [Unreleased]\n", ""))
    assert changelog.entry(without, "0.3.0.dev0")[1] == "no entry for 0.3.0.dev0: add '## [Unreleased]'"
