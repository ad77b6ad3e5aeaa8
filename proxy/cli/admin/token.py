"""`hawse admin token`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click

from proxy.cli.admin.api.client import URL_VARIABLE, Reach
from proxy.cli.errors import CommandError
from proxy.cli.output import (
    Object,
    confirm,
    field,
    json_option,
    objects,
    print_change,
    print_fields,
    print_json,
    print_table,
    say,
    since,
    text,
    texts,
    yes_option,
)
from proxy.hub.store.local_user import is_local_token_name
from proxy.hub.store.roles import MEANINGS, Role
from proxy.process.suggestions import did_you_mean

_LIFETIME = re.compile(r"([0-9]{1,6})([mhd])", re.ASCII)
_UNIT_S = {"m": 60, "h": 3600, "d": 86400}

_ROLES = "\n".join(f"  {role:<9} {meaning}" for role, meaning in MEANINGS.items())


def to_role(ctx: click.Context, param: click.Parameter, value: str | None) -> Role:
    """Parse an option's value as a role, which is required."""
    try:
        return Role(value or "")
    except ValueError as error:
        fault = "a token needs a role" if value is None else f"{value!a} is not a role"
        raise click.BadParameter(f"{fault}: choose\n{_ROLES}", ctx, param) from error


def to_lifetime(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Parse an option's value as a duration, in seconds."""
    if value is None:
        return None
    found = _LIFETIME.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!a} is not a duration such as 12h or 90d", ctx, param)
    return int(found[1]) * _UNIT_S[found[2]]


@click.group()
def token() -> None:
    """Manage tokens of the admin API. Each has a role."""


@token.command("list")
@json_option
@click.pass_obj
def list_tokens(reach: Reach, /, as_json: bool) -> None:
    """List the tokens by name, with warnings about them.

    Warnings go to standard error. With --json they are also in each token's `warnings`.
    """
    tokens = objects(reach.client().get("tokens"), "tokens")
    columns = [
        ("TOKEN", field("name")),
        ("ROLE", field("role")),
        *([("PERSON", field("person"))] if any(row.get("person") for row in tokens) else []),
        ("EXPIRES", _expires),
        ("LAST USED", since("last_used_at")),
        ("CREATED", since("created_at")),
    ]
    print_table(tokens, columns, as_json=as_json, empty="no tokens")
    for row in tokens:
        _say_warnings(row)


@token.command(
    "add",
    help=f"""Add a token, and print it. It is shown only once.

\b
Roles:
{_ROLES}

\b
Examples, for Prometheus and for a person who approves calls:
  (umask 077; hawse admin token add prometheus --role metrics > hawse.token)
  hawse admin token add you --role approver --person you@example.com
""",
)
@click.argument("name")
@click.option("--role", metavar="ROLE", callback=to_role, help="What the token may do; required.")
@click.option(
    "--expires",
    "expires_s",
    metavar="TIME",
    callback=to_lifetime,
    help="The token's lifetime (12h, 90d). Default: unlimited.",
)
@click.option("--remote", is_flag=True, help="Accept it at the console's listener too, for programs.")
@click.option("--person", metavar="NAME", help="Whose token it is, as rules name approvers; for approver.")
@json_option
@click.pass_obj
def add_token(
    reach: Reach,
    /,
    name: str,
    role: Role,
    expires_s: int | None,
    remote: bool,
    person: str | None,
    as_json: bool,
) -> None:
    """Add a token, and print it. It is shown only once."""
    if (person is not None) != (role is Role.APPROVER):
        need = "needs --person NAME" if person is None else "takes no --person: only the role approver does"
        raise click.UsageError(f"a token of the role {role} {need}")
    # Sent only if set: older hubs don't know them.
    more = {**({"remote": True} if remote else {}), **({"person": person} if person else {})}
    body = {"name": name, "role": role, "expires_s": expires_s, **more}
    made = reach.client().post("tokens", body=body)
    if as_json:
        print_json(made)
        return
    ends = text(made, "expires_at")
    use = f"HAWSE_ADMIN_TOKEN, and {URL_VARIABLE} from another machine"
    say(f"added token {name}, {role}: {MEANINGS[role]}{f'; it ends at {ends}' if ends else ''}")
    say(f"to use it: {'authorization.credentials_file of Prometheus' if role is Role.METRICS else use}")
    click.echo(text(made, "token"))


@token.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_token(reach: Reach, /, name: str, as_json: bool) -> None:
    """Show a token's role and last use. The token itself is not stored."""
    tokens = {text(row, "name"): row for row in objects(reach.client().get("tokens"), "tokens")}
    found = tokens.get(name)
    if found is None:
        near = did_you_mean(name, tokens)
        raise CommandError(f"there is no token {name!a}{near}; for the names: hawse admin token list")
    print_fields(
        found,
        [
            ("token", field("name")),
            ("id", field("id")),
            ("role", field("role")),
            ("person", field("person")),
            ("counts at", lambda row: f"admin.listen{' and console.listen' if row.get('remote') else ''}"),
            ("expires", lambda row: text(row, "expires_at") or "never"),
            ("created", since("created_at")),
            ("last used", since("last_used_at")),
        ],
        as_json=as_json,
    )
    _say_warnings(found)


@token.command("remove")
@click.argument("name")
@yes_option
@json_option
@click.pass_obj
def remove_token(reach: Reach, /, name: str, yes: bool, as_json: bool) -> None:
    """Revoke a token. The last token with the role admin can't be removed."""
    confirm(f"Remove token {name}? All its users are refused at once", yes=yes)
    gone = reach.client().delete("tokens", name)
    print_change(gone, f"removed token {name}: it no longer works", as_json=as_json)
    if is_local_token_name(name):
        say("it was a machine's own token; a hub there makes a new one when it starts: hawse hub --replace")


def _expires(row: Object) -> str:
    when = text(row, "expires_at")
    if not when:
        return "never"
    left = int((datetime.fromisoformat(when) - datetime.now(UTC)).total_seconds())
    if left <= 0:
        return "expired"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= 2 * length:
            return f"in {round(left / length)}{unit}"
    return f"in {left}s"


def _say_warnings(row: Object) -> None:
    for warning in texts(row, "warnings"):
        say(f"token {text(row, 'name')} {warning}")
