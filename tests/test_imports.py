"""Each module can be imported first, and what must stay small loads nothing of what is not its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("hawse", "tunnel", "auth", "audit", "proxy", "sandbox")
HUBS_OWN = ("sqlalchemy", "alembic", "starlette", "prometheus_client", "msgspec", "re2")
# kubectl waits for the plugin at each start; each of these would cost it a multiple of all the rest.
SLOW_TO_LOAD = ("click", "trio", "cryptography", "ssl")

# Imports what all of them share once, and forks for each module: none finds another of ours loaded already,
# so that a circle between two modules shows from both its ends.
IMPORT_EACH = """
import importlib, os, sys, traceback
for shared in ("alembic.command", "click", "cryptography.x509", "h11", "jwt", "sqlalchemy",
               "starlette.routing", "trio", "trio_websocket", "yaml"):
    importlib.import_module(shared)
failed = 0
for name in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        try:
            importlib.import_module(name)
        except BaseException:
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    failed += os.waitpid(pid, 0)[1] != 0
sys.exit(failed != 0)
"""

BLOCK_AND_IMPORT = """
import importlib, json, sys
blocked, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name in blocked:
    sys.modules[name] = None
for name in names:
    importlib.import_module(name)
"""


def modules() -> list[str]:
    """Every module of ours by its dotted name."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            # A migration is loaded by Alembic from its file, within a context of its own.
            if "migrations" not in parts:
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def run(script: str, *args: str) -> None:
    """Run a script in a fresh interpreter, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# A dozen seconds of a core, which it may have to share.
@pytest.mark.timeout(240)
def test_each_module_can_be_the_first() -> None:
    names = modules()
    assert {"tunnel", "auth.tokens", "audit.store", "proxy.hub.serve", "sandbox.__main__"} <= set(names)
    run(IMPORT_EACH, *names)


def test_the_relay_and_the_credential_command_need_nothing_of_the_hub() -> None:
    names = [name for name in modules() if name.startswith(("proxy.relay", "proxy.agent", "tunnel", "auth"))]
    names += ["proxy.cli.main", "proxy.cli.relay", "proxy.cli.agent.login", "proxy.cli.agent.kubeconfig"]
    names += ["proxy.cli.agent.credential"]
    run(BLOCK_AND_IMPORT, json.dumps(HUBS_OWN), json.dumps(names))


def test_an_administrators_command_starts_without_the_hubs_packages() -> None:
    # What its commands import inside stands here by name, but for backup and restore, which open the store.
    names = [
        "proxy.cli.admin",
        "proxy.cli.admin.cluster.relay_files",
        "proxy.hub.home.config",
        "proxy.hub.home.datadir",
    ]
    run(BLOCK_AND_IMPORT, json.dumps(HUBS_OWN), json.dumps(names))


def test_no_process_is_started_by_a_name_that_another_distribution_may_have() -> None:
    by_package = re.compile(r"""["']-m["'],\s*["'](?:tunnel|auth|audit|proxy)\b""")
    for folder in (*PACKAGES, "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert by_package.search(path.read_text()) is None, f"{path}: start `-m hawse`"


def test_what_is_blocked_is_missed() -> None:
    with pytest.raises(AssertionError, match="import of msgspec halted"):
        run(BLOCK_AND_IMPORT, json.dumps(HUBS_OWN), json.dumps(["audit.store"]))


def test_the_credential_command_starts_without_what_is_slow_to_load() -> None:
    names = ["proxy.cli.main", "proxy.agent.token.credential"]
    run(BLOCK_AND_IMPORT, json.dumps(SLOW_TO_LOAD), json.dumps(names))
