"""`hawse admin hub`: facts about the hub that agents and relays need."""

from __future__ import annotations

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.errors import CommandError
from proxy.cli.output import field, json_option, print_fields, text


@click.group()
def hub() -> None:
    """Show the hub's identity and its CA."""


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
            ("certificate", lambda row: "from its own CA" if text(row, "ca_pem") else "configured"),
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
            "this hub's certificate is configured, so its CA is not known here: ask the certificate's issuer"
        )
    click.echo(ca, nl=False)
