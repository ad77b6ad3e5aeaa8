"""`hawse admin migrate`: on the hub's machine, from its data folder into PostgreSQL."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.audit.local_events import record_local
from proxy.cli.errors import CommandError
from proxy.cli.output import Json, Object, field, json_option, print_json, print_table, say
from proxy.cli.progress import progress
from proxy.process.plural import counted

if TYPE_CHECKING:
    from proxy.hub.admin.migrate import Contents
    from proxy.hub.store.engines.postgres_address import PostgresAddress

# The messages of a start name the keys of the hub's configuration.
_OPTIONS = {"database.url": "--to", "database.password_file": "--password-file"}


@click.command()
@click.option(
    "--to",
    "url",
    required=True,
    metavar="URL",
    help="postgresql://ROLE@HOST/DATABASE?sslmode=verify-full, without a password: the later database.url.",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file with the role's password, in one line. Without it, libpq reads PGPASSFILE.",
)
@click.option(
    "--check", is_flag=True, help="Only check both sides, and print what would be copied. The hub may run."
)
@json_option
@click.pass_obj
def migrate(reach: Reach, /, url: str, password_file: Path | None, check: bool, as_json: bool) -> None:
    """Move a hub from SQLite into an empty database of PostgreSQL. Stop the hub first.

    \b
    hawse admin migrate --to 'postgresql://hawse@db.example/hawse?sslmode=verify-full' --check
    hawse admin migrate --to 'postgresql://hawse@db.example/hawse?sslmode=verify-full'

    Copies teams, agents and their credentials, clusters, policies, admin tokens and the audit trail, compares
    both sides, and prints the [database] section for the hub's configuration. Agents and relays go on without
    a change. An event keeps its number. If it is interrupted, run it again.

    The data folder keeps its SQLite files, but no hub starts on them any more.
    """
    from proxy.hub.admin.migrate import MigrateError, look
    from proxy.hub.admin.migrate import migrate as move
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.store.engines.postgres_address import PostgresAddress, fault_of_postgres_url

    fault = fault_of_postgres_url(url)
    if fault is not None:
        raise CommandError(_with_options(f"--to {fault}"))
    # The configuration and the note in the folder are read with other working directories.
    address = PostgresAddress(url, None if password_file is None else password_file.absolute())
    data = DataDir(reach.folder())
    began_s = time.monotonic()
    try:
        if check:
            found = look(data, address)
        else:
            with progress(logged=True) as show:
                found = move(data, address, show)
    except MigrateError as error:
        raise CommandError(_with_options(str(error))) from error
    took_s = time.monotonic() - began_s
    if check:
        _print_check(data.path, found, address, as_json=as_json)
        return
    record_local(data.path, "migrate", f"{found.events} events, sha256={found.sha256}")
    if as_json:
        print_json(
            {**_document(found, address, moved=True), "sha256": found.sha256, "seconds": round(took_s, 3)}
        )
        return
    rows = sum(found.rows.values())
    say(
        f"moved {data.path} to PostgreSQL: {counted(rows, 'row')} and {counted(found.events, 'event')} in "
        f"{took_s:.1f} s, {found.events / took_s:.0f} events a second"
    )
    say("put this into the hub's configuration, and start the hub:")
    click.echo("[database]")
    for key, value in _settings(address).items():
        # A JSON string of printable characters is a basic string of TOML.
        click.echo(f"{key} = {json.dumps(value, ensure_ascii=False)}")


def _print_check(folder: Path, found: Contents, address: PostgresAddress, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(found, address, moved=False))
        return
    rows: list[Object] = [{"what": name, "rows": count} for name, count in found.rows.items()]
    rows.append({"what": "events", "rows": found.events})
    print_table(rows, [("COPIED", field("what")), ("ROWS", field("rows"))], as_json=False, empty="")
    say(f"{folder} can be moved: stop the hub, and run this without --check")


def _document(found: Contents, address: PostgresAddress, *, moved: bool) -> dict[str, Json]:
    settings = _settings(address)
    return {"moved": moved, "rows": {**found.rows}, "events": found.events, "database": {**settings}}


def _settings(address: PostgresAddress) -> dict[str, str]:
    """The section `database` of the hub's configuration."""
    file = address.password_file
    return {"url": address.url, **({} if file is None else {"password_file": str(file)})}


def _with_options(message: str) -> str:
    """Name the options of this command in a message that names the keys of the configuration."""
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message
