"""What is in the images, and what is not."""

from __future__ import annotations

import json
import os
import stat
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

from proxy.process.version import VERSION
from tests.deploy.image.built.unpacked import Unpacked

MB = 1_000_000
COMPRESSED_MAX = {"relay": 70 * MB, "hub": 110 * MB}
SITE = "usr/local/lib/python3.13/dist-packages"
PROGRAMS = {"usr/bin/python3.13", "usr/local/bin/hawse"}
DATA = "var/lib/hawse"


def test_the_size_stays_below_its_bound(image: Unpacked) -> None:
    assert image.compressed <= COMPRESSED_MAX[image.target]


def test_there_is_no_program_but_python_and_hawse(image: Unpacked) -> None:
    files = {name: entry for name, entry in image.entries.items() if entry.isreg()}
    executable = {name for name, entry in files.items() if entry.mode & 0o111 and not _is_library(name)}
    assert executable == PROGRAMS
    folders = {name for name in files if Path(name).parent.name in {"bin", "sbin", "games", "libexec"}}
    assert folders == PROGRAMS


def _is_library(name: str) -> bool:
    return ".so" in Path(name).name


def test_nothing_is_left_of_shells_and_package_managers(image: Unpacked) -> None:
    banned = {"sh", "bash", "dash", "perl", "apt", "apt-get", "dpkg", "pip", "busybox", "su", "mount"}
    assert [name for name in image.entries if Path(name).name in banned - {"dpkg"}] == []
    # The list of packages that scanners read.
    below = [name for name in image.entries if "dpkg" in Path(name).parts]
    assert all(name.startswith("var/lib/dpkg") for name in below)
    assert not (image.root / "var/lib/dpkg/info").exists()


def test_nothing_is_setuid_nor_writable_by_the_user_but_the_hubs_volume(image: Unpacked) -> None:
    writable = []
    for name, entry in image.entries.items():
        path = image.root / name
        status = path.lstat()
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX), name
        assert (status.st_uid, status.st_gid) == (entry.uid, entry.gid)
        if status.st_uid or status.st_gid or (status.st_mode & 0o022 and not path.is_symlink()):
            writable.append(name)
        assert "security.capability" not in os.listxattr(path, follow_symlinks=False)
    assert writable == ([DATA] if image.target == "hub" else [])


def test_links_lead_to_what_is_there(image: Unpacked) -> None:
    dangling = []
    for name, entry in image.entries.items():
        if entry.issym():
            target = Path("/", Path(name).parent, entry.linkname)
            if not (image.root / os.path.normpath(target).lstrip("/")).exists():
                dangling.append(f"{name} -> {entry.linkname}")
    assert dangling == []


def test_no_file_names_the_machine_that_built_it(image: Unpacked) -> None:
    here = str(Path(__file__).parents[4]).encode()
    for name, entry in image.entries.items():
        if entry.isreg():
            assert here not in (image.root / name).read_bytes(), name


def test_every_module_has_its_bytecode(image: Unpacked) -> None:
    folders = [image.root / "usr/lib/python3.13", image.root / SITE]
    modules = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(modules) > 1000
    lacking = [
        path
        for path in modules
        if not (path.parent / "__pycache__" / f"{path.stem}.cpython-313.pyc").exists()
    ]
    assert lacking == []


def test_the_bill_of_materials_lists_what_is_installed_and_nothing_else(image: Unpacked) -> None:
    bill = json.loads((image.root / "usr/share/sbom/hawse.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    beside = image.file.with_name(image.file.name.replace(".oci.tar", ".cdx.json"))
    assert json.loads(beside.read_text()) == bill
    found = sorted(component["purl"].partition("?")[0] for component in bill["components"])
    expected = []
    for status in (image.root / "var/lib/dpkg/status.d").iterdir():
        fields = dict(line.split(": ", 1) for line in status.read_text().splitlines() if ": " in line)
        expected.append(f"pkg:deb/debian/{quote(status.name, safe='')}@{quote(fields['Version'], safe='')}")
    for each in distributions(path=[str(image.root / SITE)]):
        name = each.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        expected.append(f"pkg:pypi/{name}@{quote(each.version, safe='')}")
    assert f"pkg:pypi/hawse@{VERSION}" in expected
    assert found == sorted(expected)


def test_each_distribution_has_the_files_of_its_record(image: Unpacked) -> None:
    for each in distributions(path=[str(image.root / SITE)]):
        for file in each.files or ():
            assert Path(str(file.locate())).exists(), f"{each.metadata['Name']}: {file}"


def test_the_relays_image_has_nothing_of_the_hub(relay_image: Unpacked, hub_image: Unpacked) -> None:
    for name in ("hawse/audit", "hawse/proxy/hub", "sqlalchemy", "starlette", "psycopg"):
        assert not (relay_image.root / SITE / name).exists()
        assert (hub_image.root / SITE / name).exists()


def test_each_package_keeps_its_copyright(image: Unpacked) -> None:
    for status in (image.root / "var/lib/dpkg/status.d").iterdir():
        assert (image.root / "usr/share/doc" / status.name / "copyright").exists(), status.name


def test_the_configuration_is_that_of_the_manifests(image: Unpacked) -> None:
    config = image.config
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"], config["StopSignal"]) == (
        ["hawse"],
        [image.target],
        "SIGTERM",
    )
    assert "HOME=/nonexistent" in config["Env"]
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION
