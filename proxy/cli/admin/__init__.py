"""`hawse admin`: manage teams, agents, clusters, policies, relays, sessions, keys and backups."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.admin.agent import agent
from proxy.cli.admin.client import Reach
from proxy.cli.admin.cluster.commands import cluster
from proxy.cli.admin.federation import federation
from proxy.cli.admin.hub.audit import audit
from proxy.cli.admin.hub.backup import backup, restore
from proxy.cli.admin.hub.commands import hub
from proxy.cli.admin.hub.keys import keys
from proxy.cli.admin.policy.commands import policy
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
    help="The hub's configuration file, which names the data folder.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="DIR",
    help="The hub's data folder. Overrides the configuration.",
)
@click.pass_context
def admin(ctx: click.Context, config_file: Path | None, data_dir: Path | None) -> None:
    """Manage teams, agents, clusters, policies, relays, sessions, keys and backups.

    On the hub's machine, as the user that runs the hub, no settings are needed. From another machine, set
    HAWSE_ADMIN_URL and HAWSE_ADMIN_TOKEN, and HAWSE_ADMIN_CA (a file) unless the hub's certificate is from a
    public CA.
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
