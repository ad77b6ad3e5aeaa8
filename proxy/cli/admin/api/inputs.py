"""Parses inputs of `hawse admin`: files to send to the hub, and NAME=VALUE pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from proxy.cli.errors import CommandError
from proxy.process.certificates import fault_of_ca


def read_file(path: Path | None, option: str, bytes_max: int) -> str | None:
    """Return the text of an option's file; None without the option. Raises CommandError."""
    return None if path is None else read_text(path, option, bytes_max)


def read_text(path: Path, option: str, bytes_max: int) -> str:
    """Return the whole text of an option's file, of at most `bytes_max` bytes. Raises CommandError."""
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
    """Return the CA certificates in an option's file, as `read_file` does."""
    pem = read_file(path, option, bytes_max)
    if pem is None:
        return None
    # The hub would refuse a private key too, but it must not even be sent.
    fault = "holds a private key" if "PRIVATE KEY" in pem else fault_of_ca(pem)
    if fault is not None:
        raise CommandError(f"{option}: {path} {fault}: name the file with the CA's certificate")
    return pem


def parse_pairs(stated: Sequence[str], option: str) -> dict[str, str]:
    """Parse a repeatable option into pairs with unique names; raises click.BadParameter."""
    pairs: dict[str, str] = {}
    for each in stated:
        name, separator, value = each.partition("=")
        if not separator or not name or name in pairs:
            raise click.BadParameter(f"{each!a}: expected NAME=VALUE, with each NAME once", param_hint=option)
        pairs[name] = value
    return pairs
