"""`hawse admin request`."""

from __future__ import annotations

import json
import sys

import click

from audit.escape import escape
from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.cli.admin.request.following import followed
from proxy.cli.admin.request.showing import (
    commands_of,
    followed_line,
    print_request,
    sentence_of,
    summary_of,
)
from proxy.cli.errors import CommandError
from proxy.cli.output import (
    confirm,
    field,
    json_option,
    objects,
    print_change,
    print_json,
    print_table,
    say,
    since,
    text,
    texts,
    yes_option,
)

OPEN = "pending,approved,using"


@click.group()
def request() -> None:
    """Decide about calls of agents that need an approval.

    A policy's rule with `effect: ask` makes the calls wait. Approving takes a token of the role approver:
    hawse admin token add NAME --role approver --person you@example.com
    """


@request.command("list")
@click.option("--state", metavar="STATE,…", help="Only these states. Default: pending, approved, using.")
@click.option("--all", "every", is_flag=True, help="All states.")
@click.option("--agent", metavar="NAME", help="Only requests of this agent.")
@click.option("--cluster", metavar="NAME", help="Only requests on this cluster.")
@click.option("--follow", is_flag=True, help="Print each change as it comes, until interrupted.")
@json_option
@click.pass_obj
def list_requests(
    reach: Reach,
    /,
    state: str | None,
    every: bool,
    agent: str | None,
    cluster: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """List the requests, the newest first.

    With --follow, those that are open come first, and then a line for each change. With --json too, each line
    is a request.
    """
    if every and state is not None:
        raise click.UsageError("--all is all states: leave out --state")
    chosen = {"agent": agent, "cluster": cluster, "state": "" if every else state or OPEN}
    client = reach.client()
    if follow:
        for row in followed(client, chosen):
            click.echo(json.dumps(row) if as_json else escape(followed_line(row)))
        return
    found = client.get("requests", **chosen)
    columns = [
        ("ID", field("id")),
        ("STATE", field("state")),
        ("AGENT", field("agent")),
        ("CLUSTER", field("cluster")),
        ("WHAT", field("what")),
        ("EFFECT", summary_of),
        ("FLAGS", lambda row: ", ".join(texts(row, "flags")) or "-"),
        ("RULE", field("rule")),
        ("SINCE", since("created_at")),
    ]
    empty = "no requests" if every or state else "no request is open (all: hawse admin request list --all)"
    rows = objects(found, "requests")
    print_table(rows, columns, as_json=as_json, empty=empty, spare=("RULE", "EFFECT", "FLAGS", "SINCE"))
    if found.get("more"):
        say(f"only the newest {len(rows)} are shown: choose by --state, --agent or --cluster")


@request.command("show")
@click.argument("request_id", metavar="ID")
@json_option
@click.pass_obj
def show_request(reach: Reach, /, request_id: str, as_json: bool) -> None:
    """Show what a call would do, and how to decide."""
    found = reach.client().get("requests", request_id)
    if as_json:
        print_json(found)
        return
    print_request(found)
    for line in commands_of(found, reach.hub):
        click.echo(line)


@request.command("approve")
@click.argument("request_id", metavar="ID")
@click.option("--shown", metavar="DIGEST", help="The digest that `request show` prints.")
@json_option
@click.pass_obj
def approve_request(reach: Reach, /, request_id: str, shown: str | None, as_json: bool) -> None:
    """Approve exactly the call that was shown.

    Without --shown, a terminal shows the request and asks. The approval serves one call: the one that waits,
    or the next that is the same, for as long as the rule says (`validFor`).
    """
    client = reach.client()
    if shown is None:
        shown = _looked_at(client, request_id)
    approved = client.post("requests", request_id, "approve", body={"shown": shown})
    print_change(approved, sentence_of(approved), as_json=as_json)


@request.command("deny")
@click.argument("request_id", metavar="ID")
@click.option("--because", metavar="TEXT", required=True, help="Why; the agent reads it.")
@json_option
@click.pass_obj
def deny_request(reach: Reach, /, request_id: str, because: str, as_json: bool) -> None:
    """Deny a request. The same call is refused for 10 minutes without a new request."""
    denied = reach.client().post("requests", request_id, "deny", body={"because": because})
    print_change(denied, sentence_of(denied), as_json=as_json)


@request.command("revoke")
@click.argument("request_id", metavar="ID")
@yes_option
@json_option
@click.pass_obj
def revoke_request(reach: Reach, /, request_id: str, yes: bool, as_json: bool) -> None:
    """Revoke an approval, and end a call that runs under it.

    What the call has done already is not undone.
    """
    confirm(f"Revoke request {request_id}? A call that runs under it is cut", yes=yes)
    revoked = reach.client().post("requests", request_id, "revoke")
    print_change(revoked, sentence_of(revoked), as_json=as_json)


def _looked_at(client: AdminClient, request_id: str) -> str:
    """Show a request and ask; return the digest of what was shown."""
    if not sys.stdin.isatty():
        raise CommandError(
            "approve needs --shown DIGEST without a terminal; for the digest: hawse admin request show "
            f"{request_id}"
        )
    found = client.get("requests", request_id)
    print_request(found)
    if not found.get("may_approve"):
        raise CommandError(f"you may not approve it: {text(found, 'may_not')}")
    click.confirm("Approve exactly this call?", abort=True, err=True)
    return text(found, "shown")
