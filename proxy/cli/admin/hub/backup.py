"""`hawse admin backup`, of a data folder or of a hub elsewhere, and `restore`, to a data folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from proxy.cli.admin.api.client import AdminClient, Reach
from proxy.cli.audit.local_events import record_local
from proxy.cli.errors import CommandError
from proxy.cli.output import say


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def backup(reach: Reach, /, file: Path) -> None:
    """Write the hub's store and secrets to FILE, a tar archive.

    The secrets are its signing keys, pepper and certificates: protect FILE (mode 0600) like the data folder.
    The hub may keep running. The audit trail is not included. With --hub or HAWSE_ADMIN_URL, the hub makes
    the backup and sends it; that takes a token with the role admin.
    """
    if reach.remote:
        client = reach.client()
        _download(client, file)
        said = client.url
    else:
        said = _write_here(reach.folder(), file)
    say(f"backed up {said} to {file}, which holds all secrets of the hub: protect it")


def _write_here(folder: Path, file: Path) -> str:
    """Back up a data folder of this machine; returns its name."""
    from proxy.hub.admin.data.backup import BackupError
    from proxy.hub.admin.data.backup import backup as write

    try:
        write(folder, file)
    except BackupError as error:
        raise CommandError(str(error)) from error
    record_local(folder, "backup", f"to {file.absolute()}")
    return str(folder)


def _download(client: AdminClient, file: Path) -> None:
    """Write the hub's backup to a new file, which appears once it is complete. Raises CommandError."""
    exists = f"{file} exists already: choose another name"
    if file.exists():
        # Before the secrets leave the hub.
        raise CommandError(exists)
    # Beside it, so that it can be linked. A file that is there is never replaced: it may be the only backup.
    part = file.with_name(f".{file.name}.{os.urandom(4).hex()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as unfinished:
            with client.stream("POST", "backup") as pieces:
                for piece in pieces:
                    unfinished.write(piece)
            unfinished.flush()
            os.fsync(unfinished.fileno())
        os.link(part, file)
    except FileExistsError as error:
        raise CommandError(exists) from error
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Move an existing hub's files aside, within the data folder.")
@click.pass_obj
def restore(reach: Reach, /, file: Path, overwrite: bool) -> None:
    """Restore the backup in FILE to the data folder. Stop the hub first.

    The whole backup is verified first; a damaged one changes nothing.
    """
    from proxy.hub.admin.data.backup import BackupError
    from proxy.hub.admin.data.restore import restore as put

    folder = reach.folder()
    try:
        done = put(folder, file, overwrite=overwrite)
    except BackupError as error:
        raise CommandError(str(error)) from error
    record_local(folder, "restore", f"the backup of {done.created}, from {file.absolute()}")
    # The store is from the backup's time, so credentials that were revoked since then work again.
    say(
        f"locks, revocations and removals since {done.created} are undone: repeat them, as listed by "
        f"hawse audit list{_same(reach)} --kind admin.action --since {shlex.quote(done.created)}"
    )
    say(f"restored the backup of {done.created} into {folder}; start the hub: {_start(reach)}")
    if done.replaced is not None:
        say(f"the former files are in {done.replaced}: they hold secrets, remove them when no longer needed")


def _start(reach: Reach) -> str:
    """Return the command that starts a hub with this data folder."""
    if reach.data_dir is not None:
        return f"HAWSE_HUB_DATA_DIR={shlex.quote(str(reach.data_dir))} hawse hub"
    return f"hawse hub{_same(reach)}"


def _same(reach: Reach) -> str:
    """Return the option that selects this data folder in other commands."""
    if reach.data_dir is not None:
        return f" --data-dir {shlex.quote(str(reach.data_dir))}"
    return f" --config {shlex.quote(str(reach.config_file))}" if reach.config_file is not None else ""
