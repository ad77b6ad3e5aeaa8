"""`hawse admin keys`: the hub's signing keys."""

from __future__ import annotations

import click

from proxy.cli.admin.client import Object, Reach
from proxy.cli.admin.output import (
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
    """The keys by which agents and relays know this hub's tokens."""


@keys.command("list")
@json_option
@click.pass_obj
def list_keys(reach: Reach, /, as_json: bool) -> None:
    """List the key that signs, and those that verify. They do so until their tokens have ended."""
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
    """Print what a relay is given to trust (hub-keys.json), as of now.

    A relay that was given an older key needs this only when that key is not to be trusted any more.
    """
    click.echo(text(reach.client().get("keys"), "pins"))


@keys.command("rotate")
@yes_option
@json_option
@click.pass_obj
def rotate(reach: Reach, /, yes: bool, as_json: bool) -> None:
    """Let a new key sign from now on.

    Nothing is interrupted: the old key announces the new one to every relay, and verifies until the last
    token that it signed has ended. Where the old key may be in other hands, this is not enough: give each
    relay new manifests as well (hawse admin cluster key).
    """
    confirm("Let a new key sign every token from now on?", yes=yes)
    made = reach.client().post("keys")
    if as_json:
        print_json(made)
        return
    say(f"the hub signs with key {_signing(made)} from now on; relays hear of it from the key before it")
    for row in objects(made, "keys"):
        if row.get("state") == "retiring":
            say(f"key {text(row, 'kid')} still verifies until {text(row, 'retires_at')}, then it is gone")


def _signing(made: Object) -> str:
    return next((text(row, "kid") for row in objects(made, "keys") if row.get("state") == "signing"), "?")
