"""`--check` of hub and relay, and startup errors: all faults are reported together, one a line."""

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
    """Ends `--check` with status 2: faults were found."""

    exit_code = 2


def check_options(command: F) -> F:
    """Add `--check` and its `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="With --check: print JSON."),
        click.option(
            "--check",
            is_flag=True,
            help="Only check configuration, certificates, keys and folders, and print all faults. Exit "
            "status: 0, or 2 with faults. Changes nothing and opens no port.",
        ),
    ):
        command = option(command)
    return command


def report(service: str, findings: Findings, *, as_json: bool) -> None:
    """Print the findings of `--check`. With faults, end the command with status 2."""
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
        raise CheckFailed("\n".join([f"the check of the {service} found {_fault_count(faults)}:", *faults]))
    click.echo(f"the {service} can start:")
    width = max(map(len, findings.seen))
    for name, value in findings.seen.items():
        click.echo(f"  {name.ljust(width)}  {value}")


def refuse_to_start(service: str, findings: Findings) -> None:
    """Raise CommandError with all faults that prevent the start, if there are any."""
    if findings.configuration and not findings.faults:
        raise ConfigurationFaults(service, findings.configuration)
    match findings.fatal:
        case []:
            return
        case [fault]:
            raise CommandError(f"the {service} cannot run: {fault}")
        case faults:
            raise CommandError("\n".join([f"the {service} cannot run: {_fault_count(faults)}:", *faults]))


def _fault_count(faults: list[str]) -> str:
    from proxy.process.plural import counted

    return counted(len(faults), "fault")
