"""The command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import parser
from benchmarks.accounting import family
from benchmarks.upstream.apiserver import ApiServer
from benchmarks.workloads import BY_NAME
from tests.benchmarks.samples import KEYS

TOP = Path(__file__).parents[2]


def benchmarks(*args: str, cwd: Path = TOP) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "benchmarks", *args]
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, timeout=50)


def test_the_help_lists_every_workload_with_what_it_asks() -> None:
    text = parser().format_help()
    for name in ("small", "writes", "starts", "bulk", "beside", "stalled", "watch", "rtt"):
        assert f"\n  {name} " in text
    # Those that a name above them runs as well.
    for name in ("bulk-up", "idle-tunnels", "kubectl-token"):
        assert f"\n    {name} " in text


def test_every_workload_runs_under_the_name_that_the_page_has_for_it() -> None:
    page = (TOP / "benchmarks" / "README.md").read_text()
    table = page.partition("| workload | what it does |")[2].partition("\n\n")[0]
    names = [name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert len(names) > 20
    assert parser().parse_args(names).workloads == names
    assert {workload.name for name in names for workload in BY_NAME[name]} == set(names)


@pytest.mark.parametrize(
    ("args", "words"),
    [(["fast"], "invalid choice: 'fast'"), (["small", "--systems", "nginx,mine"], "unknown systems: mine")],
)
def test_a_name_that_is_none_is_refused(args: list[str], words: str) -> None:
    done = benchmarks(*args)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_run_prints_tables_and_writes_json_and_results(apiserver: ApiServer, tmp_path: Path) -> None:
    """The fixture skips it where nginx is missing; the run starts an upstream of its own."""
    figures, results = tmp_path / "figures.json", tmp_path / "RESULTS.md"
    done = benchmarks(
        *("small", "--systems", "direct,nginx", "--quick"),
        *("--json", str(figures), "--results", str(results)),
    )
    assert done.returncode == 0, done.stderr
    assert "| nginx" in done.stdout
    lines = json.loads(figures.read_text())
    assert [list(line) for line in lines] == [KEYS] * 6
    assert [(line["system"], line["variant"]) for line in lines] == [
        (system, variant) for variant in (1, 16, 64) for system in ("direct", "nginx")
    ]
    assert results.read_text().startswith("# Results\n")


def test_a_run_that_is_ended_stops_what_it_started(apiserver: ApiServer, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "benchmarks", "small", "--systems", "direct,nginx", "--seconds", "30"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=TOP, env=environment) as process:
        assert process.stderr is not None
        # The last system is being started, or runs.
        while "starting nginx" not in process.stderr.readline():
            pass
        while not (workers := [pid for pid in family(process.pid) if pid != process.pid]):
            pass
        process.send_signal(signal.SIGTERM)
        assert "interrupted" in process.stderr.read()
    assert process.returncode == 1
    assert [command(pid) for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
