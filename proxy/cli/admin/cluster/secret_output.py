"""Writes output that holds a private key: to a pipe or a private file, but not to a terminal.

A terminal keeps its output in the scrollback and in session recordings.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import RawIOBase
from pathlib import Path

import click

from proxy.cli.errors import CommandError


@contextmanager
def secret_output(
    output: Path | None, *, force: bool, secret: bool, pipe: str, option: str = "--output"
) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the text, once, and prints it or writes it to `output` (0600).

    Raises CommandError before the block, so before a secret exists that could be lost: on a terminal, and for
    an existing file, unless `force` is given. `pipe` is an example of a command to pipe to. `option` is the
    name of the option that gives `output`. Without `secret`, the text may be printed anywhere.
    """
    if output is None:
        if secret and sys.stdout.isatty() and not force:
            raise CommandError(
                f"a private key would stay in this terminal's scrollback: pipe the output (| {pipe}), write "
                "it to a file with --output FILE, or use --force"
            )
        yield partial(click.echo, nl=False)
        return
    if os.path.lexists(output) and not force:
        raise CommandError(f"{output} exists already: choose another {option}, or overwrite it with --force")
    if output.is_dir():
        raise CommandError(f"{output} is a folder: name a file in it with {option}")
    # Created before the key, since a key that can't be written is lost. A link at the path is replaced.
    unfinished = output.with_name(f".{output.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
    # Unbuffered: a buffer that the disk had no room for would fail again when the file is closed.
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        try:
            yield partial(_finish, file, unfinished, output)
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()


def _finish(file: RawIOBase, unfinished: Path, output: Path, text: str) -> None:
    left = text.encode()
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
        unfinished.replace(output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
