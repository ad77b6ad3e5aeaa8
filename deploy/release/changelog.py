"""CHANGELOG.md: its form (Keep a Changelog), and whether it has what a version brings."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Sequence

import attrs
from packaging.version import InvalidVersion, Version

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
UNRELEASED = "Unreleased"
# In place of the date of a version that has a number and is not out yet.
PENDING = "unreleased"
_HEADING = re.compile(r"\[(?P<name>[^\]]+)\](?: - (?P<date>\S+))?")


@attrs.define
class Section:
    """What a version brings: for each kind, the number of entries. A heading of another form has no name."""

    name: str
    date: str
    line: int
    kinds: dict[str, int] = attrs.field(factory=dict)


@attrs.frozen
class Changelog:
    """The sections, newest first, and what is wrong with the form, a line each."""

    sections: Sequence[Section]
    faults: Sequence[str]


def read(text: str) -> Changelog:
    """Read a changelog, whatever its form."""
    sections: list[Section] = []
    faults: list[str] = []
    kind = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("## "):
            match = _HEADING.fullmatch(line[3:])
            if match is None:
                faults.append(f"{number}: expected '## [version] - date', found '{line}'")
                sections.append(Section("", "", number))
            else:
                sections.append(Section(match["name"], match["date"] or "", number))
            kind = ""
        elif line.startswith("### "):
            kind = line[4:]
            faults += [f"{number}: {fault}" for fault in _kind_faults(kind, sections)]
            if sections:
                sections[-1].kinds.setdefault(kind, 0)
        elif line.startswith("- "):
            if kind:
                sections[-1].kinds[kind] += 1
            else:
                faults.append(f"{number}: an entry stands below none of {', '.join(KINDS)}")
    if not text.startswith("# Changelog\n"):
        faults.insert(0, "1: expected '# Changelog'")
    return Changelog(sections, [*faults, *_section_faults(sections), *_order_faults(sections)])


def _kind_faults(kind: str, sections: Sequence[Section]) -> list[str]:
    if not sections:
        return [f"'{kind}' stands below no version"]
    if kind not in KINDS:
        return [f"'{kind}' is none of {', '.join(KINDS)}"]
    return [f"'{kind}' is there twice"] if kind in sections[-1].kinds else []


def _section_faults(sections: Sequence[Section]) -> list[str]:
    faults = []
    for section in filter(lambda section: section.name, sections):
        where = f"{section.line}: [{section.name}]"
        if section.name == UNRELEASED:
            if section.date:
                faults.append(f"{where} has a date: it is for a version")
        elif _version(section.name) is None:
            faults.append(f"{where} is no version")
        elif section.date != PENDING and _date(section.date) is None:
            faults.append(f"{where} needs a date, such as 2026-12-31, or '{PENDING}'")
        if section.name != UNRELEASED and not section.kinds:
            faults.append(f"{where} has no entry")
        faults += [
            f"{where}, '{kind}' has no entry" for kind, entries in section.kinds.items() if not entries
        ]
    return faults


def _order_faults(sections: Sequence[Section]) -> list[str]:
    faults = []
    for newer, older in itertools.pairwise(sections):
        where = f"{older.line}: [{older.name}]"
        if older.name == UNRELEASED:
            faults.append(f"{where} is not the first")
        if older.date == PENDING:
            faults.append(f"{where} is '{PENDING}', and a newer version follows it")
        one, other = _version(newer.name), _version(older.name)
        if one is not None and other is not None and one <= other:
            faults.append(f"{where} stands below [{newer.name}], which is not newer")
        later, earlier = _date(newer.date), _date(older.date)
        if later is not None and earlier is not None and later < earlier:
            faults.append(f"{where} is later than [{newer.name}]")
    return faults


def _version(name: str) -> Version | None:
    try:
        return Version(name)
    except InvalidVersion:
        return None


def _date(text: str) -> datetime.date | None:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def entry(changelog: Changelog, version: str) -> tuple[Section | None, str]:
    """The section of the version that is built, or why there is none, with the next step.

    A version of development has Unreleased, each other has one of its own. Nothing newer stands above it.
    """
    wanted = UNRELEASED if Version(version).is_devrelease else version
    sections = list(changelog.sections)
    names = [section.name for section in sections]
    # Empty, it waits for what comes after this version.
    if wanted != UNRELEASED and names[:1] == [UNRELEASED] and not sections[0].kinds:
        sections, names = sections[1:], names[1:]
    if wanted not in names:
        return None, f"no entry for {version}: add '## [{wanted}]{'' if wanted == UNRELEASED else ' - date'}'"
    if names[0] != wanted:
        return None, f"[{names[0]}] stands above [{wanted}]: set the version in proxy/process/version.py"
    if not sections[0].kinds:
        return None, f"[{wanted}] is empty: say what users notice in {version}"
    return sections[0], ""
