"""`hawse admin database`: on the hub's machine, directly with the database.

No command needs a running hub: the hub may be unable to start, and all that the commands change is in the
database and the data folder.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.audit.local_events import record_local
from proxy.cli.errors import CommandError, ConfigurationFaults
from proxy.cli.output import Object, confirm, json_option, print_fields, say, text, yes_option
from proxy.process.plural import counted

if TYPE_CHECKING:
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.store.engines.postgres_address import PostgresAddress


@click.group()
def database() -> None:
    """Show, upgrade or accept the hub's database."""


@database.command()
@json_option
@click.pass_obj
def status(reach: Reach, /, as_json: bool) -> None:
    """Show the database: tables, size, rights, durability, clock.

    Changes nothing.
    """
    import attrs

    from proxy.hub.home.database_status import read_postgres_status, read_sqlite_status
    from proxy.hub.home.databases import noted_applied
    from proxy.hub.home.files.private_files import DataDirError
    from proxy.hub.store.engines.errors import StoreUnavailableError

    data, address = _find(reach)
    try:
        if address is None:
            found = read_sqlite_status(data.store_file)
        else:
            found = read_postgres_status(address, noted_applied(data))
    except (DataDirError, StoreUnavailableError) as error:
        raise CommandError(str(error)) from error
    fields = [
        ("engine", lambda row: f"{text(row, 'engine')} {text(row, 'server')}"),
        ("tables", _tables),
        ("directory", _directory),
        ("size", _size),
    ]
    if address is not None:
        fields += [("role", _role), ("trail", _trail), ("commits", _commits), ("clock", _clock)]
    print_fields(attrs.asdict(found), fields, as_json=as_json)


def _tables(row: Object) -> str:
    found = f"revision {text(row, 'revision')}"
    known = f"this version has {text(row, 'wanted')}"
    match row["tables"]:
        case "missing":
            return "none yet: hawse admin database upgrade, or a hub's start, makes them"
        case "older":
            return f"{found}, and {known}: hawse admin database upgrade, or a hub's start, migrates them"
        case "too new":
            return f"{found}, and {known}, which cannot use it: run the version that made it"
        case "newer":
            found = f"{found}, and {known}, which can use it"
    return f"{found} (usable from {text(row, 'oldest')} on)"


def _directory(row: Object) -> str:
    if row["version"] is None:
        return "-"
    shown = f"version {text(row, 'version')}"
    if row["lost"]:
        return (
            f"{shown}, without version {text(row, 'applied')} that this hub has applied: "
            "see hawse admin database accept --help"
        )
    return shown if row["applied"] is None else f"{shown}; this hub has applied {text(row, 'applied')}"


def _size(row: Object) -> str:
    size = _megabytes(row, "size_bytes")
    if row["agents"] is None:
        return size
    agents, clusters = row["agents"], row["clusters"]
    assert isinstance(agents, int)
    assert isinstance(clusters, int)
    return f"{counted(agents, 'agent')}, {counted(clusters, 'cluster')}, {size}"


def _trail(row: Object) -> str:
    if row["trail_bytes"] is None:
        return "none yet"
    events = "events not counted" if row["events"] is None else f"some {text(row, 'events')} events"
    return f"{events}, {_megabytes(row, 'trail_bytes')}, open epochs: {text(row, 'open_epochs')}"


def _megabytes(row: Object, key: str) -> str:
    size = row[key]
    assert isinstance(size, int)
    return f"{size / 1e6:.1f} MB"


def _role(row: Object) -> str:
    owner = "" if row["owner"] in (None, row["role"]) else f" (the tables are {text(row, 'owner')}'s)"
    if row["trail_bytes"] is None:
        return f"{text(row, 'role')}{owner}"
    if row["deletes_events"] is None:
        return f"{text(row, 'role')}{owner}, which cannot delete events"
    return (
        f"{text(row, 'role')}{owner}, which can delete events, since it {text(row, 'deletes_events')}: "
        "see hawse admin database upgrade --help"
    )


def _commits(row: Object) -> str:
    standby = text(row, "synchronous_standby_names")
    waits = f"for a standby of {standby}" if standby else "for no standby: a failover can lose the last ones"
    return f"synchronous_commit {text(row, 'synchronous_commit')}, {waits}"


def _clock(row: Object) -> str:
    error_s = row["clock_error_s"]
    assert isinstance(error_s, float)
    if abs(error_s) < 0.1:
        return "this machine's agrees with the database's"
    return f"this machine's is {abs(error_s):.1f} s {'ahead of' if error_s > 0 else 'behind'} the database's"


