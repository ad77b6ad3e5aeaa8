"""What `make dist` says, as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.checkout import ROOT
from deploy.release import __main__ as program
from deploy.release.build import Made
from proxy.process.version import VERSION
from tests.deploy.checkout import commit_all


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["release", *arguments])
    with pytest.raises(SystemExit) as caught:
        program.main()
    return str(caught.value)


def test_a_table_has_a_line_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Made(tmp_path / "dist" / "a", 1234567, "ab"), Made(tmp_path / "dist" / "longer", 8, "cd")]
    assert program.table(files) == "dist/a       1,234,567  ab\ndist/longer          8  cd"


def test_a_checkout_that_differs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").touch()
    commit_all(tmp_path)
    (tmp_path / "one").write_text("changed")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    said = refusal(monkeypatch)
    assert said == "dist: one differs from the commit: commit it, or put it aside by `git stash`"


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # Not that a time can be set: that is no help here.
    assert refusal(monkeypatch) == "dist: git is not installed: install it (apt-get install git)"
    assert refusal(monkeypatch, "--sums", "--output", str(tmp_path / "none")).startswith("dist: [Errno 2] ")


@pytest.mark.parametrize("version", ["1.2.3.4-x", "v1.2.3", "1.2.03", "1.2", "1.2.3.post1", "1.2.3-dev.0"])
def test_a_version_of_another_form_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, "--set", version)
    assert said == f"dist: --set {version}: expected a version such as 1.2.3, 1.2.3rc1 or 1.2.3.dev0"


def test_the_check_says_whether_this_can_be_released() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.release", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{VERSION} ")


@pytest.mark.parametrize("target", ["dist", "image", "charts"])
def test_each_target_that_writes_into_dist_ends_with_the_sums(target: str) -> None:
    command = ["make", "--no-print-directory", "--dry-run", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.endswith(("-m deploy.release", "-m deploy.release --sums"))
