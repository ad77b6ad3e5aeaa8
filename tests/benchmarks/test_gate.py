from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.gate import BASELINE, LINES, SEEDED, Line, Pair, allowed, figure, measure_pass
from benchmarks.result import Measurement, Sample
from benchmarks.runner import Bench
from benchmarks.system import Endpoint, Missing, System, Upstream
from benchmarks.systems.hawse import SEEDS, TOP, open_checkout
from benchmarks.upstream.other import OtherUpstream
from benchmarks.verdicts import report
from benchmarks.workload import Options, Workload, once
from benchmarks.workloads import BY_NAME

UPSTREAM = OtherUpstream(Endpoint("127.0.0.1", 1, Path("ca.pem")))
# What benchmarks/seed costs, as a share of a small request, by the machine.
SEED_SHARES = (1.19, 1.3)


def test_one_disturbed_run_of_either_does_not_move_the_figure() -> None:
    undisturbed = [Pair(64.0, 17.0), Pair(65.0, 17.5), Pair(63.0, 16.5), Pair(80.0, 21.0)]
    assert 3.7 < figure([*undisturbed, Pair(190.0, 17.0)]) < 3.85
    assert 3.7 < figure([*undisturbed, Pair(64.0, 40.0)]) < 3.85


@pytest.mark.parametrize("share", SEED_SHARES)
def test_the_gate_catches_a_seed_and_says_on_which_line(
    share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = json.loads(BASELINE.read_text())
    now = {**baseline, "small 64": baseline["small 64"] * share}
    with pytest.raises(SystemExit) as caught:
        report(now, baseline, unit="x nginx", allowed=allowed())
    assert caught.value.code == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "times the baseline" in line)
    assert line.startswith("small 64 ")


def test_the_gate_passes_what_is_within_the_noise() -> None:
    baseline = json.loads(BASELINE.read_text())
    report(
        {line: ratio * 1.06 for line, ratio in baseline.items()},
        baseline,
        unit="x nginx",
        allowed=allowed(),
    )


def test_a_line_that_was_not_measured_fails_the_gate() -> None:
    baseline = json.loads(BASELINE.read_text())
    with pytest.raises(SystemExit):
        report({"small 64": 0.1}, baseline, unit="x nginx", allowed=allowed())


def test_the_committed_baseline_has_every_line() -> None:
    assert list(json.loads(BASELINE.read_text())) == [str(line) for line in LINES]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_each_line_repeats_its_runs_over_open_connections(line: Line) -> None:
    (workload,) = (each for each in BY_NAME[line.workload] if each.name == line.workload)
    assert workload.open is not None


def test_the_two_of_a_pair_change_places_and_their_ratio_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    @contextmanager
    def open_runs(
        system: System, upstream: Upstream, variant: int, options: Options
    ) -> Iterator[Callable[[], Sample]]:
        def measured() -> Sample:
            order.append(system.name)
            us = {"nginx": 20.0, "hawse": 70.0}[system.name]
            return Sample(Measurement("made-up", system.name, variant, cpu_us_per_request=us))

        yield measured

    workload = Workload("made-up", "", (1,), once(open_runs), open=open_runs)
    monkeypatch.setitem(BY_NAME, "made-up", (workload,))
    systems = tuple(System(name, UPSTREAM.endpoint) for name in ("nginx", "hawse"))
    pairs = measure_pass(Bench(Path(), UPSTREAM, systems, ()), Line("made-up", 1, pairs=4, allowed=1.1))
    assert [pair.ratio for pair in pairs] == [3.5] * 4
    assert order == ["hawse", "nginx", "nginx", "hawse"] * 2


SHOW = """
from audit.recording.recorder import Recorder
from auth.memo import is_cacheable
from proxy.hub.authorize.access import AccessTokens
from proxy.message.head import _remembered
cached = is_cacheable(b"/api"), _remembered.cache_info().maxsize > 0
print(Recorder.complete.__name__, AccessTokens.verify.__name__, *cached)
"""


def run_with(*folders: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, env=environment)


def test_each_seed_has_a_folder() -> None:
    assert sorted(each.name for each in SEEDS.iterdir() if (each / "sitecustomize.py").exists()) == sorted(
        SEEDED
    )


def test_a_seed_is_in_a_process_that_finds_it_and_in_no_other() -> None:
    assert run_with(SEEDS / "dearer", TOP).stdout == "_dearer verify True True\n"
    assert run_with(SEEDS / "uncached", TOP).stdout == "complete _unremembered False False\n"
    assert run_with(TOP).stdout == "complete verify True True\n"


@pytest.mark.parametrize(("seed", "changed"), [("dearer", "audit"), ("uncached", "auth")])
def test_a_seed_that_does_not_fit_the_product_ends_the_process(
    tmp_path: Path, seed: str, changed: str
) -> None:
    (tmp_path / f"{changed}.py").write_text("")
    done = run_with(tmp_path, SEEDS / seed)
    assert done.returncode != 0
    assert "the seed does not fit the product" in done.stderr


def test_an_unknown_revision_is_named(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no-such-revision is not a revision of"):
        with open_checkout("no-such-revision")(tmp_path, UPSTREAM):
            pytest.fail("there is no such revision")
