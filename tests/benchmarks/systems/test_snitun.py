from __future__ import annotations

import stat
from pathlib import Path

import pytest

from benchmarks.system import Endpoint, Missing
from benchmarks.systems import snitun
from benchmarks.upstream.other import OtherUpstream

NO_UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")))


def test_without_its_environment_it_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snitun, "TOP", tmp_path)
    monkeypatch.setattr(snitun, "PYTHON", tmp_path / ".venv-peers" / "bin" / "python")
    with pytest.raises(Missing, match=r"snitun: there is no \.venv-peers/bin/python: make bench-peers"):
        with snitun.open_snitun(tmp_path, NO_UPSTREAM):
            pytest.fail("there is no environment")


def test_an_environment_without_the_package_is_missing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "peers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(snitun, "TOP", tmp_path)
    monkeypatch.setattr(snitun, "PYTHON", python)
    with pytest.raises(Missing, match="it is not in peers: make bench-peers"):
        with snitun.open_snitun(tmp_path, NO_UPSTREAM):
            pytest.fail("there is no snitun")
