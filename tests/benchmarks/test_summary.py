from __future__ import annotations

import pytest

from benchmarks.capacity import Absent
from benchmarks.figures import Found
from benchmarks.readme import PARTS, text
from benchmarks.result import Measurement, Sample
from benchmarks.summary import CPU_ROWS, TIME_ROWS, cpu_table, meaning, missed, spread, time_table
from tests.benchmarks.samples import found

# Of hub and relay together, and what nginx takes in the same round.
ROUNDS = ((60.0, 20.0), (64.0, 16.0), (90.0, 30.0))


def samples(slower: float = 1.0) -> list[Sample]:
    """Three rounds of everything, in which a request of Hawse's takes `slower` times what it should."""
    made = []
    for name, (variants, _) in PARTS.items():
        for variant in variants:
            for ours, theirs in ROUNDS:
                for system, cpu_us in (("hawse", ours * slower), ("nginx", theirs)):
                    measurement = Measurement(
                        name, system, variant, cpu_us, cpu_us / 100, cpu_us / 1000, cpu_us / 500, 500.0
                    )
                    cpu_s = {"hub": cpu_us * 0.6e-3, "relay": cpu_us * 0.4e-3}
                    made.append(Sample(measurement, cpu_s, {"requests": 1000.0, "added_ms": cpu_us / 20}))
                if name == "small":
                    direct = Measurement(name, "direct", variant, p50_ms=0.01, p99_ms=0.02)
                    made.append(Sample(direct, notes={"requests": 1000.0}))
    return made


def everything(slower: float = 1.0) -> Found:
    return found(*samples(slower))


def cells(table: str, title: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_median_and_range_of_both_and_the_ratio_of_the_rounds() -> None:
    row = cells(cpu_table(everything()), "µs a GET of 2 KB, 64 connections")
    # 60/20, 64/16 and 90/30: not the ratio of the medians, which is 3.2.
    assert row[1:] == ["64 (60 to 90)", "20 (16 to 30)", "3", "65"]


def test_what_is_added_is_told_round_by_round() -> None:
    row = cells(time_table(everything()), "a GET, 1 connection: the median")
    assert row[1:] == ["0.054 (0.05 to 0.08)", "0.01 (0.006 to 0.02)", "0.35"]


def test_one_run_has_no_range() -> None:
    assert spread([2.0]) == "2"


def test_every_row_stands_in_its_table() -> None:
    assert len(cpu_table(everything()).splitlines()) == 2 + len(CPU_ROWS)
    assert len(time_table(everything()).splitlines()) == 2 + len(TIME_ROWS)


def test_rows_that_miss_their_goal_are_named_with_it() -> None:
    sentence = missed(everything(slower=1.1))
    assert "µs a GET of 2 KB, 64 connections (70.4, goal 65)" in sentence
    assert "µs a PUT" not in sentence


def test_a_run_that_meets_every_goal_says_so() -> None:
    assert missed(everything(slower=0.5)) == "Every row that has a goal meets it."


def test_what_a_user_notices_is_made_of_the_runs() -> None:
    sentence = meaning(everything(slower=10.0))
    assert "takes 32 ms longer than straight to the API server, 1 ms in all" in sentence
    # 70 % of a second over 384 µs of the hub.
    assert "one hub serves 1,800 GETs a second" in sentence


@pytest.mark.parametrize("workload", PARTS)
def test_a_figure_that_is_not_there_is_named(workload: str) -> None:
    rest = found(*(sample for sample in samples() if sample.measurement.workload != workload))
    with pytest.raises(Absent, match=workload):
        text(rest, 3, ["a machine"])


def test_rounds_that_do_not_pair_are_no_ratio() -> None:
    some = samples()
    some.remove(next(each for each in some if each.measurement.system == "nginx"))
    with pytest.raises(ValueError, match="shorter"):
        cpu_table(found(*some))


def test_the_text_says_how_many_runs_there_were() -> None:
    every = text(everything(), 3, ["a machine", "nginx 1"])
    assert "3 runs, and their range" in every[-2]
    assert every[-2].endswith("Measured on a machine, nginx 1.")


def test_what_a_user_notices_is_not_folded() -> None:
    before, _, after = "\n\n".join(text(everything(), 3, [])).partition("<details>")
    assert before.strip() == meaning(everything())
    assert cpu_table(everything()) in after
    assert after.endswith("\n\n</details>")
