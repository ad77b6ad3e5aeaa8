"""Errors that end a command: one line on stderr, with what is wrong and what to do next."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO

import click

# The command worked, but the checked condition does not hold. Scripts can tell this from 1, a failed command,
# and 2, invalid usage.
ANSWER_NO = 3


def indented(text: str) -> str:
    """Indent all lines of a text but the first, to set it apart from the output around it."""
    return text.replace("\n", "\n  ")


def drop_output() -> None:
    """Lead stdout to nowhere, after it could not be written.

    The rest of the buffer would fail again at the interpreter's exit, with an uglier message and status 120.
    """
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class CommandError(click.ClickException):
    """Ends the command with status 1. The message is one line without a full stop, and without secrets."""

    def show(self, file: IO[str] | None = None) -> None:
        """Print the message. Further lines, which a hub may send, are indented: none looks like ours."""
        click.echo(f"hawse: {indented(self.format_message())}", file=file, err=file is None)


class AnswerIsNo(CommandError):
    """Ends the command with status 3: the checked condition does not hold."""

    exit_code = ANSWER_NO


class ConfigurationFaults(CommandError):
    """Ends the command for an invalid configuration. All faults are reported, one a line."""

    def __init__(self, service: str, faults: Sequence[str]) -> None:
        super().__init__("\n".join([f"the {service}'s configuration has faults:", *faults]))
