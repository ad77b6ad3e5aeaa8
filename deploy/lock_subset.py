"""Print the part of requirements.lock that an image or `make demo` needs.

    python deploy/lock_subset.py [--extra NAME]… [--leaf PACKAGE]… [PACKAGE]…

The lock holds all packages with hashes, including the test tools. The output holds the project's own
dependencies, those of the named extras, each PACKAGE, and all that these require, by the lock's own "via"
comments. With PACKAGE and no extra, the project's dependencies are left out. The requirements of a --leaf are
left out; pip then needs --no-deps. Uses only the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[([^]]*)\])?")


def normal(name: str) -> str:
    """Normalise a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(lock: str) -> dict[str, tuple[str, set[str]]]:
    """Read the lock: for each package its lines, and the packages that require it."""
    packages: dict[str, tuple[list[str], set[str]]] = {}
    lines: list[str] = []
    via: set[str] = set()
    for line in lock.splitlines():
        if match := _PIN.match(line):
            lines, via = [], set()
            packages[normal(match[1])] = (lines, via)
        if line.lstrip().startswith("#"):
            if word := line.strip().lstrip("#").strip().removeprefix("via").strip():
                via.add(normal(word.split()[0]))
        else:
            lines.append(line)
    return {name: ("\n".join(own), required_by) for name, (own, required_by) in packages.items()}


def roots(project: dict[str, object], extras: Iterable[str]) -> set[str]:
    """The packages that the project names itself, with those of the extras."""
    table = project["project"]
    assert isinstance(table, dict)
    wanted = [*table["dependencies"]]
    for extra in extras:
        wanted += table["optional-dependencies"][extra]
    return {normal(match[1]) for text in wanted if (match := _REQUIREMENT.match(text))}


def subset(
    packages: dict[str, tuple[str, set[str]]], wanted: set[str], leaves: Collection[str] = ()
) -> list[str]:
    """The names in the lock of all wanted packages and their requirements; a leaf has no requirements.

    Raises KeyError.
    """
    found = {name for name in wanted if packages[name]}
    while more := {name for name, (_, via) in packages.items() if via & found.difference(leaves)} - found:
        found |= more
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the part of requirements.lock that is needed.")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME")
    parser.add_argument("--leaf", action="append", default=[], metavar="PACKAGE")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE")
    arguments = parser.parse_args()
    root = Path(__file__).parents[1]
    packages = read_lock((root / "requirements.lock").read_text())
    wanted = {normal(name) for name in arguments.packages}
    if arguments.extra or not wanted:
        wanted |= roots(tomllib.loads((root / "pyproject.toml").read_text()), arguments.extra)
    found = subset(packages, wanted, {normal(name) for name in arguments.leaf})
    sys.stdout.write("".join(f"{packages[name][0]}\n" for name in found))


if __name__ == "__main__":
    main()
