"""Reads the files of the policy commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.errors import CommandError
from proxy.cli.output import say

if TYPE_CHECKING:
    from auth.policy.text import Source

files_argument = click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
)


def read_files(files: tuple[Path, ...]) -> list[Source]:
    """Read the documents in all files; `-` is standard input. Raises CommandError."""
    from auth.policy.text import split

    sources: list[Source] = []
    for file in files:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        except OSError as error:
            raise CommandError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CommandError(f"cannot read {file}: it is not UTF-8 text") from error
        found = split(text, str(file))
        if not found:
            # Probably the wrong file, and a test of nothing would pass.
            raise CommandError(f"{file} is empty: a policy begins with `kind: Policy`")
        sources += found
    return sources


def say_missing(rows: Iterable[Mapping[str, object]]) -> None:
    """Warn about names in policies that do not exist."""
    for row in rows:
        kind = row.get("kind")
        say(
            f"warning: policy {row.get('policy')} names {kind} {row.get('name')}, which does not exist: "
            f"add it (`hawse admin {kind} add`), or correct the name and apply again"
        )


def padded(source: Source) -> str:
    """Pad with the lines before the document, so that the hub's faults have the file's line numbers."""
    return "\n" * (source.first_line - 1) + source.text
