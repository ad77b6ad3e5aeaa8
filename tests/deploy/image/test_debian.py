"""The lock of Debian's packages, and what they depend on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.image import ImageError
from deploy.image.build import ARCHITECTURES, FOLDER, read_settings
from deploy.image.debian import (
    Apt,
    Package,
    check_names,
    for_architecture,
    read_control,
    read_lock,
    unmet,
    write_lock,
)

LOCK = (FOLDER / "packages.lock").read_text()
WORD = st.text("abcz019.+~:-", min_size=1)
PACKAGES = st.lists(
    st.builds(Package, WORD, WORD, st.sampled_from([*ARCHITECTURES, "all"]), st.just("0" * 64)),
    unique_by=lambda package: (package.name, package.architecture),
)


@given(PACKAGES)
def test_a_written_lock_reads_back_in_order(packages: list[Package]) -> None:
    assert read_lock(write_lock(packages)) == sorted(packages)


@pytest.mark.parametrize(
    "line", ["libc6 2.41 amd64", "libc6 2.41 amd64 abc", f"libc6  2.41 amd64 {'0' * 64}", ""]
)
def test_a_line_that_is_no_entry_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ImageError, match="line 2"):
        read_lock(f"# comment\n{line}\n")


def test_a_package_that_is_listed_twice_is_refused() -> None:
    line = f"amd64 {'0' * 64}"
    with pytest.raises(ImageError, match="libc6 is listed twice for amd64"):
        read_lock(f"libc6 1 {line}\nlibc6 2 {line}\n")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_lock_has_every_package_for_each_architecture_and_no_other(architecture: str) -> None:
    settings = read_settings()
    packages = for_architecture(read_lock(LOCK), architecture)
    check_names(packages, settings.packages)
    assert write_lock(read_lock(LOCK)) == LOCK
    # Of one source, so of one version.
    versions = {each.version for each in packages if "python3.13" in each.name}
    assert len(versions) == 1


def test_no_package_is_a_shell_or_a_package_manager() -> None:
    settings = read_settings()
    assert {"dash", "bash", "busybox", "perl-base", "dpkg", "apt", "coreutils"}.isdisjoint(settings.packages)
    assert not set(settings.packages) & set(settings.left_out)
    assert list(settings.packages) == sorted(settings.packages)


def test_a_lock_that_lacks_a_package_names_it_and_the_command() -> None:
    packages = for_architecture(read_lock(LOCK), "amd64")
    with pytest.raises(ImageError, match=r"differ in: zlib1g\. Run `make image-lock`"):
        check_names([each for each in packages if each.name != "zlib1g"], read_settings().packages)


def test_a_dependency_is_met_by_a_package_an_alternative_or_an_exception() -> None:
    depends = {
        "a": "b (>= 1), c | d, debconf (>= 0.5) | debconf-2.0, python3:any",
        "b": "",
        "d": "e [linux-any], a",
    }
    assert unmet(depends, ["debconf"]) == [("a", "python3:any"), ("d", "e [linux-any]")]
    assert unmet(depends, ["debconf", "python3", "e"]) == []


ZLIB = Package("zlib1g", "1:1.3", "amd64", hashlib.sha256(b"zlib\n").hexdigest())


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that apt-get downloads as zlib1g. Only the last of the arguments counts."""
    file = tmp_path / "mirror"
    file.write_bytes(b"zlib\n")
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ "$last" = update ] || exec cp {file} "{ZLIB.file}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return file


def test_a_download_with_another_hash_is_refused_each_time(tmp_path: Path, mirror: Path) -> None:
    mirror.write_text("another")
    apt = Apt(tmp_path, "amd64", "trixie")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"zlib1g_1%3a1\.3_amd64\.deb: SHA-256 is ae448ac8"):
            apt.fetch([ZLIB])


def test_a_part_of_a_download_that_was_killed_is_downloaded_again(tmp_path: Path, mirror: Path) -> None:
    apt = Apt(tmp_path, "amd64", "trixie")
    (tmp_path / "debs" / ZLIB.file).write_text("zl")
    [file] = apt.fetch([ZLIB])
    assert file.read_bytes() == mirror.read_bytes()


def test_a_stanza_keeps_the_lines_that_continue_a_field() -> None:
    text = "Package: zlib1g\nDescription: compression\n the library\n .\nDepends: libc6 (>= 2.14)\n"
    assert read_control(text) == {
        "Package": "zlib1g",
        "Description": "compression\n the library\n .",
        "Depends": "libc6 (>= 2.14)",
    }
