"""`--check` of the hub and the relay, and what keeps them from starting: every fault at once, a line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from proxy.cli.errors import CommandError, ConfigurationFaults
from proxy.cli.logs import show_warning

if TYPE_CHECKING:
    from proxy.process.findings import Findings

F = TypeVar("F", bound=Callable[..., object])


class CheckFailed(CommandError):
    """Ends `--check` with status 2: what was checked has faults."""

    exit_code = 2


def check_options(command: F) -> F:
    """`--check` and its `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="With --check: print JSON, for programs."),
        click.option(
            "--check",
            is_flag=True,
            help="Only read configuration, certificates, keys and folders, print every fault, and exit by 0, "
            "or by 2 with a fault. Changes nothing, opens no port.",
        ),
    ):
        command = option(command)
    return command


def report(whose: str, findings: Findings, *, as_json: bool) -> None:
    """Print what `--check` has found. With faults it ends the command by status 2."""
    faults = [*findings.fatal, *findings.refused]
    if as_json:
        document = {
            "ok": not faults,
            "faults": faults,
            "warnings": findings.warnings,
            "seen": findings.seen,
        }
        click.echo(json.dumps(document, indent=2))
        if faults:
            click.get_current_context().exit(CheckFailed.exit_code)
        return
    for warning in findings.warnings:
        show_warning(warning)
    if faults:
        raise CheckFailed("\n".join([f"the check of the {whose} finds {_counted(faults)}:", *faults]))
    click.echo(f"the {whose} can start:")
    width = max(map(len, findings.seen))
    for name, what in findings.seen.items():
        click.echo(f"  {name.ljust(width)}  {what}")


def refuse_to_start(whose: str, findings: Findings) -> None:
    """Raise CommandError with everything that keeps a process from starting, if anything does."""
    if findings.configuration and not findings.faults:
        raise ConfigurationFaults(whose, findings.configuration)
    match findings.fatal:
        case []:
            return
        case [fault]:
            raise CommandError(f"the {whose} cannot run: {fault}")
        case faults:
            raise CommandError("\n".join([f"the {whose} cannot run, for {_counted(faults)}:", *faults]))


def _counted(faults: list[str]) -> str:
    from proxy.process.plural import counted

    return counted(len(faults), "fault")