@database.command()
@click.option(
    "--owner",
    metavar="ROLE",
    help="Log in as this role, which owns the tables or the database, and give the role of database.url the "
    "rights that a hub needs, without that of deleting events.",
)
@click.option(
    "--owner-password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The password of that role, in one line. Without it, that of PGPASSFILE, or none.",
)
@click.pass_obj
def upgrade(reach: Reach, /, owner: str | None, owner_password_file: Path | None) -> None:
    """Make the tables in PostgreSQL, or bring them to this version.

    One transaction: all of it or nothing. A hub's start does the same if its role may. With --owner, a role
    that cannot delete events is enough for the hub.
    """
    from proxy.hub.store.engines.errors import StoreUnavailableError

    if owner is None and owner_password_file is not None:
        raise click.UsageError("--owner-password-file goes with --owner only")
    _, address = _find(reach)
    if address is None:
        raise CommandError("database.url names no database, and a hub's start migrates a file: start the hub")
    import attrs

    from proxy.hub.store.engines.postgres_upgrade import role_of
    from proxy.hub.store.engines.postgres_upgrade import upgrade as upgrade_tables

    hubs_role = role_of(address)
    if owner is not None:
        if owner == hubs_role:
            raise CommandError(
                f"--owner names the role of database.url, {owner}: "
                "leave it out, or name another role in either"
            )
        address = attrs.evolve(address, role=owner, password_file=owner_password_file)
    try:
        done = upgrade_tables(address, None if owner is None else hubs_role)
    except StoreUnavailableError as error:
        message = str(error)
        if owner is not None:
            # The owner's password does not belong into the hub's file.
            message = message.replace("database.password_file", "--owner-password-file")
        raise CommandError(message) from error
    match done.before:
        case None:
            say(f"made the tables, at revision {done.after}")
        case done.after:
            say(f"the tables are at revision {done.after} already")
        case _:
            say(f"brought the tables from revision {done.before} to {done.after}")
    if owner is not None:
        say(f"the role {hubs_role} has the rights of a hub, and cannot delete events")


@database.command()
@yes_option
@click.pass_obj
def accept(reach: Reach, /, yes: bool) -> None:
    """Accept that the database has lost changes.

    A failover or a restored backup loses them. Until then the hub refuses all calls, since a lost change may
    have been a revocation. First repeat what is lost: `hawse admin` works meanwhile. A running hub goes on
    within a second.
    """
    from proxy.hub.home.databases import noted_applied
    from proxy.hub.home.files.private_files import DataDirError
    from proxy.hub.store.engines.errors import StoreUnavailableError
    from proxy.hub.store.store import Store
    from proxy.hub.store.versions.lineage import Loss

    data, address = _find(reach)
    if address is None:
        raise CommandError("a hub's file of SQLite loses no changes while the hub uses it: nothing to accept")
    try:
        applied = noted_applied(data)
        if applied is None:
            raise CommandError(
                f"no hub has applied a version with the data folder {data.path}: nothing to accept"
            )
        store = Store(address, org="main", clock=time.time, shared=True)
        try:
            if store.keeps(applied):
                held = f"the database has all that this hub has applied (version {applied.number})"
                say(f"{held}: nothing to accept")
                return
            loss = Loss(applied.number, store.version().number)
            confirm(
                f"{loss}. A lock or revocation after that is undone, unless it was repeated. Accept it?",
                yes=yes,
            )
            # Before the change, as with the intent of a call.
            record_local(data.path, "accept", f"accepted: {loss}", resource="database")
            store.accept_loss(applied)
        finally:
            store.close()
    except (DataDirError, StoreUnavailableError) as error:
        raise CommandError(str(error)) from error
    say("accepted: the hub goes on within a second, or starts as usual")


def _find(reach: Reach) -> tuple[DataDir, PostgresAddress | None]:
    """The hub's data folder, and its database if that is one of PostgreSQL; raises CommandError."""
    from proxy.hub.home.config import load
    from proxy.hub.home.databases import noted_address
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.files.private_files import DataDirError
    from proxy.process.config import ConfigError

    data = DataDir(reach.folder())
    try:
        if reach.data_dir is None:
            stated = load(reach.config_file).database.address
            if stated is not None:
                return data, stated
        return data, noted_address(data)
    except ConfigError as error:
        raise ConfigurationFaults("hub", error.faults) from error
    except DataDirError as error:
        raise CommandError(str(error)) from error
