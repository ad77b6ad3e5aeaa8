"""`hawse admin hub`: facts about the hub that agents and relays need."""

from __future__ import annotations

from collections.abc import Iterator

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.errors import AnswerIsNo, CommandError
from proxy.cli.output import (
    Object,
    field,
    json_option,
    listed,
    objects,
    print_fields,
    print_table,
    since,
    text,
    texts,
)
from proxy.process.plural import counted


@click.group()
def hub() -> None:
    """Show the hub, its CA, and the hubs beside it."""


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


@hub.command("list")
@click.option(
    "--settled",
    type=click.IntRange(min=1),
    metavar="N",
    help="Exit 3 unless N hubs serve, all others have ended, all reach one another, and all have applied the "
    "newest change.",
)
@json_option
@click.pass_obj
def list_hubs(reach: Reach, /, settled: int | None, as_json: bool) -> None:
    """List the hubs on this hub's database.

    STATE is `serving`, `leaving` while a hub drains, and `silent` once its lease is no longer renewed: the
    others then neither dial it nor count its tunnels. In a rolling restart, wait for `--settled N` before the
    next hub.
    """
    rows = objects(reach.client().get("hubs"), "hubs")
    newest = max((_number(row, "applied") for row in rows), default=0)
    print_table(
        rows,
        [
            ("HUB", field("hub")),
            ("STATE", _state),
            ("TUNNELS", field("tunnels")),
            ("CALLS", field("calls")),
            ("APPLIED", lambda row: _applied(row, newest)),
            ("LEASE", _lease),
            ("CANNOT REACH", listed("unreachable")),
            ("STARTED", since("started_at")),
            ("VERSION", field("version")),
            ("ADDRESS", field("address")),
        ],
        as_json=as_json,
        empty="this hub runs alone, on SQLite: several hubs need a database of PostgreSQL",
        spare=("STARTED", "VERSION", "LEASE", "APPLIED", "ADDRESS"),
    )
    if settled is not None and (faults := [*_unsettled(rows, settled, newest)]):
        raise AnswerIsNo("\n".join(faults))


def _unsettled(rows: list[Object], number: int, newest: float) -> Iterator[str]:
    """Yield why the hubs are not settled, a line each."""
    serving = 0
    for row in rows:
        hub, state = text(row, "hub"), _state(row)
        serving += state == "serving"
        if state != "serving":
            yield f"hub {hub} is {state}"
        elif (applied := _applied(row, newest)) != str(newest):
            yield f"hub {hub} has applied version {applied}"
        if out_of_reach := texts(row, "unreachable"):
            yield f"hub {hub} cannot reach {', '.join(out_of_reach)}"
    if serving != number:
        yield f"{serving} of {counted(number, 'hub')} {'serves' if serving == 1 else 'serve'}"


def _state(row: Object) -> str:
    return text(row, "state") if row.get("living") else "silent"


def _applied(row: Object, newest: float) -> str:
    behind = newest - _number(row, "applied")
    return text(row, "applied") + (f", {behind} behind" if behind else "")


def _lease(row: Object) -> str:
    """When the lease was renewed; of a silent hub, when its last call ends at the latest."""
    if not row.get("living"):
        return f"its calls end within {_number(row, 'ends_in_s'):.0f} s"
    return f"renewed {_number(row, 'renewed_s_ago'):.1f} s ago"


def _number(row: Object, key: str) -> float:
    value = row.get(key)
    return value if isinstance(value, int | float) else 0
