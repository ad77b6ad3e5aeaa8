"""Each module can be imported first, small programs load only their own packages, and no test module is a
library of others.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest

from tests.modules import PACKAGES, ROOT, modules, run

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


def test_a_blocked_import_fails() -> None:
    with pytest.raises(AssertionError, match="import of msgspec halted"):
        run(BLOCK_AND_IMPORT, json.dumps(HUBS_OWN), json.dumps(["audit.store"]))


def test_the_credential_command_starts_without_slow_packages() -> None:
    names = ["proxy.cli.main", "proxy.agent.token.credential"]
    run(BLOCK_AND_IMPORT, json.dumps(SLOW_TO_LOAD), json.dumps(names))


def imported_by(source: str) -> Iterator[str]:
    """The modules that a source may import, by their dotted names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "source",
    ["import tests.a.test_b", "from tests.a import test_b", "from tests.a.test_b import (\n    c,\n)"],
)
def test_each_form_of_an_import_is_seen(source: str) -> None:
    assert "tests.a.test_b" in imported_by(source)


def test_no_test_module_is_imported_by_another() -> None:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    test_modules = {name for path, name in names.items() if path.name.startswith("test_")}
    importers: dict[str, list[str]] = {}
    for path, importer in names.items():
        for imported in test_modules.intersection(imported_by(path.read_text())):
            importers.setdefault(imported, []).append(importer)
    # What two share belongs in tests/fakes, or in a module beside the tests of one folder.
    assert importers == {}
