"""The wheel, installed as users do: by uv and by pipx, into an empty home, with packages of the registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from proxy.process.version import VERSION
from tests.packaging.install.conftest import FOLDER
from tests.packaging.installed import Environment, build
from tests.packaging.running import run_hub_and_agent

# The registry may be slow.
pytestmark = pytest.mark.timeout(600)
_BASE_PYTHON = Path(sys.base_prefix, "bin")


@attrs.frozen
class Installer:
    """A program that installs programs for a user. `argv` gets the wheel and an extra, or none."""

    name: str
    argv: Callable[[Path, str], list[str]]
    # Where it puts the environment, below the home.
    environment: str
    # What it leaves in the home on its own account.
    leaves: frozenset[str] = frozenset()
    variables: dict[str, str] = attrs.field(factory=dict)


def _path(wheel: Path, extra: str) -> str:
    return f"{wheel}[{extra}]" if extra else str(wheel)


def _url(wheel: Path, extra: str) -> str:
    return f"hawse[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)


INSTALLERS = [
    Installer(
        "uv",
        lambda wheel, extra: ["uv", "tool", "install", _url(wheel, extra)],
        ".local/share/uv/tools/hawse",
        variables={"UV_PYTHON_DOWNLOADS": "never"},
    ),
    # Without uv, as Debian's pipx.
    Installer(
        "pipx",
        lambda wheel, extra: ["pipx", "install", _path(wheel, extra)],
        ".local/share/pipx/venvs/hawse",
        frozenset({".hawse.lock"}),
        {"PIPX_DEFAULT_BACKEND": "pip"},
    ),
]


@attrs.frozen
class Home:
    """A user's empty home, with the user's environment: nothing of the checkout is on the path."""

    folder: Path
    variables: dict[str, str]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which(argv[0], path=self.variables["PATH"])
        assert program is not None, argv[0]
        return subprocess.run(
            [program, *argv[1:]], cwd=self.folder, env=self.variables, capture_output=True, text=True
        )

    def succeeds(self, *argv: str) -> str:
        done = self.run(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def names_of_hawse(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*hawse*")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Outside the homes, so that each package is downloaded once."""
    folder = tmp_path_factory.mktemp("cache")
    return {"UV_CACHE_DIR": str(folder / "uv"), "PIP_CACHE_DIR": str(folder / "pip")}


@pytest.fixture(params=INSTALLERS, ids=lambda each: each.name)
def installer(request: pytest.FixtureRequest) -> Installer:
    assert isinstance(request.param, Installer)
    return request.param


@pytest.fixture
def home(tmp_path: Path, installer: Installer, cache: dict[str, str]) -> Home:
    folder = tmp_path / "home"
    folder.mkdir()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / installer.name).symlink_to(Path(FOLDER, installer.name))
    path = [folder / ".local" / "bin", programs, _BASE_PYTHON, Path("/usr/bin"), Path("/bin")]
    own = ("PYTHON", "XDG_", "VIRTUAL_ENV", "HAWSE_", "UV_", "PIPX_")
    others = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    variables = {"HOME": str(folder), "PATH": os.pathsep.join(map(str, path))}
    return Home(folder, {**others, **variables, **cache, **installer.variables})


def test_an_agent_gets_both_programs_and_uninstalling_leaves_neither(
    home: Home, installer: Installer, wheel: Path
) -> None:
    home.succeeds(*installer.argv(wheel, ""))
    assert home.succeeds("hawse", "--version") == f"{VERSION}\n"
    assert "kubeconfig" in home.succeeds("hawse", "--help")
    assert home.succeeds("hawse", "kubeconfig", "--help")
    # kubectl starts it by its name.
    refused = home.run("hawse-credential", "--server", "https://hub.example/clusters/prod")
    assert refused.returncode == 1
    assert "hawse login" in refused.stderr
    # The hub's packages are an extra.
    without = home.run("hawse", "hub", "--check")
    assert without.returncode != 0
    assert f"install 'hawse-{VERSION}-py3-none-any.whl[hub]' by uv, pipx or pip" in without.stderr
    programs = home.folder / ".local" / "bin"
    assert {path.name for path in programs.iterdir()} == {"hawse", "hawse-credential"}

    home.succeeds(*_uninstall(installer))
    assert list(programs.iterdir()) == []
    assert home.names_of_hawse() <= installer.leaves


def test_a_hub_runs_and_an_agent_logs_in(
    home: Home, installer: Installer, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.succeeds(*installer.argv(wheel, "hub"))
    config = tmp_path / "checked.toml"
    config.write_text(f'org = "acme"\npublic_url = "https://127.0.0.1"\ndata_dir = "{tmp_path}/none"\n')
    assert home.succeeds("hawse", "hub", "--check", "--config", str(config))
    for key in set(os.environ) - set(home.variables):
        monkeypatch.delenv(key)
    for key, value in home.variables.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "run").mkdir()
    run_hub_and_agent(Environment(home.folder / installer.environment), tmp_path / "run")

    home.succeeds(*_uninstall(installer))
    assert home.names_of_hawse() <= installer.leaves


def _uninstall(installer: Installer) -> list[str]:
    return ["uv", "tool", "uninstall", "hawse"] if installer.name == "uv" else ["pipx", "uninstall", "hawse"]
