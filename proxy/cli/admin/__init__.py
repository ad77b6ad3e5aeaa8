"""`hawse admin`: enrol teams, agents and clusters, look at relays and sessions, rotate keys, back up."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.admin.agent import agent
from proxy.cli.admin.audit import audit
from proxy.cli.admin.backup import backup, restore
from proxy.cli.admin.client import Reach
from proxy.cli.admin.cluster import cluster
from proxy.cli.admin.federation import federation
from proxy.cli.admin.hub import hub
from proxy.cli.admin.keys import keys
from proxy.cli.admin.policy import policy
from proxy.cli.admin.relay import relay
from proxy.cli.admin.session import session
from proxy.cli.admin.team import team
from proxy.cli.admin.token import token


@click.group()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="HAWSE_HUB_CONFIG",
    metavar="FILE",
    help="The hub's configuration (it names the data folder).",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="DIR",
    help="The hub's data folder, instead of the configured one.",
)
@click.pass_context
def admin(ctx: click.Context, config_file: Path | None, data_dir: Path | None) -> None:
    """Enrol teams, agents and clusters; set policies; look at relays and sessions; rotate keys; back up.

    On the hub's machine, as the user that runs the hub, this finds the running hub and its token by itself.
    From elsewhere it needs HAWSE_ADMIN_URL and HAWSE_ADMIN_TOKEN, and HAWSE_ADMIN_CA (a file) where the hub's
    certificate is not of a public CA.
    """
    ctx.obj = Reach(config_file, data_dir)


for command in (
    team,
    agent,
    federation,
    cluster,
    policy,
    relay,
    session,
    token,
    hub,
    keys,
    audit,
    backup,
    restore,
):
    admin.add_command(command)
