"""The order of the runs, and what becomes of systems that are missing and runs that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.result import Sample
from benchmarks.runner import Bench, describe, last_words, open_systems, run_all
from benchmarks.system import Endpoint, Missing, System, Upstream
from benchmarks.upstream.other import OtherUpstream
from benchmarks.workload import Options, RunFailed, Workload
from tests.benchmarks.samples import sample

UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")), {})


def run(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
    if system.name == "broken":
        raise RunFailed("the connection was closed")
    return sample(system.name, variant, "w", cpu_us=1.0)


def bench(folder: Path, *names: str) -> Bench:
    return Bench(folder, UPSTREAM, tuple(System(name, UPSTREAM.endpoint) for name in names), ())


def test_systems_take_turns_within_each_round(tmp_path: Path) -> None:
    workload = Workload("w", "", (1, 16), run)
    outcome = run_all(bench(tmp_path, "a", "b"), [workload], Options(runs=2))
    order = [(each.measurement.variant, each.measurement.system) for each in outcome.samples]
    assert order == [(1, "a"), (1, "b")] * 2 + [(16, "a"), (16, "b")] * 2


def test_a_workload_may_have_its_own_systems_and_rounds(tmp_path: Path) -> None:
    workload = Workload("w", "", (1,), run, systems=frozenset({"b"}), runs=3)
    outcome = run_all(bench(tmp_path, "a", "b"), [workload], Options(runs=1))
    assert [each.measurement.system for each in outcome.samples] == ["b", "b", "b"]


def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "hub.log").write_text("Traceback\nTypeError: 3\n")
    outcome = run_all(bench(tmp_path, "broken", "a"), [Workload("w", "", (1,), run)], Options(runs=2))
    assert len(outcome.samples) == 2
    assert outcome.failed == [f"w 1 broken, run {n}: the connection was closed" for n in (1, 2)]
    assert "  hub.log: TypeError: 3" in capsys.readouterr().err


def test_only_the_end_of_a_log_is_shown(tmp_path: Path) -> None:
    (tmp_path / "relay.log").write_text("".join(f"line {n}\n" for n in range(100)))
    assert last_words(tmp_path).splitlines()[0] == "  relay.log: line 92"
    assert last_words(tmp_path / "none") == ""


def test_a_missing_system_is_named_and_the_others_are_opened_and_closed(tmp_path: Path) -> None:
    events = []

    @contextmanager
    def present(folder: Path, upstream: Upstream) -> Iterator[System]:
        assert list(folder.iterdir()) == []
        events.append(f"open {folder.name}")
        yield System(folder.name, upstream.endpoint)
        events.append(f"close {folder.name}")

    @contextmanager
    def absent(folder: Path, upstream: Upstream) -> Iterator[System]:
        if folder.is_dir():
            raise Missing("ssh: not here: apt-get install it")
        yield System("ssh", upstream.endpoint)

    openers = {"a": present, "ssh": absent, "b": present}
    with open_systems(tmp_path, UPSTREAM, openers) as opened:
        assert [system.name for system in opened.systems] == ["a", "b"]
        assert opened.missing == ("ssh: not here: apt-get install it",)
        assert [system.open_again for system in opened.systems] == [openers["a"], openers["b"]]
    assert events == ["open a", "open b", "close b", "close a"]


def test_progress_is_a_line_with_the_figures_that_there_are() -> None:
    line = describe(sample("hawse", 64, cpu_us=61.234, p50_ms=2.0, cpu_s={"hub": 0.5}))
    assert line == "hawse          cpu_us_per_request 61.2, p50_ms 2 (hub 0.500 s, requests 1000)"
