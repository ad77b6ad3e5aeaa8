"""Make wheel, source distribution, bill of materials and checksums of the commit."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from deploy.checkout import ROOT, CheckoutError
from deploy.release import ReleaseError, stated
from deploy.release.build import Made, check, make, write_sums


def table(files: Iterable[Made]) -> str:
    """A line for each file: path, bytes, hash."""
    rows = [(os.path.relpath(each.file), f"{each.size:,}", each.sha256) for each in files]
    wide, high = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    return "\n".join(f"{path:<{wide}}  {size:>{high}}  {digest}" for path, size, digest in rows)


def restate(version: str) -> None:
    if not stated.is_version(version):
        raise ReleaseError(f"--set {version}: expected a version such as 1.2.3, 1.2.3rc1 or 1.2.3.dev0")
    for file in stated.restate(ROOT, version):
        print(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.release", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder; dist/ without")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="check version and changelog, only")
    action.add_argument("--sums", action="store_true", help="write SHA256SUMS again, only")
    action.add_argument("--set", metavar="VERSION", help="write another version into each place, only")
    arguments = parser.parse_args()
    try:
        if arguments.set:
            restate(arguments.set)
        elif arguments.check:
            version, note = check(ROOT)
            print(note or f"{version} can be released")
        elif arguments.sums:
            print(table([write_sums(arguments.output, stated.source(ROOT))]))
        else:
            made = make(ROOT, arguments.output)
            print(f"hawse {made.version}, commit {made.commit}")
            print(table(made.files))
            if made.note:
                print(made.note)
    except (CheckoutError, ReleaseError, OSError) as error:
        sys.exit("\n".join(f"dist: {line}" for line in str(error).splitlines()))


if __name__ == "__main__":
    main()
