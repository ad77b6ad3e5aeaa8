"""The commit that is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import checkout
from deploy.checkout import CheckoutError
from tests.deploy.checkout import commit_all, git


@pytest.fixture
def here(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("one", "two"):
        (root / name).write_text(name)
    (root / "three").write_text("#!/bin/sh\n")
    (root / "three").chmod(0o755)
    return commit_all(root)


def test_it_has_the_commits_hash_and_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert checkout.commit(here) == git(here, "rev-parse", "HEAD").strip()
    assert checkout.source_epoch(here) == int(git(here, "log", "-1", "--format=%at"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert checkout.source_epoch(here) == 1_800_000_000


def test_a_tracked_file_that_differs_is_named_with_the_next_step(here: Path) -> None:
    # What git does not track is no part of the commit.
    (here / "new").touch()
    assert checkout.commit(here)
    (here / "one").write_text("changed")
    with pytest.raises(CheckoutError) as caught:
        checkout.commit(here)
    assert str(caught.value) == "one differs from the commit: commit it, or put it aside by `git stash`"
    git(here, "rm", "--quiet", "two")
    with pytest.raises(CheckoutError, match="one and 1 more differs from the commit: "):
        checkout.commit(here)


def test_an_export_has_the_files_of_the_commit(here: Path, tmp_path: Path) -> None:
    (here / "new").touch()
    (here / "one").write_text("changed")
    checkout.export(here, tmp_path / "export")
    found = {path.name: path.read_text() for path in (tmp_path / "export").iterdir()}
    assert found == {"one": "one", "two": "two", "three": "#!/bin/sh\n"}
    assert (tmp_path / "export" / "three").stat().st_mode & 0o111


def test_a_folder_that_is_no_checkout_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "empty").mkdir()
    # Else a checkout around the folder of tests is found.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    said = f"{tmp_path}/empty is no git checkout: clone the repository"
    with pytest.raises(CheckoutError, match=said):
        checkout.commit(tmp_path / "empty")
    with pytest.raises(CheckoutError, match=f"{said}, or set SOURCE_DATE_EPOCH"):
        checkout.source_epoch(tmp_path / "empty")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CheckoutError, match=r"git is not installed: install it \(apt-get install git\)"):
        checkout.commit(tmp_path / "empty")


def test_a_checkout_of_another_user_says_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    with pytest.raises(
        CheckoutError, match=f"dubious ownership .*: run `git config --global --add .* {here}`"
    ):
        checkout.commit(here)
