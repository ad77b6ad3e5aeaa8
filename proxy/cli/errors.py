"""How every command fails: one line on stderr that says what is wrong and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import click


class CommandError(click.ClickException):
    """Ends the command with status 1; the message is a line without a full stop, never with a secret."""

    def show(self, file: IO[str] | None = None) -> None:
        """Print the line."""
        click.echo(f"hawse: {self.format_message()}", file=file, err=file is None)


class ConfigurationFaults(CommandError):
    """Ends the command because of its configuration: a line for each fault, since all are told at once."""

    def __init__(self, whose: str, faults: Sequence[str]) -> None:
        super().__init__("\n  ".join([f"the {whose}'s configuration has faults:", *faults]))
