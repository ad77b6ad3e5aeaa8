"""What `hawse admin` is told on its command line: files that are sent on, and NAME=VALUE pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from proxy.cli.errors import CommandError
from proxy.process.certificates import fault_of_ca


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
    """Return the certificates of a CA in the file that an option names, as `read_file` does."""
    pem = read_file(path, option, bytes_max)
    if pem is None:
        return None
    # The hub would refuse it, but it is not to be sent at all.
    fault = "holds a private key" if "PRIVATE KEY" in pem else fault_of_ca(pem)
    if fault is not None:
        raise CommandError(f"{option}: {path} {fault}: name the file of the CA's certificate")
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
