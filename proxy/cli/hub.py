"""`hawse hub`: run the hub."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.check import check_options
from proxy.cli.logs import LoggedCommand, configure_stated, log_format_option


@click.command(cls=LoggedCommand, variable="HAWSE_HUB_LOG_FORMAT")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="HAWSE_HUB_CONFIG",
    help="TOML file. Each setting can also be set by a HAWSE_HUB_… variable.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Take over from the hub that runs on the same data folder, without losing a call. "
    "Starts normally if no hub runs.",
)
@check_options
@log_format_option("HAWSE_HUB_LOG_FORMAT")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
def hub(
    config_file: Path | None,
    *,
    replace: bool,
    check: bool,
    as_json: bool,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Run the hub: agents connect over HTTPS, relays through the tunnels that they dial.

    Without configuration it listens on 127.0.0.1:8443 with a certificate of a development CA. It stores data
    in the XDG data folder, and serves the admin API on 127.0.0.1:8444, where `hawse admin` on this machine
    finds it. SIGTERM stops it after a grace period for open calls; a second SIGTERM stops it at once.

    With --replace it takes over the running hub's sockets. The old hub finishes its open calls and exits. If
    the new hub cannot start, the old one keeps running.

    With --check it only checks whether it could start, even while a hub runs:

    \b
    hawse hub --check --config hub.toml && systemctl reload hawse-hub
    """
    import logging
    import os
    from functools import partial

    from audit.errors import AuditUnavailable
    from proxy.cli.check import refuse_to_start, report
    from proxy.cli.service import run_service
    from proxy.hub.check import check_hub
    from proxy.hub.home.data_folder import ENVIRONMENT_PREFIX
    from proxy.hub.home.files.private_files import DataDirError
    from proxy.hub.serve import run_hub
    from proxy.hub.store.engines.errors import StoreUnavailableError
    from proxy.process.files import FileError

    if as_json and not check:
        raise click.UsageError("--json goes with --check only")
    environment = dict(os.environ)
    if log_format is not None:
        environment["HAWSE_HUB_LOG_FORMAT"] = log_format
    if not check:
        configure_stated(ENVIRONMENT_PREFIX, config_file, environment, verbose=verbose)
    config, findings = check_hub(config_file, environment)
    if check:
        report("hub", findings, as_json=as_json)
        return
    if config is not None and not findings.configuration:
        for misleading in config.misleading:
            logging.getLogger("hawse.hub").warning("%s", misleading)
    refuse_to_start("hub", findings)
    assert config is not None, "an unreadable configuration has faults"
    known = DataDirError, FileError, StoreUnavailableError, AuditUnavailable, OSError
    run_service(partial(run_hub, replace=replace), config, "hub", known)
