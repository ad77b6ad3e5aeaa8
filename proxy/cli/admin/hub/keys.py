"""`hawse admin keys`: the hub's signing keys."""

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
    text,
    yes_option,
)


@click.group()
def keys() -> None:
    """Manage the keys that sign the hub's tokens."""


@keys.command("list")
@json_option
@click.pass_obj
def list_keys(reach: Reach, /, as_json: bool) -> None:
    """List the signing key, and older keys that still verify tokens."""
    listed = objects(reach.client().get("keys"), "keys")
    columns = [
        ("KEY", field("kid")),
        ("STATE", field("state")),
        ("UNTIL", field("retires_at")),
    ]
    print_table(listed, columns, as_json=as_json, empty="this hub has no signing key")


@keys.command("pins")
@click.pass_obj
def print_pins(reach: Reach, /) -> None:
    """Print the keys that a relay pins (hub-keys.json), as of now.

    A relay with an older file needs this only if a key in that file is no longer trusted.
    """
    click.echo(text(reach.client().get("keys"), "pins"))


@keys.command("rotate")
@yes_option
@json_option
@click.pass_obj
def rotate(reach: Reach, /, yes: bool, as_json: bool) -> None:
    """Replace the signing key.

    Nothing is interrupted: the old key announces the new one to every relay, and verifies until the last
    token that it signed has expired. If the old key may have leaked, this is not enough: also give each relay
    new manifests (hawse admin cluster key).
    """
    confirm("Sign every token with a new key from now on?", yes=yes)
    made = reach.client().post("keys")
    if as_json:
        print_json(made)
        return
    say(f"the hub now signs with key {_signing(made)}; the previous key announces it to the relays")
    for row in objects(made, "keys"):
        if row.get("state") == "retiring":
            say(f"key {text(row, 'kid')} still verifies until {text(row, 'retires_at')}, then it is removed")


def _signing(made: Object) -> str:
    return next((text(row, "kid") for row in objects(made, "keys") if row.get("state") == "signing"), "?")
