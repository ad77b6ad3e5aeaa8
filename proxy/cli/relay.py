"""`hawse relay`: run the relay."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.check import check_options
from proxy.cli.errors import ConfigurationFaults
from proxy.cli.logs import LoggedCommand, configure_stated, log_format_option


@click.command(cls=LoggedCommand, variable="HAWSE_RELAY_LOG_FORMAT")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="HAWSE_RELAY_CONFIG",
    help="TOML file. Each setting can also be set by a HAWSE_RELAY_… variable.",
)
@click.option(
    "--mode",
    type=click.Choice(["tunnel", "direct"]),
    help="tunnel: the relay dials the hub (default). direct: the relay listens for the hub.",
)
@click.option(
    "--check-guardrails",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Only check these guardrails (a file or a folder), print a summary, and exit.",
)
@check_options
@log_format_option("HAWSE_RELAY_LOG_FORMAT")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
def relay(
    config_file: Path | None,
    *,
    mode: str | None,
    check_guardrails: Path | None,
    check: bool,
    as_json: bool,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Run the relay beside a cluster's API server.

    `hawse admin cluster add` prints the manifests of a relay that runs in a pod of the cluster. For a relay
    outside the cluster, add --output-dir: it writes the FILE for --config. That relay needs a kubeconfig with
    a bearer token. SIGTERM stops it after a grace period for open calls.

    With --check it only checks whether it could start. It contacts neither the hub nor the API server:

    \b
    hawse relay --check --config relay/relay.toml
    """
    import os

    from proxy.cli.check import refuse_to_start, report
    from proxy.cli.service import run_service
    from proxy.process.files import FileError
    from proxy.relay.check import check_relay
    from proxy.relay.config import ENVIRONMENT_PREFIX
    from proxy.relay.serve import RelayError, run_relay
    from proxy.relay.service_account import ClusterAccessError

    if check_guardrails is not None:
        _check(check_guardrails)
        return
    if as_json and not check:
        raise click.UsageError("--json goes with --check only")
    environment = dict(os.environ)
    if mode is not None:
        environment["HAWSE_RELAY_MODE"] = mode
    if log_format is not None:
        environment["HAWSE_RELAY_LOG_FORMAT"] = log_format
    if not check:
        configure_stated(ENVIRONMENT_PREFIX, config_file, environment, verbose=verbose)
    config, findings = check_relay(config_file, environment)
    if check:
        report("relay", findings, as_json=as_json)
        return
    refuse_to_start("relay", findings)
    assert config is not None, "an unreadable configuration has faults"
    run_service(run_relay, config, "relay", (RelayError, ClusterAccessError, FileError, OSError))


def _check(path: Path) -> None:
    """Check guardrails as a relay does at its start."""
    from auth.policy.text import PolicyError
    from proxy.relay.guardrails import Guardrails

    try:
        click.echo(Guardrails(path).summary)
    except PolicyError as error:
        raise ConfigurationFaults("relay", [f"guardrails: {fault}" for fault in error.faults]) from error
