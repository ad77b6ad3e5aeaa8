from __future__ import annotations

import pytest

from benchmarks.capacity import Absent, between, capacity_table, check_table, costs, count, unit_table
from benchmarks.figures import Found
from benchmarks.result import Measurement, Sample, group
from benchmarks.workloads.scale import FEW, TUNNELS

RESTARTS = {
    f"{how}_{what}": value
    for how, value in (("stopped", 8.0), ("killed", 9.0))
    for what in ("away_s", "all_back_s", "connect_ms")
}
SAMPLES = [
    Sample(Measurement("small", "hawse", 64), cpu_s={"hub": 0.07, "relay": 0.05}, notes={"requests": 1000.0}),
    Sample(Measurement("small", "hawse", 1), cpu_s={"hub": 0.13, "relay": 0.1}, notes={"requests": 1000.0}),
    # A disturbed round.
    Sample(Measurement("small", "hawse", 64), cpu_s={"hub": 0.7, "relay": 0.5}, notes={"requests": 1000.0}),
    Sample(Measurement("bulk", "hawse", 32), cpu_s={"hub": 0.7, "relay": 1.0}, notes={"gigabytes": 0.5}),
    Sample(Measurement("watch", "hawse", 1000), cpu_s={"hub": 0.14}, notes={"requests": 1000.0}),
    Sample(Measurement("idle", "hawse", 6000), notes={"hub_kb": 40.0, "relay_kb": 50.0}),
    # 3 ms a second for the process, 15 µs a second for each tunnel.
    Sample(Measurement("idle-tunnels", "hawse", TUNNELS), notes={"idle_us_per_s": 18.0}),
    Sample(
        Measurement("idle-tunnels", "hawse", FEW),
        notes={
            "tunnel_kb": 100.0,
            "idle_us_per_s": 30.0,
            "connect_ms": 2.0,
            "hub_base_kb": 80_000.0,
            "relay_process_kb": 50_000.0,
        },
    ),
    Sample(
        Measurement("scale", "hawse", 1000),
        notes={"many_hub_us": 100.0, "one_hub_us": 90.0, "hub_kb": 190_000.0, **RESTARTS},
    ),
    Sample(
        Measurement("scale-two", "hawse", 1000, cpu_us_per_request=110.0),
        notes={"larger_hub_kb": 130_000.0, "in_turn_hub_us": 104.0},
    ),
]


def found(without: str = "") -> Found:
    return Found(group(sample for sample in SAMPLES if sample.measurement.workload != without))


def cells(table: str, title: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_cost_is_that_of_the_round_that_was_disturbed_least() -> None:
    assert costs(found()).request_best_us == pytest.approx(70.0)


def test_a_tunnel_s_costs_are_those_of_the_smaller_run() -> None:
    of = costs(found())
    assert (of.tunnel_kb, of.hub_kb) == (100.0, 80_000.0)


@pytest.mark.parametrize("workload", ["small", "bulk", "watch", "idle", "idle-tunnels", "scale"])
def test_a_figure_that_is_not_there_is_named(workload: str) -> None:
    with pytest.raises(Absent, match=workload):
        costs(found(without=workload))


def test_keeping_a_tunnel_is_what_each_adds_to_the_process() -> None:
    of = costs(found())
    assert (of.tunnel_us_per_s, of.idle_us_per_s) == (pytest.approx(15.0), pytest.approx(3000.0))


def test_what_a_hub_carries_is_the_budget_over_the_cost() -> None:
    table = capacity_table(costs(found()))
    assert cells(table, "small requests a second")[1] == "7,000"
    assert cells(table, "downloads")[1] == "500"
    assert cells(table, "events")[1] == "5,000"
    assert cells(table, "open watches")[1] == "24,000"
    # 5 s of seven tenths of a core, at 9 ms each.
    assert cells(table, "relays that come back")[1] == "390"


def test_a_read_of_many_tunnels_is_predicted_by_one_that_is_alone_in_its_tunnel() -> None:
    assert cells(check_table(costs(found()), found()), "µs of the hub a read")[1:] == ["130", "100"]


def test_relays_are_back_after_the_last_first_dial_and_the_longest_wait() -> None:
    # Without the 8 s in which there was no hub.
    row = cells(check_table(costs(found()), found()), "all relays are back after SIGTERM and 8 s")
    assert row[1:] == ["at most 11.25", "8"]


def test_two_hubs_are_held_against_one_by_turns() -> None:
    table = check_table(costs(found()), found())
    assert cells(table, "on two hubs in turn")[1:] == ["100", "104"]
    assert cells(table, "on two hubs at a time")[1:] == ["", "110"]


def test_what_is_predicted_of_the_memory_is_made_of_the_smaller_run() -> None:
    of = costs(found())
    row = cells(check_table(of, found()), "hub's memory")
    assert row[1:] == ["176", "186"]
    row = cells(check_table(of, found()), "on two hubs: memory")
    assert row[1:] == ["127", "127"]


def test_every_cost_has_its_line() -> None:
    assert len(unit_table(costs(found())).splitlines()) == 2 + 10


def test_what_costs_nothing_has_no_number() -> None:
    assert count(1.0, 0.0) == "too cheap to tell"
    assert count(1234.0, 1.0) == "1,200"
    assert count(12.0, 1.0) == "12"


def test_a_document_keeps_what_is_around_its_figures() -> None:
    text = "before\n<a>\nold\n<b>\nafter\n"
    once = between(text, "<a>", "<b>", ["one", "two"])
    assert once == "before\n<a>\n\none\n\ntwo\n\n<b>\nafter\n"
    assert between(once, "<a>", "<b>", ["one", "two"]) == once


def test_a_document_without_a_place_for_figures_is_left_alone() -> None:
    with pytest.raises(ValueError, match="no lines"):
        between("text", "<a>", "<b>", ["one"])
