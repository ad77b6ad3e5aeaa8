"""Profiling, with a program in py-spy's place that records its arguments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import profile
from benchmarks.profile import profile_all, recorded, spy_program
from benchmarks.result import Sample
from benchmarks.runner import Bench
from benchmarks.system import Endpoint, Missing, System, Upstream
from benchmarks.upstream.other import OtherUpstream
from benchmarks.workload import Options, RunFailed, Workload
from tests.benchmarks.samples import sample

# As py-spy does: samples until SIGINT, then writes the file.
SPY = """#!/bin/sh
out=; while [ $# -gt 0 ]; do [ "$1" = --output ] && out=$2; [ "$1" = --pid ] && pid=$2; shift; done
trap 'echo "$pid" > "$out"; exit 0' INT
while :; do sleep 0.01; done
"""
UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")), {})


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "py-spy"
    path.write_text(SPY)
    path.chmod(0o700)
    monkeypatch.setattr(profile, "START_S", 0.5)
    monkeypatch.setattr(profile, "RUN_S", 0.0)
    return str(path)


def system(name: str) -> System:
    return System(name, UPSTREAM.endpoint, {"hub": os.getpid(), "relay": os.getppid()})


def test_each_process_has_a_file(spy: str, tmp_path: Path) -> None:
    with recorded(spy, system("hawse"), tmp_path / "small-64-hawse", native=False) as files:
        assert not any(file.exists() for file in files)
    assert [file.name for file in files] == ["small-64-hawse-hub.svg", "small-64-hawse-relay.svg"]
    assert [int(file.read_text()) for file in files] == [os.getpid(), os.getppid()]


def test_only_hawse_is_profiled_and_a_failed_run_is_told(
    spy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
        ran.append((system.name, variant))
        if variant == 2:
            raise RunFailed("cut")
        return sample()

    monkeypatch.setattr(profile, "RUN_S", 0.001)
    bench = Bench(tmp_path, UPSTREAM, (system("nginx"), system("hawse")), ())
    workloads = [Workload("w", "", (1, 2), run)]
    written = profile_all(spy, bench, workloads, Options(), tmp_path / "out", native=False)
    assert set(ran) == {("hawse", 1), ("hawse", 2)}
    assert len(written) == 4
    assert all(file.exists() for file in written)
    assert "failed: w 2 hawse, while profiled: cut" in capsys.readouterr().err


def test_without_py_spy_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.processes.shutil.which", lambda name, path=None: None)
    with pytest.raises(Missing, match="pip install py-spy"):
        spy_program()
