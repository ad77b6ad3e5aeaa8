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
    from proxy.hub.admin.data.migrate import Contents

# The messages of a hub's start name the keys of its configuration.
_OPTIONS = {"database.url": "--to", "database.password_file": "--password-file"}


@click.command()
@click.option(
    "--to",
    "url",
    required=True,
    metavar="URL",
    help="The hub's new database.url, without a password: postgresql://ROLE@HOST/DATABASE?sslmode=verify-full",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file with the role's password, in one line. Without it, libpq reads PGPASSFILE.",
)
@click.option(
    "--seal-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file with the key that seals the signing keys and the pepper in PostgreSQL. Made if it is "
    "missing. Default: seal.key in the data folder.",
)
@click.option("--check", is_flag=True, help="Only check both sides, and print what would be copied.")
@json_option
@click.pass_obj
def migrate(
    reach: Reach,
    /,
    url: str,
    password_file: Path | None,
    seal_file: Path | None,
    check: bool,
    as_json: bool,
) -> None:
    """Move a hub from SQLite into an empty database of PostgreSQL. Stop the hub first.

    \b
    hawse admin migrate --to 'postgresql://hawse@db.example/hawse?sslmode=verify-full' --check
    hawse admin migrate --to 'postgresql://hawse@db.example/hawse?sslmode=verify-full'

    Copies teams, agents and their credentials, clusters, policies, admin tokens, signing keys, the pepper and
    the audit trail, compares both sides, and prints the section [database] of the hub's configuration. Agents
    and relays need no change. An event keeps its number. If it is interrupted, run it again.

    The data folder keeps its files, but no hub starts on them any more.
    """
    from proxy.hub.store.engines.postgres_address import PostgresAddress, fault_of_postgres_url

    # Before the modules that need the driver.
    fault = fault_of_postgres_url(url)
    if fault is not None:
        raise CommandError(_with_options(f"--to {fault}"))
    from proxy.hub.admin.data.migrate import MigrateError, Target, look
    from proxy.hub.admin.data.migrate import migrate as move
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.files.seal_file import SEAL_FILE, SealFile

    # Absolute, since a hub starts in another working directory.
    files = {"password_file": password_file, "seal_file": seal_file}
    stated = {key: file.absolute() for key, file in files.items() if file is not None}
    settings = {"url": url, **{key: str(file) for key, file in stated.items()}}
    data = DataDir(reach.folder())
    target = Target(
        PostgresAddress(url, stated.get("password_file")),
        SealFile(stated.get("seal_file") or data.path / SEAL_FILE),
    )
    began_s = time.monotonic()
    try:
        if check:
            _print_check(data.path, look(data, target), settings, as_json=as_json)
            return
        with progress(logged=True) as show:
            found = move(data, target, show)
    except MigrateError as error:
        raise CommandError(_with_options(str(error))) from error
    took_s = time.monotonic() - began_s
    record_local(data.path, "migrate", f"{found.events} events, sha256={found.sha256}")
    _print_move(data.path, found, settings, took_s, as_json=as_json)


def _print_check(folder: Path, found: Contents, settings: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json(_document(found, settings, moved=False))
        return
    rows: list[Object] = [{"what": name, "rows": count} for name, count in found.rows.items()]
    rows.append({"what": "events", "rows": found.events})
    print_table(rows, [("COPIED", field("what")), ("ROWS", field("rows"))], as_json=False, empty="")
    say(f"{folder} can be moved: stop the hub, and run this without --check")


def _print_move(
    folder: Path, found: Contents, settings: dict[str, str], took_s: float, *, as_json: bool
) -> None:
    if as_json:
        more: Object = {"sha256": found.sha256, "seconds": round(took_s, 3)}
        print_json({**_document(found, settings, moved=True), **more})
        return
    rows = counted(sum(found.rows.values()), "row")
    say(
        f"moved {folder} to PostgreSQL: {rows} and {counted(found.events, 'event')} in {took_s:.1f} s, "
        f"{found.events / took_s:.0f} events a second"
    )
    say("put this into the hub's configuration, and start the hub:")
    click.echo("[database]")
    for key, value in settings.items():
        # A JSON string of printable characters is a basic string of TOML.
        click.echo(f"{key} = {json.dumps(value, ensure_ascii=False)}")


def _document(found: Contents, settings: dict[str, str], *, moved: bool) -> Object:
    rows: dict[str, Json] = {**found.rows}
    return {"moved": moved, "rows": rows, "events": found.events, "database": {**settings}}


def _with_options(message: str) -> str:
    """Name the options of this command in a message that names the keys of the configuration."""
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message
