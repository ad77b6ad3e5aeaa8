"""What `hawse admin` is told on its command line: files that are sent on, and NAME=VALUE pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from proxy.cli.errors import CommandError


def read_file(path: Path | None, bytes_max: int) -> str | None:
    """Return the text of a file, None where none was named; raises CommandError."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise CommandError(f"{path} has more than {bytes_max} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {error}") from error


def parse_pairs(stated: Sequence[str], option: str) -> dict[str, str]:
    """Return what an option that may be repeated says, each name once; raises click.BadParameter."""
    pairs: dict[str, str] = {}
    for each in stated:
        name, separator, value = each.partition("=")
        if not separator or not name or name in pairs:
            raise click.BadParameter(f"{each!a}: expected NAME=VALUE, each NAME once", param_hint=option)
        pairs[name] = value
    return pairs
