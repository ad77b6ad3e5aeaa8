"""`hawse admin team`."""

from __future__ import annotations

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.output import (
    field,
    json_option,
    listed,
    objects,
    print_change,
    print_fields,
    print_json,
    print_table,
    say,
    say_apply_rbac,
    since,
    text,
    texts,
)


@click.group()
def team() -> None:
    """Manage teams. Each is the Kubernetes group <org>/<team>."""


@team.command("list")
@json_option
@click.pass_obj
def list_teams(reach: Reach, /, as_json: bool) -> None:
    """List the teams."""
    teams = objects(reach.client().get("teams"), "teams")
    columns = [
        ("TEAM", field("name")),
        ("GROUP", field("group")),
        ("AGENTS", lambda row: str(len(texts(row, "agents")))),
        ("CLUSTERS", listed("clusters")),
    ]
    print_table(teams, columns, as_json=as_json, empty="no teams yet: hawse admin team add NAME")


@team.command("add")
@click.argument("name")
@click.option(
    "--cluster", "clusters", multiple=True, metavar="NAME", help="Grant this cluster to it; repeatable."
)
@click.option(
    "--reuse-name",
    is_flag=True,
    help="Allow the name of a removed team. First remove its group from all bindings in the clusters.",
)
@json_option
@click.pass_obj
def add_team(reach: Reach, /, name: str, clusters: tuple[str, ...], reuse_name: bool, as_json: bool) -> None:
    """Add a team. The name of a removed team is refused, since old bindings would apply to the new team."""
    # Sent only if set: older hubs don't know it.
    reuse = {"reuse_name": True} if reuse_name else {}
    made = reach.client().post("teams", body={"name": name, "clusters": clusters, **reuse})
    if as_json:
        print_json(made)
        return
    say(f"added team {name}, the Kubernetes group {text(made, 'group')}")
    if not clusters:
        say(f"next: hawse admin cluster grant CLUSTER {name}")
    say_apply_rbac(made)


@team.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_team(reach: Reach, /, name: str, as_json: bool) -> None:
    """Show a team with its agents and clusters."""
    found = reach.client().get("teams", name)
    print_fields(
        found,
        [
            ("team", field("name")),
            ("id", field("id")),
            ("group", field("group")),
            ("agents", listed("agents")),
            ("clusters", listed("clusters")),
            ("created", since("created_at")),
        ],
        as_json=as_json,
    )


@team.command("remove")
@click.argument("name")
@json_option
@click.pass_obj
def remove_team(reach: Reach, /, name: str, as_json: bool) -> None:
    """Remove a team without agents."""
    gone = reach.client().delete("teams", name)
    group = text(gone, "group")
    done = (
        f"removed team {name}; remove the bindings to its group {group} in the clusters yourself, "
        "and note that its name is not reused"
    )
    print_change(gone, done, as_json=as_json)
