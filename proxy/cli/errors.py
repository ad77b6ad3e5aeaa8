"""How every command fails: one line on stderr that says what is wrong and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import click

# Of a command that did what it was asked to, and whose answer is no: what it checked is not so. A program
# can tell that from 1, a command that failed, and 2, one that was not understood.
ANSWER_NO = 3


def indented(text: str) -> str:
    """Set the lines of a text apart from what is printed before and after it, by all but the first."""
    return text.replace("\n", "\n  ")


class CommandError(click.ClickException):
    """Ends the command with status 1; the message is a line without a full stop, never with a secret."""

    def show(self, file: IO[str] | None = None) -> None:
        """Print the line. Of a hub's words there may be more, none of which is to look like one of ours."""
        click.echo(f"hawse: {indented(self.format_message())}", file=file, err=file is None)


class AnswerIsNo(CommandError):
    """Ends the command with status 3: what was checked is not so."""

    exit_code = ANSWER_NO


class ConfigurationFaults(CommandError):
    """Ends the command because of its configuration: a line for each fault, since all are told at once."""

    def __init__(self, whose: str, faults: Sequence[str]) -> None:
        super().__init__("\n".join([f"the {whose}'s configuration has faults:", *faults]))
