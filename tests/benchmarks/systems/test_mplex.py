from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.system import Endpoint, Missing
from benchmarks.systems import mplex
from benchmarks.upstream.other import OtherUpstream

NO_UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")))


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mplex, "program", lambda name, system, install: "/bin/echo")


def test_a_package_that_is_not_installed_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mplex, "PROGRAMS", tmp_path)
    package = tmp_path / "node_modules" / "bored-mplex"
    package.mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": "0.1.3"}))
    with pytest.raises(Missing, match="mplex: the npm package ws is not installed: make bench-peers"):
        with mplex.open_mplex(tmp_path, NO_UPSTREAM):
            pytest.fail("there is no ws")


def test_the_versions_that_ran_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mplex, "PROGRAMS", tmp_path)
    for name in mplex.PACKAGES:
        package = tmp_path / "node_modules" / name
        package.mkdir(parents=True)
        (package / "package.json").write_text(json.dumps({"version": "1.2.3"}))
    versions = mplex._versions("/bin/echo")
    assert versions["bored-mplex"] == versions["ws"] == "1.2.3"
