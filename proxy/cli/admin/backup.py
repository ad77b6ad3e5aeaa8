"""`hawse admin backup` and `restore`: on the hub's machine, straight from and to its data folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from proxy.cli.admin.client import Reach
from proxy.cli.admin.output import say
from proxy.cli.errors import CommandError
from proxy.cli.trail import record_local


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def backup(reach: Reach, /, file: Path) -> None:
    """Write the hub's store and secrets into FILE, a tar.

    The secrets are its signing keys, pepper and certificates: keep FILE (mode 0600) as you keep the data
    folder. The hub may run meanwhile. The audit trail is not in it.
    """
    from proxy.hub.admin.backup import BackupError
    from proxy.hub.admin.backup import backup as write

    folder = reach.folder()
    try:
        write(folder, file)
    except BackupError as error:
        raise CommandError(str(error)) from error
    record_local(folder, "backup", f"to {file.absolute()}")
    say(f"backed up {folder} to {file}; it holds every secret of the hub")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Move a hub that is there aside, inside the data folder.")
@click.pass_obj
def restore(reach: Reach, /, file: Path, overwrite: bool) -> None:
    """Put the backup in FILE into the data folder. The hub must not run.

    The backup is proved as a whole first; a fault in it leaves the folder as it was.
    """
    from proxy.hub.admin.backup import BackupError
    from proxy.hub.admin.backup import restore as put

    folder = reach.folder()
    try:
        done = put(folder, file, overwrite=overwrite)
    except BackupError as error:
        raise CommandError(str(error)) from error
    record_local(folder, "restore", f"the backup of {done.created}, from {file.absolute()}")
    # The store is of that time: who was kept out since then has a key that is good again.
    say(
        f"who was locked, revoked or removed since {done.created} may act again, until it is done once more: "
        f"hawse audit list{_same(reach)} --kind admin.action --since {shlex.quote(done.created)}"
    )
    say(f"restored the backup of {done.created} into {folder}; start the hub: {_start(reach)}")
    if done.replaced is not None:
        say(f"what was there is in {done.replaced}: remove it when it is not needed, it holds secrets")


def _start(reach: Reach) -> str:
    """The command that starts the hub of the folder that was meant."""
    if reach.data_dir is not None:
        return f"HAWSE_HUB_DATA_DIR={shlex.quote(str(reach.data_dir))} hawse hub"
    return f"hawse hub{_same(reach)}"


def _same(reach: Reach) -> str:
    """The option that names the same folder to another command."""
    if reach.data_dir is not None:
        return f" --data-dir {shlex.quote(str(reach.data_dir))}"
    return f" --config {shlex.quote(str(reach.config_file))}" if reach.config_file is not None else ""
