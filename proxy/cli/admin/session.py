"""`hawse admin session`."""

from __future__ import annotations

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.output import (
    Object,
    confirm,
    field,
    json_option,
    objects,
    print_json,
    print_table,
    say,
    since,
    text,
    yes_option,
)


@click.group()
def session() -> None:
    """Manage sessions: open calls, such as execs and watches."""


@session.command("list")
@click.option("--agent", metavar="NAME", help="Only calls of this agent.")
@click.option("--cluster", metavar="NAME", help="Only calls on this cluster.")
@json_option
@click.pass_obj
def list_sessions(reach: Reach, /, agent: str | None, cluster: str | None, as_json: bool) -> None:
    """List the open calls, oldest first."""
    chosen = {key: name for key, name in (("agent", agent), ("cluster", cluster)) if name is not None}
    columns = [
        ("ID", field("id")),
        ("AGENT", field("agent")),
        ("CLUSTER", field("cluster")),
        ("WHAT", _what),
        ("KIND", field("kind")),
        ("SINCE", since("started_at")),
        ("IN", field("bytes_in")),
        ("OUT", field("bytes_out")),
        ("FROM", field("client")),
    ]
    found = reach.client().get("sessions", **chosen)
    print_table(
        objects(found, "sessions"),
        columns,
        as_json=as_json,
        empty="no open calls",
        spare=("FROM", "IN", "OUT", "KIND", "SINCE"),
    )
    _note_other_hubs(found)


@session.command("kill")
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--agent", metavar="NAME", help="End all calls of this agent.")
@click.option("--cluster", metavar="NAME", help="End all calls on this cluster.")
@click.option("--reason", metavar="TEXT", required=True, help="The reason, recorded with each call.")
@yes_option
@json_option
@click.pass_obj
def kill_sessions(
    reach: Reach,
    /,
    session_id: str | None,
    agent: str | None,
    cluster: str | None,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """End an open call by its id, or all of an agent or cluster.

    With --agent and --cluster, it ends that agent's calls on that cluster.

    The call is cut, and kubectl exits with an error. The agent may call again: to prevent that, lock it with
    `hawse admin agent lock`, which also ends its open calls.
    """
    if (session_id is None) == (agent is None and cluster is None):
        raise click.UsageError("give the id of one session, or --agent NAME, --cluster NAME or both")
    if session_id is None:
        named = [
            f"{kind} {name}" for kind, name in (("agent", agent), ("cluster", cluster)) if name is not None
        ]
        confirm(f"End all open calls of {' on '.join(named)}?", yes=yes)
    chosen = {"id": session_id, "agent": agent, "cluster": cluster}
    body = {"reason": reason, **{key: value for key, value in chosen.items() if value is not None}}
    killed = reach.client().post("sessions", "kill", body=body)
    if as_json:
        print_json(killed)
        return
    gone = objects(killed, "killed")
    for row in gone:
        say(f"killed {text(row, 'id')}: agent:{text(row, 'agent')} on {text(row, 'cluster')}, {_what(row)}")
    if not gone:
        say("no open call matches")
    _note_other_hubs(killed)


def _note_other_hubs(answer: Object) -> None:
    if answer.get("hubs_beside"):
        say(
            "a replaced hub is still finishing its own calls, which are not in this list: to end them, lock "
            "their agents, or send that hub SIGTERM"
        )


def _what(row: Object) -> str:
    place = "/".join(part for part in (text(row, "namespace"), text(row, "name")) if part)
    return " ".join(part for part in (text(row, "verb"), text(row, "resource"), place) if part)
