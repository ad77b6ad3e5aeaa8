"""The tables: ratios first, nothing that was not measured, nothing missing without a word."""

from __future__ import annotations

import re
from pathlib import Path

import benchmarks
from benchmarks.report import Report, compared_table, figures_table, notes_table, processes_table, render
from benchmarks.result import Measurement, Sample
from benchmarks.runner import Bench, Outcome
from benchmarks.system import Endpoint, System
from benchmarks.upstream.other import OtherUpstream
from benchmarks.workload import Workload
from tests.benchmarks.samples import found, sample

EVERYTHING = found(
    sample("direct", 64, p50_ms=0.5, p99_ms=1.0, cpu_s={"upstream": 0.01, "load": 0.02}),
    sample("nginx", 64, cpu_us=20.0, p50_ms=1.0, p99_ms=2.0, cpu_s={"nginx": 0.02, "load": 0.02}),
    sample("hawse", 64, cpu_us=60.0, p50_ms=2.0, p99_ms=9.0, cpu_s={"hub": 0.04, "relay": 0.02}),
    sample("hawse", 64, cpu_us=80.0, p50_ms=2.0, p99_ms=9.0, cpu_s={"hub": 0.05, "relay": 0.03}),
)
SMALL = Workload("small", "so many requests", (64,), lambda *given: sample())


def report(folder: Path) -> Report:
    upstream = OtherUpstream(Endpoint("127.0.0.1", 1, folder / "ca.pem"), {})
    systems = (System("hawse", upstream.endpoint, versions={"hawse": "0.1.0"}),)
    bench = Bench(folder, upstream, systems, ("ssh: sshd is not installed: apt-get install openssh-server",))
    return Report(bench, Outcome(failed=["small 64 mplex, run 1: cut"]), [SMALL], EVERYTHING)


def test_the_ratios_come_before_the_figures() -> None:
    titles, rows = figures_table(EVERYTHING, "small")
    assert titles == [
        *("", "system", "x nginx", "p50 over direct"),
        *("CPU µs a request", "median", "p50 ms", "p99 ms"),
    ]
    assert rows == [
        ["64", "direct", "", "", "", "", "0.5", "1"],
        ["64", "nginx", "", "0.5", "20", "20", "1", "2"],
        ["64", "hawse", "3", "1.5", "60", "70", "2", "9"],
    ]


def test_what_no_system_was_run_against_has_no_column() -> None:
    titles, rows = figures_table(found(sample("hawse", 1, cpu_us=60.0)), "small")
    assert titles == ["", "system", "CPU µs a request", "median"]
    assert rows == [["1", "hawse", "60", "60"]]


def test_every_other_system_is_compared_with_hawse_round_by_round() -> None:
    run = found(
        *(sample("hawse", 64, cpu_us=cpu_us) for cpu_us in (60.0, 80.0, 40.0)),
        *(sample("ssh", 64, cpu_us=cpu_us) for cpu_us in (30.0, 20.0, 30.0)),
        sample("direct", 64, p50_ms=0.5),
        sample("hawse-nowheel", 64, cpu_us=90.0),
    )
    assert compared_table(run) == (["", "system", "small 64"], [["", "ssh", "0.5"]])


def test_cpu_is_told_by_process_and_request() -> None:
    lines = processes_table(EVERYTHING, "small").splitlines()
    assert "CPU µs a request by process" in lines[0]
    assert [line.split("|")[3].strip() for line in lines[2:]] == [
        "upstream 10, load 20",
        "nginx 20, load 20",
        "hub 40, relay 20",
    ]
    assert processes_table(found(sample()), "small") == ""


def test_what_else_was_counted_is_told_by_its_median() -> None:
    runs = (
        Sample(Measurement("kubectl", "hawse", 1), notes={"added_ms": value, "requests": 9})
        for value in (1, 9, 2)
    )
    lines = notes_table(found(*runs), "kubectl").splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["1", "hawse", "added_ms", "2"]
    assert len(lines) == 3
    assert notes_table(EVERYTHING, "small") == ""


def test_a_table_is_markdown_with_numbers_to_the_right() -> None:
    assert render(["", "system", "µs"], [["1", "hawse", "1,234.5"], ["64", "nginx", ""]]).splitlines() == [
        "|     | system |      µs |",
        "|----:|--------|--------:|",
        "|   1 | hawse  | 1,234.5 |",
        "|  64 | nginx  |         |",
    ]


def test_the_text_names_what_is_missing_and_what_failed(tmp_path: Path) -> None:
    text = report(tmp_path).text()
    assert "## small\n\nso many requests" in text
    assert "missing: ssh: sshd is not installed: apt-get install openssh-server" in text
    assert "failed: small 64 mplex, run 1: cut" in text
    assert "hub + relay, 64 connections" in text


def test_the_results_say_where_they_are_from(tmp_path: Path) -> None:
    path = tmp_path / "out" / "RESULTS.md"
    path.parent.mkdir()
    report(tmp_path).write(path, ["small", "--systems", "direct,nginx"])
    text = path.read_text()
    assert "    python -m benchmarks small --systems direct,nginx\n" in text
    assert "- hawse 0.1.0\n" in text
    assert "CPython" in text
    assert "missing: ssh" in text
    assert "![small](plots/small.svg)" in text
    link = re.search(r"\[README\.md\]\((.*)\)", text)
    assert link is not None
    assert (path.parent / link[1]).resolve() == Path(benchmarks.__file__).with_name("README.md")
    assert (path.parent / "plots" / "small.svg").read_text().startswith("<svg ")
