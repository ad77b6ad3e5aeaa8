"""`hawse admin console`."""

from __future__ import annotations

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.admin.token import to_lifetime
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
    yes_option,
)

_OWN_CA = (
    "the hub's certificate is from its own CA, so browsers warn: import the file that "
    "`hawse admin hub ca > hub-ca.pem` writes, or set tls.certificate"
)


@click.group()
def console() -> None:
    """Sign in to the console, and manage its sessions."""


@console.command("open")
@click.option(
    "--expires",
    "expires_s",
    metavar="TIME",
    callback=to_lifetime,
    help="How long the URL can be opened, at most 10m. Default: 1m.",
)
@json_option
@click.pass_obj
def open_console(reach: Reach, /, expires_s: int | None, as_json: bool) -> None:
    """Print a URL that signs a browser in to the console, once.

    The session has the role of your admin token, and ends with it: after 12 hours at the latest, or 30
    minutes without use. Nothing is opened by itself.
    """
    made = reach.client().post("console", "codes", body={} if expires_s is None else {"expires_s": expires_s})
    if as_json:
        print_json(made)
        return
    say(f"signs in as {text(made, 'role')}, once, until {text(made, 'expires_at')}")
    if made.get("own_ca"):
        say(_OWN_CA)
    click.echo(text(made, "url"))


@console.command("list")
@json_option
@click.pass_obj
def list_sessions(reach: Reach, /, as_json: bool) -> None:
    """List the sessions of your admin token, or all for an auditor."""
    sessions = objects(reach.client().get("console", "sessions"), "sessions")
    columns = [
        ("ID", field("id")),
        ("NAME", field("name")),
        ("ROLE", field("role")),
        ("ADDRESS", field("ip")),
        ("BEGAN", since("created_at")),
        ("USED", since("used_at")),
        ("BROWSER", field("user_agent")),
    ]
    empty = "no sessions: hawse admin console open"
    print_table(sessions, columns, as_json=as_json, empty=empty, spare=["BROWSER", "USED"])


@console.command("end")
@click.argument("session_id", metavar="ID", required=False)
@click.option("--all", "every", is_flag=True, help="End all sessions that `list` shows.")
@yes_option
@json_option
@click.pass_obj
def end_session(reach: Reach, /, session_id: str | None, every: bool, yes: bool, as_json: bool) -> None:
    """End a session: one of your admin token, or with the role admin any.

    It ends at all hubs at once. To keep its person out, remove the token too: hawse admin token remove.
    """
    if (session_id is None) == (not every):
        raise click.UsageError("give the id of one session, or --all")
    client = reach.client()
    if session_id is not None:
        gone = client.delete("console", "sessions", session_id)
        print_change(gone, f"ended the session of {text(gone, 'name')}", as_json=as_json)
        return
    sessions = objects(client.get("console", "sessions"), "sessions")
    confirm(f"End {len(sessions)} sessions? Their people have to sign in again", yes=yes)
    ended = [client.delete("console", "sessions", text(row, "id")) for row in sessions]
    if as_json:
        print_json([*ended])
        return
    for row in ended:
        say(f"ended the session of {text(row, 'name')}")
