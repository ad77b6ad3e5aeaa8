"""A command of `hawse admin` loads what it needs: most of its CPU time is that of its imports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = """
import sys
from proxy.cli.group import build_group
try:
    build_group()(sys.argv[1:])
except SystemExit:
    print(*sys.modules)
"""
# Each takes 10 to 30 ms of CPU.
HEAVY = {"cattrs", "cryptography", "yaml", "sqlalchemy", "msgspec", "trio"}


@pytest.mark.parametrize("command", ["agent lock robot", "cluster grant prod sre", "relay list"])
def test_a_command_loads_neither_the_whole_configuration_nor_other_commands(command: str) -> None:
    environment = {**os.environ, "HAWSE_HUB_DATA_DIR": "/nonexistent"}
    argv = [sys.executable, "-c", RUN, "admin", *command.split()]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    loaded = set(done.stdout.split())
    assert "proxy.cli.admin.api.client" in loaded
    assert "no hub has run" in done.stderr
    assert loaded & HEAVY == set()


def test_a_migration_without_the_driver_is_one_line() -> None:
    argv = "admin", "migrate", "--to", "postgresql://hawse@localhost/hawse"
    without = f"import sys; sys.modules['psycopg'] = None\n{RUN}"
    done = subprocess.run([sys.executable, "-c", without, *argv], capture_output=True, text=True)
    assert done.stderr == "hawse: --to needs the package psycopg: pip install 'psycopg[binary]'\n"
