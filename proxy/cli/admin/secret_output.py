"""Where goes what holds a private key: a pipe or a file for its owner alone, and no terminal.

A terminal keeps what it has shown, in its scrollback and in recordings of the session.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

import click

from proxy.cli.errors import CommandError


@contextmanager
def secret_output(
    output: Path | None, *, force: bool, secret: bool, pipe: str
) -> Iterator[Callable[[str], None]]:
    """Yield what takes the text, once: it is printed, or becomes the file `output` (0600).

    Raises CommandError before the block, so before there is a secret that could be lost: on a terminal, and
    for a file that is there, unless `force` is given. `pipe` is a command that takes the text; one without
    a `secret` is printed anywhere.
    """
    if output is None:
        if secret and sys.stdout.isatty() and not force:
            raise CommandError(
                f"a private key would stay in this terminal's scrollback: pipe it on (| {pipe}), write it to "
                "a file by --output FILE, or say --force"
            )
        yield partial(click.echo, nl=False)
        return
    if os.path.lexists(output) and not force:
        raise CommandError(f"{output} exists already: choose another --output, or overwrite it by --force")
    if output.is_dir():
        raise CommandError(f"{output} is a folder: name a file in it by --output")
    # Made before the key, for a key that cannot be written is lost; a link in its place is replaced.
    unfinished = output.with_name(f".{output.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        try:
            yield partial(_finish, file, unfinished, output)
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()


def _finish(file: TextIO, unfinished: Path, output: Path, text: str) -> None:
    try:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        unfinished.replace(output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
