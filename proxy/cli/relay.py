"""`hawse relay`: run the relay."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.errors import CommandError, ConfigurationFaults


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="HAWSE_RELAY_CONFIG",
    help="TOML file; each setting can also come from HAWSE_RELAY_….",
)
@click.option(
    "--mode",
    type=click.Choice(["tunnel", "direct"]),
    help="tunnel: dial the hub (the default). direct: listen for it.",
)
@click.option(
    "--check-guardrails",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Only read these guardrails, a file or a folder, say what they come to, and exit.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def relay(config_file: Path | None, mode: str | None, check_guardrails: Path | None, verbose: bool) -> None:
    """Run the relay beside a cluster's API server.

    `hawse admin cluster add` prints the manifests that run it in a pod, with its service account. With
    --output-dir it writes the FILE of one outside a cluster, which needs a kubeconfig with a bearer token.
    SIGTERM stops it after a grace for what is under way.
    """
    import os

    from proxy.cli.logs import configure_logging
    from proxy.cli.service import run_service
    from proxy.configuration import ConfigError
    from proxy.relay.config import ENVIRONMENT_PREFIX, load
    from proxy.relay.serve import RelayError, run_relay
    from proxy.relay.serviceaccount import ClusterAccessError
    from proxy.watched import FileError

    if check_guardrails is not None:
        _check(check_guardrails)
        return
    configure_logging(verbose=verbose)
    environment = dict(os.environ)
    if config_file is None and not any(name.startswith(ENVIRONMENT_PREFIX) for name in environment):
        raise CommandError(
            "the relay has no configuration: name its --config, which "
            "`hawse admin cluster add NAME --output-dir DIR` writes"
        )
    if mode is not None:
        environment["HAWSE_RELAY_MODE"] = mode
    try:
        config = load(config_file, environment)
    except ConfigError as error:
        raise ConfigurationFaults("relay", error.faults) from error
    run_service(run_relay, config, "relay", (RelayError, ClusterAccessError, FileError, OSError))


def _check(path: Path) -> None:
    """Read guardrails as a relay would at its start."""
    from auth.policy_text import PolicyError
    from proxy.relay.guardrails import Guardrails

    try:
        click.echo(Guardrails(path).summary)
    except PolicyError as error:
        raise ConfigurationFaults("relay", [f"guardrails: {fault}" for fault in error.faults]) from error
