"""The wheel, installed beside a package that has `auth`, `audit`, `proxy` and `tunnel` at the top level."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from sandbox.demo.processes import Daemons, free_port
from tests.packaging.installed import ROOT, Environment, build, image_packages, make_environment
from tests.packaging.neighbour import NAMES, neighbour

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


def run_hub_and_agent(environment: Environment, folder: Path) -> None:
    """Start a hub, enrol an agent, log it in, and get a credential as kubectl does."""
    port, admin_port = free_port(), free_port()
    url = f"https://127.0.0.1:{port}"
    config = folder / "hub.toml"
    config.write_text(
        f'org = "acme"\npublic_url = "{url}"\nlisten = "127.0.0.1:{port}"\ndata_dir = "{folder / "hub"}"\n'
        f'[admin]\nlisten = "127.0.0.1:{admin_port}"\n'
    )
    home = folder / "home"
    home.mkdir()
    variables = {
        "HAWSE_HUB_CONFIG": str(config),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }

    def run(*argv: str, **more: str) -> str:
        # In a folder that also has packages of those names.
        done = environment.run(*argv, variables={**variables, **more}, cwd=environment.site)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with Daemons(folder) as daemons:
        python = str(environment.programs / "python")
        hub = daemons.start("hub", [python, "-m", "hawse", "hub"], {**environment.variables, **variables})
        hub.wait_for("hub is ready")
        run("hawse", "admin", "team", "add", "platform")
        cluster = ("cluster", "add", "prod", "--team", "platform", "--output-dir", str(folder / "relay"))
        run(python, "-m", "hawse", "admin", *cluster)
        add = ("agent", "add", "builder", "--team", "platform", "--owner", "you@example.com")
        made = json.loads(run("hawse", "admin", *add, "--credential", "code", "--json"))
        ca = str(folder / "hub" / "tls" / "ca.pem")
        run("hawse", "login", "--hub", url, "--ca", ca, "--code", HAWSE_ENROLMENT_CODE=made["code"])
        write = (python, "-m", "hawse", "kubeconfig", "--output", str(home / "kubeconfig"))
        run(*write)
        assert plugin(home / "kubeconfig") == "hawse-credential"
        # If the PATH does not lead to the environment, the kubeconfig has the plugin's path.
        run(*write, PATH=os.defpath)
        assert plugin(home / "kubeconfig") == f"{environment.programs}/hawse-credential"
        credential = json.loads(run("hawse-credential", "--server", f"{url}/clusters/prod"))
        assert credential["kind"] == "ExecCredential"
        events = [json.loads(line) for line in run("hawse", "audit", "list", "--json").splitlines()]
        assert "token.issued" in {event["kind"] for event in events}


def plugin(kubeconfig: Path) -> object:
    """The program that kubectl runs for a credential."""
    [user] = yaml.safe_load(kubeconfig.read_text())["users"]
    return user["user"]["exec"]["command"]


@pytest.mark.parametrize("program", [["hawse"], [sys.executable, "-m", "hawse"]], ids=["script", "module"])
def test_a_checkout_runs_in_a_folder_with_packages_of_those_names(program: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(neighbour(tmp_path)) as archive:
        archive.extractall(tmp_path)
    for folder in (tmp_path, ROOT):
        done = subprocess.run([*program, "--version"], cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{VERSION}\n"), done.stderr
