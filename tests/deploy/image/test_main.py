"""What the command says when it cannot build."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.image import ImageError, last_words
from deploy.image.__main__ import main
from deploy.image.build import Builder


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["image", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    said = refusal(monkeypatch, "--lock", "--work", str(tmp_path / "file"))
    assert said.startswith("image: [Errno 20] Not a directory: ")


def test_a_checkout_without_git_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal(monkeypatch) == (
        "image: git is not installed: install it (apt-get install git), "
        "or set SOURCE_DATE_EPOCH to the time of the release, in seconds"
    )


def test_a_time_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    assert refusal(monkeypatch) == "image: SOURCE_DATE_EPOCH is 'today': expected seconds since 1970"


def test_another_machine_is_told_what_can_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What macOS says.
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(ImageError, match="not on arm64: use deploy/Containerfile"):
        Builder(tmp_path, tmp_path, "arm64", 0, print).build(["relay"])


def test_a_program_that_was_killed_says_its_exit_code() -> None:
    assert last_words(subprocess.CompletedProcess([], -9, "", "")) == "exit code -9"
    assert last_words(subprocess.CompletedProcess([], 1, "a\nb\n", "")) == "b"
