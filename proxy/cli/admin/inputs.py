"""What `hawse admin` is told on its command line: files that are sent on, and NAME=VALUE pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from proxy.cli.errors import CommandError


def read_file(path: Path | None, option: str, bytes_max: int) -> str | None:
    """Return the text of the file that an option names, None where it names none; raises CommandError."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise CommandError(f"{option}: cannot read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise CommandError(f"{option}: {path} has more than {bytes_max} bytes: name another file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{option}: {path} is not text: name another file") from error


def read_certificates(path: Path | None, option: str, bytes_max: int) -> str | None:
    """Return the PEM in the file that an option names, as `read_file` does; the hub judges what is in it."""
    pem = read_file(path, option, bytes_max)
    if pem is not None and not pem.isascii():
        raise CommandError(f"{option}: {path} is not PEM: it holds more than ASCII")
    return pem


def parse_pairs(stated: Sequence[str], option: str) -> dict[str, str]:
    """Return what an option that may be repeated says, each name once; raises click.BadParameter."""
    pairs: dict[str, str] = {}
    for each in stated:
        name, separator, value = each.partition("=")
        if not separator or not name or name in pairs:
            raise click.BadParameter(f"{each!a}: expected NAME=VALUE, each NAME once", param_hint=option)
        pairs[name] = value
    return pairs
