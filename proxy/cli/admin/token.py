"""`hawse admin token`."""

from __future__ import annotations

import click

from proxy.cli.admin.client import URL_VARIABLE, Object, Reach
from proxy.cli.admin.output import (
    field,
    json_option,
    objects,
    print_fields,
    print_json,
    print_table,
    say,
    since,
    tell_change,
    text,
)
from proxy.cli.errors import CommandError

# What a hub calls the token that it makes for the operator of its own machine.
LOCAL_TOKEN = "local"  # noqa: S105 - a name


@click.group()
def token() -> None:
    """Tokens of the admin API: each is a whole operator."""


@token.command("list")
@json_option
@click.pass_obj
def list_tokens(reach: Reach, /, as_json: bool) -> None:
    """List the tokens by their names."""
    tokens = objects(reach.client().get("tokens"), "tokens")
    columns = [
        ("TOKEN", field("name")),
        ("ID", field("id")),
        ("CREATED", since("created_at")),
        ("LAST USED", since("last_used_at")),
    ]
    print_table(tokens, columns, as_json=as_json, empty="no tokens")


@token.command("add")
@click.argument("name")
@json_option
@click.pass_obj
def add_token(reach: Reach, /, name: str, as_json: bool) -> None:
    """Add a token and print it, this once."""
    made = reach.client().post("tokens", body={"name": name})
    if as_json:
        print_json(made)
        return
    say(f"added token {name}; to use it: HAWSE_ADMIN_TOKEN, and {URL_VARIABLE} from another machine")
    click.echo(text(made, "token"))


@token.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_token(reach: Reach, /, name: str, as_json: bool) -> None:
    """Show when a token was made and last used. The token itself is not kept."""
    found: Object | None = None
    for row in objects(reach.client().get("tokens"), "tokens"):
        if row.get("name") == name:
            found = row
    if found is None:
        raise CommandError(f"there is no token {name!a}; hawse admin token list shows them")
    print_fields(
        found,
        [
            ("token", field("name")),
            ("id", field("id")),
            ("created", since("created_at")),
            ("last used", since("last_used_at")),
        ],
        as_json=as_json,
    )


@token.command("remove")
@click.argument("name")
@json_option
@click.pass_obj
def remove_token(reach: Reach, /, name: str, as_json: bool) -> None:
    """Revoke a token."""
    gone = reach.client().delete("tokens", name)
    tell_change(gone, f"removed token {name}: it opens nothing any more", as_json=as_json)
    if name == LOCAL_TOKEN:
        say("it was this machine's own, and the hub makes another when it starts: hawse hub --replace")
