"""`hawse admin`: manage teams, agents, clusters, policies, requests, relays, sessions, keys and backups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import click

from proxy.cli.admin.api.client import Reach

# The module below this package in which each command is, under the same name.
_MODULES = {
    "team": "team",
    "agent": "agent",
    "federation": "federation",
    "cluster": "cluster.commands",
    "policy": "policy.commands",
    "relay": "relay",
    "session": "session",
    "request": "request.commands",
    "token": "token",
    "console": "console",
    "login": "login",
    "logins": "login",
    "logout": "login",
    "hub": "hub.commands",
    "keys": "hub.keys",
    "audit": "hub.audit",
    "database": "hub.database",
    "backup": "hub.backup",
    "restore": "hub.backup",
    "migrate": "hub.migrate",
}


class _Commands(Mapping[str, click.Command]):
    """Imports a command when it is used: to import all takes as long as the rest of a command's start."""

    def __getitem__(self, name: str) -> click.Command:
        command = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        assert isinstance(command, click.Command)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


@click.group(commands=_Commands())
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
@click.option("--hub", metavar="NAME", help="A hub that `hawse admin login` has named.")
@click.pass_context
def admin(ctx: click.Context, config_file: Path | None, data_dir: Path | None, hub: str | None) -> None:
    """Manage teams, agents, clusters, policies, requests, relays, sessions, keys and backups.

    On the hub's machine, as the user that runs the hub, no settings are needed. From another machine, run
    `hawse admin login NAME` once and name the hub by --hub. Or set HAWSE_ADMIN_URL and HAWSE_ADMIN_TOKEN, and
    HAWSE_ADMIN_CA (a file) unless the hub's certificate is from a public CA.
    """
    # HAWSE_HUB_CONFIG is no contradiction: --hub is the more specific of the two.
    stated = ctx.get_parameter_source("config_file") is click.core.ParameterSource.COMMANDLINE
    if hub is not None and (data_dir is not None or stated):
        raise click.UsageError("--hub names a remote hub: leave out --data-dir and --config")
    ctx.obj = Reach(None if hub is not None else config_file, data_dir, hub)
