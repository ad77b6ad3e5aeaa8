"""`hawse clusters`: list the clusters that this agent may reach."""

from __future__ import annotations

import json

import click

from proxy.cli.agent.login_selection import hub_option, json_option, selected_logins
from proxy.cli.errors import CommandError

HEADINGS = ("CLUSTER", "STATE", "MAY", "HUB")


@click.command()
@hub_option
@json_option
def clusters(*, hub: str | None, as_json: bool) -> None:
    """List the clusters that this agent may reach, as its hubs report them now.

    \b
    STATE  online, offline (no relay of the cluster is connected), API server
           down, or not tried (direct mode: the hub dials at the first call)
    MAY    what the hub's policies allow: all (except rules on single verbs,
           kinds, namespaces or names), read, some, or nothing;
           the cluster's own RBAC also applies

    To use them, run `hawse kubeconfig`. Exit status: 0, or 1 if a hub does not answer or refuses the login
    (see `hawse status`), or there is no login.
    """
    from proxy.agent.hub.requests import fetch_reach
    from proxy.agent.local.errors import AgentError

    rows: list[dict[str, str | None]] = []
    faults: list[str] = []
    try:
        accounts = selected_logins(hub)
    except AgentError as error:
        raise CommandError(str(error)) from error
    for account in accounts:
        try:
            reach = fetch_reach(account)
        except AgentError as error:
            faults.append(str(error))
            continue
        rows += [
            {"name": name, "state": reach.states.get(name), "may": reach.may.get(name), "hub": account.hub}
            for name in reach.clusters
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _print(rows)
    elif not faults:
        click.echo("no clusters: ask the hub's operator to run `hawse admin cluster grant`", err=True)
    if faults:
        raise CommandError("\n".join(faults))


def _print(rows: list[dict[str, str | None]]) -> None:
    cells = [HEADINGS, *((tuple(value or "-" for value in row.values())) for row in rows)]
    if len({row["hub"] for row in rows}) == 1:
        cells = [line[:-1] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        click.echo("  ".join(map(str.ljust, line, widths)).rstrip())
