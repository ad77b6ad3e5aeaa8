"""Wheel, source, bill and checksums, built from a copy of this checkout."""

from __future__ import annotations

import calendar
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from deploy.checkout import ROOT, source_epoch
from deploy.release import ReleaseError, build, changelog, stated
from deploy.release.build import Release, make
from proxy.process.version import VERSION
from tests.deploy.checkout import copy_of_this, git
from tests.packaging.installed import build as build_one

WHEEL, SOURCE = f"hawse-{VERSION}-py3-none-any.whl", f"hawse-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_this(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def release(here: Path, output: Path) -> Release:
    return make(here, output)


def test_it_makes_four_files_and_their_hashes_are_right(here: Path, output: Path, release: Release) -> None:
    assert (release.version, release.commit) == (VERSION, git(here, "rev-parse", "HEAD").strip())
    assert [each.file.name for each in release.files] == [
        WHEEL,
        SOURCE,
        f"hawse-{VERSION}.cdx.json",
        "SHA256SUMS",
    ]
    assert sorted(path.name for path in output.iterdir()) == sorted(each.file.name for each in release.files)
    for each in release.files:
        assert each.size == each.file.stat().st_size > 0
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=output, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, 3)
    listed = (output / "SHA256SUMS").read_text()
    assert all(f"{each.sha256}  {each.file.name}\n" in listed for each in release.files[:-1])
    moments = {entry.date_time for entry in zipfile.ZipFile(output / WHEEL).infolist()}
    # Zip has even seconds alone.
    assert {calendar.timegm((*moment, 0, 0, 0)) // 2 for moment in moments} == {source_epoch(here) // 2}
    bill = json.loads((output / f"hawse-{VERSION}.cdx.json").read_text())
    assert bill["metadata"]["component"]["hashes"][0]["content"] == release.files[0].sha256


def test_another_build_of_the_commit_has_the_same_bytes(
    here: Path, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "elsewhere" / "clone"
    git(tmp_path, "clone", "--quiet", str(here), str(clone))
    # None of these is of the commit.
    (clone / "proxy" / "untracked.py").write_text("raise RuntimeError\n")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    mask = os.umask(0o077)
    try:
        again = make(clone, tmp_path / "dist")
    finally:
        os.umask(mask)
    assert [(each.file.name, each.sha256) for each in again.files] == [
        (each.file.name, each.sha256) for each in release.files
    ]


def test_the_source_has_each_tracked_file_and_builds_the_same_wheel(
    here: Path, output: Path, release: Release, tmp_path: Path
) -> None:
    with tarfile.open(output / SOURCE) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
        opened.extractall(tmp_path / "source", filter="data")
    assert names - {"PKG-INFO"} == set(git(here, "ls-files").splitlines())
    [source] = (tmp_path / "source").iterdir()
    again = build_one("wheel", tmp_path / "again", source)
    assert again.name == WHEEL
    with zipfile.ZipFile(output / WHEEL) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert [name for name in one.namelist() if one.read(name) != other.read(name)] == []


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


def test_a_checkout_that_differs_in_its_versions_is_refused(here: Path, tmp_path: Path) -> None:
    for name in (*stated.PAGES, "CHANGELOG.md", "docs", "deploy", "proxy"):
        if (here / name).exists():
            (tmp_path / name).symlink_to(here / name)
    assert build.check(tmp_path)[0] == VERSION
    for name in ("README.md", "CHANGELOG.md"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_text((here / name).read_text())
    edit(tmp_path, "README.md", f"hawse-{VERSION}-py3", "hawse-9.9.9-py3")
    heading = f"## [{changelog.UNRELEASED if Version(VERSION).is_devrelease else VERSION}]"
    edit(tmp_path, "CHANGELOG.md", heading, "## [9.9.9]")
    edit(tmp_path, "CHANGELOG.md", "### Fixed", "### Mended")
    with pytest.raises(ReleaseError) as caught:
        build.check(tmp_path)
    lines = str(caught.value).splitlines()
    assert f"has 9.9.9 for {VERSION}: run `python -m deploy.release --set {VERSION}`" in lines[0]
    assert lines[0].startswith("README.md:")
    assert any("'Mended' is none of Added, " in line for line in lines)
    assert lines[-1].startswith(f"CHANGELOG.md: no entry for {VERSION}: add '{heading}")


def test_a_build_that_fails_leaves_what_was_there(
    here: Path, output: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def made(source: Path, folder: Path, epoch: int) -> None:
        folder.mkdir()
        for name in (WHEEL, SOURCE):
            (folder / name).touch()
        (source / "requirements.lock").write_text("")

    monkeypatch.setattr(build, "build", made)
    with pytest.raises(ReleaseError, match=r"requirements\.lock has no [a-z0-9-]+: run `make lock`"):
        make(here, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_hatchlings_reason_is_given(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "a"\nversion = "no version"\n')
    with pytest.raises(ReleaseError, match=r"^hatchling: .*no version"):
        build.build(tmp_path, tmp_path / "out", 0)


def test_checksums_are_written_without_the_packages_that_validate_a_bill() -> None:
    # As by `make image`, whose environment lacks them.
    code = "import sys, deploy.release.__main__; print('cyclonedx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_checksums_are_of_the_versions_files_and_no_others(tmp_path: Path) -> None:
    ours = [
        "hawse-1.2.3-py3-none-any.whl",
        "hawse-1.2.3.cdx.json",
        "hawse-1.2.3.tar.gz",
        "hawse-hub-1.2.3-amd64.cdx.json",
        "hawse-hub-1.2.3-arm64.oci.tar",
        "hawse-relay-1.2.3.tgz",
    ]
    others = [
        "SHA256SUMS",
        "hawse-1.2.3.dev0.tar.gz",
        "hawse-1.2.30.tar.gz",
        "hawse-1.2.3.tar.gz.part",
        "hawse-1.2.4-py3-none-any.whl",
        "hawse-1.2.3rc1.tar.gz",
        "notes-1.2.3.txt",
    ]
    for name in (*ours, *others):
        (tmp_path / name).write_text(name)
    assert [path.name for path in build.of_version(tmp_path, "1.2.3")] == ours
    made = build.write_sums(tmp_path, "1.2.3")
    assert made.file.read_text().count("\n") == len(ours)
    assert not (tmp_path / "SHA256SUMS.part").exists()
