"""`hawse admin session`."""

from __future__ import annotations

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.errors import AnswerIsNo
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
    texts,
    yes_option,
)

_GO_ON = "its calls may go on, and locking their agents ends them there too"


@click.group()
def session() -> None:
    """Manage sessions: open calls, such as execs and watches."""


@session.command("list")
@click.option("--agent", metavar="NAME", help="Only calls of this agent.")
@click.option("--cluster", metavar="NAME", help="Only calls on this cluster.")
@json_option
@click.pass_obj
def list_sessions(reach: Reach, /, agent: str | None, cluster: str | None, as_json: bool) -> None:
    """List the open calls at all hubs, oldest first.

    Exits 3 if a hub did not answer within 2 s: its calls are then missing.
    """
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
    found = reach.client().get("sessions", agent=agent, cluster=cluster)
    rows = objects(found, "sessions")
    spare = ["FROM", "IN", "OUT", "KIND", "SINCE"]
    if any(row.get("hub") for row in rows):
        columns.append(("HUB", field("hub")))
        spare.insert(0, "HUB")
    if any(row.get("claimed_reason") for row in rows):
        columns.append(("CLAIMED", field("claimed_reason")))
        spare.insert(0, "CLAIMED")
    print_table(
        rows,
        columns,
        as_json=as_json,
        empty="no open calls",
        spare=spare,
    )
    _note_other_hubs(found, "its calls are not in this list")


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

    Exits 3 if a hub did not answer within 2 s: its calls may then go on.
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
        _note_other_hubs(killed, _GO_ON)
        return
    gone = objects(killed, "killed")
    for row in gone:
        say(f"killed {text(row, 'id')}: agent:{text(row, 'agent')} on {text(row, 'cluster')}, {_what(row)}")
    if not gone:
        say("no open call matches")
    _note_other_hubs(killed, _GO_ON)


def _note_other_hubs(answer: Object, silence: str) -> None:
    """Name the hubs whose calls an answer lacks; `silence` says what that means. Raises AnswerIsNo."""
    if answer.get("hubs_beside"):
        say(
            "a replaced hub is still finishing its own calls, which are not in this list: to end them, lock "
            "their agents, or send that hub SIGTERM"
        )
    lines = [
        f"hub {hub} did not answer within 2 s: {silence}; see hawse admin hub list"
        for hub in texts(answer, "silent_hubs")
    ]
    if lines:
        raise AnswerIsNo("\n".join(lines))


def _what(row: Object) -> str:
    place = "/".join(part for part in (text(row, "namespace"), text(row, "name")) if part)
    return " ".join(part for part in (text(row, "verb"), text(row, "resource"), place) if part)
