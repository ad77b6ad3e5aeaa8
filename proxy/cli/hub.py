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
    help="TOML file; each setting can also come from HAWSE_HUB_….",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Take the place of the hub that runs on the same data folder, without a call lost; "
    "start as usual if none does.",
)
@check_options
@log_format_option("HAWSE_HUB_LOG_FORMAT")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def hub(
    config_file: Path | None,
    *,
    replace: bool,
    check: bool,
    as_json: bool,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Run the hub: agents come in by HTTPS, relays by the tunnels that they dial.

    Without any configuration it listens on 127.0.0.1:8443 with a certificate of a development CA, keeps its
    data under the XDG data folder, and its admin API listens on 127.0.0.1:8444. `hawse admin` on the same
    machine finds it by itself. SIGTERM stops it after a grace for what is under way, a second one at once.

    With --replace it is given the sockets of the hub that runs, which then finishes what it has begun and
    ends by itself. If this one cannot start, that one goes on.

    With --check it only says whether it could start, also beside a hub that runs:

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
    from proxy.hub.home.config import ENVIRONMENT_PREFIX
    from proxy.hub.home.datadir import DataDirError
    from proxy.hub.serve import run_hub
    from proxy.hub.store.errors import StoreUnavailableError
    from proxy.process.files import FileError

    if as_json and not check:
        raise click.UsageError("--json belongs to --check")
    environment = dict(os.environ)
    if log_format is not None:
        environment["HAWSE_HUB_LOG_FORMAT"] = log_format
    if not check:
        configure_stated(ENVIRONMENT_PREFIX, config_file, environment, verbose=verbose)
    config, findings = check_hub(config_file, environment)
    if check:
        report("hub", findings, as_json=as_json)
        return
    if config is not None and not findings.configuration and config.misleading is not None:
        logging.getLogger("hawse.hub").warning("%s", config.misleading)
    refuse_to_start("hub", findings)
    assert config is not None, "or it has faults"
    known = DataDirError, FileError, StoreUnavailableError, AuditUnavailable, OSError
    run_service(partial(run_hub, replace=replace), config, "hub", known)
