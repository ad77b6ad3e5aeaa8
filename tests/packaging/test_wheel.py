"""The wheel, installed beside a package that has `auth`, `audit`, `proxy` and `tunnel` at the top level."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.packaging.installed import ROOT, build, image_packages, make_environment
from tests.packaging.neighbour import NAMES, neighbour
from tests.packaging.running import run_hub_and_agent

# It starts a dozen processes that must compile their imports.
pytestmark = pytest.mark.timeout(180)
VERSION = version("hawse")
HAWSE = ["hawse", f"hawse-{VERSION}.dist-info"]
NEIGHBOUR = [*NAMES, "neighbour-1.0.dist-info"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def packages() -> list[str]:
    return image_packages("hub")


def test_it_puts_one_folder_into_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {*HAWSE, f"hawse-{VERSION}.data"}
    assert {name.split("/")[1] for name in names if name.startswith("hawse/")} == {
        *("__init__.py", "__main__.py"),
        *NAMES,
    }
    # uv and pipx put these two into the user's PATH.
    read_entry = zipfile.ZipFile(wheel).read(f"{HAWSE[1]}/entry_points.txt").decode()
    assert read_entry == "[console_scripts]\nhawse = hawse.__main__:main\n"
    # Files that are read, not imported.
    assert {
        "hawse/auth/policy/policies/guard.yaml",
        "hawse/proxy/hub/store/migrations/env.py",
        f"hawse-{VERSION}.data/scripts/hawse-credential",
    } <= set(names)
    console = ROOT / "proxy/console"
    read = [*(console / "templates").iterdir(), *(console / "static").iterdir()]
    assert {"base.html", "console.css", "console.js"} <= {path.name for path in read}
    assert {f"hawse/{path.relative_to(ROOT)}" for path in read} <= set(names)


@pytest.mark.parametrize("first", ["hawse", pytest.param("neighbour", marks=pytest.mark.long)])
def test_it_runs_hub_and_agent_beside_foreign_packages_of_the_same_names(
    wheel: Path, packages: list[str], tmp_path: Path, first: str
) -> None:
    environment = make_environment(tmp_path / "environment", packages)
    wheels = {"hawse": wheel, "neighbour": neighbour(tmp_path)}
    second = "neighbour" if first == "hawse" else "hawse"
    environment.install(wheels[first])
    environment.install(wheels[second])
    assert environment.top_level() == {*HAWSE, *NEIGHBOUR}
    assert (environment.damaged("hawse"), environment.damaged("neighbour")) == ([], [])

    run_hub_and_agent(environment, tmp_path)

    # Uninstalling either leaves the other complete.
    environment.pip("uninstall", "--yes", first)
    assert environment.damaged(second) == []
    environment.pip("uninstall", "--yes", second)
    assert environment.top_level() == set()


@pytest.mark.parametrize("program", [["hawse"], [sys.executable, "-m", "hawse"]], ids=["script", "module"])
def test_a_checkout_runs_in_a_folder_with_packages_of_those_names(program: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(neighbour(tmp_path)) as archive:
        archive.extractall(tmp_path)
    for folder in (tmp_path, ROOT):
        done = subprocess.run([*program, "--version"], cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{VERSION}\n"), done.stderr
