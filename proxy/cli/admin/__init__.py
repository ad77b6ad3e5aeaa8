"""`hawse admin`: manage teams, agents, clusters, policies, relays, sessions, keys and backups."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.cli.admin import agent, federation, relay, session, team, token
from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.cluster import commands as cluster_commands
from proxy.cli.admin.hub import audit, backup, database, keys, migrate
from proxy.cli.admin.hub import commands as hub_commands
from proxy.cli.admin.policy import commands as policy_commands


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
    team.team,
    agent.agent,
    federation.federation,
    cluster_commands.cluster,
    policy_commands.policy,
    relay.relay,
    session.session,
    token.token,
    hub_commands.hub,
    keys.keys,
    audit.audit,
    database.database,
    backup.backup,
    backup.restore,
    migrate.migrate,
):
    admin.add_command(command)
