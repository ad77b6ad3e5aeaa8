"""`hawse admin hub`: what others must know to trust this hub."""

from __future__ import annotations

import click

from proxy.cli.admin.client import Reach
from proxy.cli.admin.output import field, json_option, print_fields, text
from proxy.cli.errors import CommandError


@click.group()
def hub() -> None:
    """The hub itself."""


@hub.command("show")
@json_option
@click.pass_obj
def show_hub(reach: Reach, /, as_json: bool) -> None:
    """Show the hub's organisation, public URL, version and signing key."""
    found = reach.client().get("hub")
    print_fields(
        found,
        [
            ("org", field("org")),
            ("url", field("public_url")),
            ("version", field("version")),
            ("signing key", field("signing_key")),
            ("certificate", lambda row: "of a CA of its own" if text(row, "ca_pem") else "configured"),
        ],
        as_json=as_json,
    )


@hub.command("ca")
@click.pass_obj
def print_ca(reach: Reach, /) -> None:
    """Print the CA of the hub's certificate, for agents and relays."""
    ca = text(reach.client().get("hub"), "ca_pem")
    if not ca:
        raise CommandError(
            "this hub has a certificate by configuration: ask whoever made it for its CA, if any is needed"
        )
    click.echo(ca, nl=False)
