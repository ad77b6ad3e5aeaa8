"""Each module can be imported first, small programs load only their own packages, and no test module is a
library of others.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.structure.imports import Graph, cycles, import_graph
from benchmarks.structure.sources import read_sources
from tests.modules import PACKAGES, ROOT, modules, run

HUBS_OWN = (
    *("sqlalchemy", "alembic", "starlette", "prometheus_client", "msgspec", "re2"),
    *("jinja2", "markupsafe"),
)
# kubectl waits for the plugin at each start; each of these would cost it a multiple of all the rest.
SLOW_TO_LOAD = ("click", "trio", "cryptography", "ssl")

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

BLOCK_AND_IMPORT = """
import importlib, json, sys
blocked, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name in blocked:
    sys.modules[name] = None
for name in names:
    importlib.import_module(name)
"""


def graph_with_packages(root: Path) -> Graph:
    """What an import of each file loads: the imported modules, and the packages that these are in."""
    sources = read_sources(root, PACKAGES)
    plain = import_graph(sources)
    return {
        path: targets.union(*(_packages(each, path, plain) for each in targets))
        for path, targets in plain.items()
    }


def _packages(imported: str, importer: str, known: Graph) -> set[str]:
    """The packages of an imported file that are not the importer's own, which run before it."""
    packages = {(folder / "__init__.py").as_posix() for folder in Path(imported).parents}
    own = {(folder / "__init__.py").as_posix() for folder in Path(importer).parents}
    return (packages - own) & known.keys()


def test_each_module_can_be_the_first() -> None:
    """Without a cycle, the order of imports is of no account. An import in a function counts as one."""
    names = modules()
    assert {"tunnel", "auth.tokens", "audit.store", "proxy.hub.serve", "sandbox.__main__"} <= set(names)
    run(IMPORT_ALL, *names)
    assert cycles(graph_with_packages(ROOT)) == []


def test_a_cycle_by_way_of_a_package_is_found(tmp_path: Path) -> None:
    files = {
        "auth/__init__.py": "from proxy.other import y",
        "auth/tokens.py": "",
        "proxy/__init__.py": "",
        "proxy/other.py": "from proxy.first import x",
        "proxy/first.py": "from auth.tokens import z",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert cycles(graph_with_packages(tmp_path)) == [("auth/__init__.py", "proxy/first.py", "proxy/other.py")]


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
