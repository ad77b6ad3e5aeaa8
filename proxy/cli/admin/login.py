"""`hawse admin login`, `logins` and `logout`: hubs that an operator names, to reach them from elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from proxy.cli.admin.api.client import certificates, check_token, client_of, is_https
from proxy.cli.admin.api.logins import NAME, AdminLogin, load_logins, logins_file, remove_login, save_login
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, field, json_option, print_table, say, text

# An admin token has 60.
TOKEN_CHARACTERS_MAX = 4096


@click.command()
@click.argument("name")
@click.option("--url", required=True, metavar="URL", help="The hub's admin listener: https://host:8444.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The CA of the hub's certificate, unless that is public.",
)
def login(*, name: str, url: str, ca: Path | None) -> None:
    """Give a hub a NAME, and store an admin token for it.

    `hawse admin --hub NAME` and `hawse audit --hub NAME` then use it. The token is read from standard input,
    or prompted for; on the hub, `hawse admin token add` makes one. It is never an argument, since other users
    of this machine can read command lines.
    """
    if NAME.fullmatch(name) is None:
        raise CommandError(f"{name!a} is not a name: use a-z, 0-9 and -, at most 63 characters")
    url = url.rstrip("/")
    if not is_https(url):
        raise CommandError("--url must be https://host:port")
    made = AdminLogin(url, _token(), None if ca is None else certificates(ca, "--ca"))
    # Tried first, so that a wrong token or URL is not found only at the next command.
    hub = client_of(made, "--ca").get("hub")
    replaced = save_login(os.environ, name, made)
    org, version = text(hub, "org"), text(hub, "version")
    say(f"logged in to {name} at {url}: {org}, hawse {version}; the token is in {logins_file(os.environ)}")
    if replaced:
        say(f"it replaces the former login {name}")
    say(f"to use it: hawse admin --hub {name} COMMAND, hawse audit list --hub {name}")


@click.command()
@json_option
def logins(*, as_json: bool) -> None:
    """List the hubs with a name, from this user's logins."""
    rows: list[Object] = [
        {"name": name, "url": each.url, "ca": "its own" if each.ca_pem else "public"}
        for name, each in sorted(load_logins(os.environ).items())
    ]
    columns = [("HUB", field("name")), ("URL", field("url")), ("CA", field("ca"))]
    print_table(rows, columns, as_json=as_json, empty="no logins: hawse admin login NAME --url URL adds one")


@click.command()
@click.argument("name")
def logout(*, name: str) -> None:
    """Remove the login NAME from this machine. Its token stays valid until `hawse admin token remove`."""
    gone = remove_login(os.environ, name)
    say(f"removed the login {name}; its token for {gone.url} is valid until it is removed there")


def _token() -> str:
    if sys.stdin.isatty():
        prompted = click.prompt("Admin token", hide_input=True)
        assert isinstance(prompted, str)
        found = prompted.strip()
    else:
        found = sys.stdin.readline(TOKEN_CHARACTERS_MAX).strip()
    if not found:
        raise CommandError("no token: pipe it to standard input, or run this at a terminal")
    check_token(found, "the input")
    return found
