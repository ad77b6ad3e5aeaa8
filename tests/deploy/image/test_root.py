"""What is removed from a root, on a tree of a few files."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.image import ImageError
from deploy.image.root import STATUS, USER, add_files, programs, remove, walk

FILES = {
    "usr/bin/python3.13": 0o755,
    "usr/bin/dash": 0o755,
    "usr/bin/su": 0o4755,
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": 0o755,
    "usr/lib/x86_64-linux-gnu/libc.so.6": 0o755,
    "usr/lib/python3.13/pdb.py": 0o755,
    "usr/share/doc/libc6/copyright": 0o644,
    "usr/share/doc/libc6/changelog.gz": 0o644,
    "usr/share/man/man1/dash.1": 0o644,
    f"{STATUS}/libc6": 0o644,
    "var/cache/apt/pkgcache.bin": 0o644,
}
KEPT = ["usr/bin/python3.13"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, mode in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        file.chmod(mode)
    (tmp_path / "usr/bin/sh").symlink_to("dash")
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "empty/empty").mkdir(parents=True)
    return tmp_path


def test_programs_documents_and_what_matches_are_removed(root: Path) -> None:
    remove(root, ["usr/share/man", "var/*"], ["copyright"], KEPT)
    found = {path for path in walk(root) if (root / path).is_file()}
    assert found == {
        "usr/bin/python3.13",
        "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/python3.13/pdb.py",
        "usr/share/doc/libc6/copyright",
        f"{STATUS}/libc6",
    }
    assert programs(root) == KEPT
    # Links to folders stay, and empty folders do not.
    assert (root / "bin").is_symlink()
    assert not (root / "empty").exists()


def test_a_pattern_that_matches_nothing_is_refused(root: Path) -> None:
    with pytest.raises(ImageError, match="removes 'usr/share/info', which no package has"):
        remove(root, ["usr/share/man", "usr/share/info"], ["copyright"], KEPT)


def test_the_only_user_has_no_shell_and_no_home(root: Path) -> None:
    add_files(root)
    [line] = (root / "etc/passwd").read_text().splitlines()
    assert line.split(":")[2:] == [str(USER), str(USER), "Hawse", "/nonexistent", "/nonexistent"]
    assert (root / "proc").is_dir()


def test_a_link_to_a_file_of_this_machine_does_not_change_its_mode(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("machine") / "program"
    outside.touch(0o755)
    (root / "usr/lib/link").symlink_to(outside)
    remove(root, ["var/*"], ["copyright"], KEPT)
    assert outside.stat().st_mode & 0o777 == 0o755
    assert (root / "usr/lib/link").is_symlink()
