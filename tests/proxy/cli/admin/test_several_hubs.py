from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from proxy.hub.membership.member import Member, MemberState
from tests.fakes.admin import WATCH, FakeOtherHubs
from tests.fakes.hubs import HUB, FakeHubs
from tests.proxy.cli.admin.conftest import Hub, run_hub

OTHER = attrs.evolve(HUB, hub="8c21d004", boot="b2", address="10.0.4.7:8445", tunnels=390)
THIRD = attrs.evolve(HUB, hub="e5550ae1", boot="b3", address="10.0.5.7:8445", tunnels=401)


async def test_the_hubs_are_listed_with_what_an_operator_needs(tmp_path: Path) -> None:
    silent = attrs.evolve(THIRD, age_s=34.0, unreachable=("1f0c3a9e", "8c21d004"), applied=118)
    async with run_hub(tmp_path, hubs=FakeHubs(beside=[OTHER, silent])) as hub:
        listed = (await hub.ok("hub", "list")).stdout.splitlines()
        rows = await hub.json("hub", "list")
    assert listed[0].split()[:5] == ["HUB", "STATE", "TUNNELS", "CALLS", "APPLIED"]
    assert [line.split()[:4] for line in listed[1:]] == [
        ["1f0c3a9e", "serving", "400", "12"],
        ["8c21d004", "serving", "390", "12"],
        ["e5550ae1", "silent", "401", "12"],
    ]
    assert "renewed 0.9 s ago" in listed[1]
    assert "its calls end within 41 s" in listed[3]
    assert "1f0c3a9e, 8c21d004" in listed[3]
    assert "118, 2 behind" in listed[3]
    assert [row["this"] for row in rows] == [True, False, False]
    assert rows[0]["version"] == "0.1.0"
    assert rows[2]["living"] is False


@pytest.mark.parametrize(
    ("others", "faults"),
    [
        ([OTHER, THIRD], []),
        ([OTHER], ["2 of 3 hubs serve"]),
        ([OTHER, THIRD, attrs.evolve(THIRD, hub="f", boot="b4")], ["4 of 3 hubs serve"]),
        (
            [OTHER, attrs.evolve(THIRD, state=MemberState.LEAVING)],
            ["hub e5550ae1 is leaving", "2 of 3 hubs serve"],
        ),
        (
            [OTHER, THIRD, attrs.evolve(THIRD, boot="b0", state=MemberState.LEAVING)],
            ["hub e5550ae1 is leaving"],
        ),
        ([OTHER, attrs.evolve(THIRD, age_s=12.5)], ["hub e5550ae1 is silent", "2 of 3 hubs serve"]),
        ([OTHER, attrs.evolve(THIRD, applied=119)], ["hub e5550ae1 has applied version 119, 1 behind"]),
        ([OTHER, attrs.evolve(THIRD, unreachable=("8c21d004",))], ["hub e5550ae1 cannot reach 8c21d004"]),
    ],
)
async def test_a_script_learns_whether_the_next_hub_may_be_restarted(
    tmp_path: Path, others: list[Member], faults: list[str]
) -> None:
    async with run_hub(tmp_path, hubs=FakeHubs(beside=others)) as hub:
        result = await hub.run("hub", "list", "--settled", "3")
    assert result.exit_code == (3 if faults else 0)
    assert result.stderr == ("hawse: " + "\n  ".join(faults) + "\n" if faults else "")


async def test_a_hub_on_sqlite_says_that_it_runs_alone(hub: Hub) -> None:
    assert "runs alone, on SQLite" in (await hub.ok("hub", "list")).stderr
    assert await hub.json("hub", "list") == []
    assert (await hub.run("hub", "list", "--settled", "1")).exit_code == 3


async def test_the_calls_of_all_hubs_are_listed_and_killed(tmp_path: Path) -> None:
    elsewhere = FakeOtherHubs()
    async with run_hub(tmp_path, other_hubs=elsewhere) as hub:
        await hub.ok("team", "add", "sre")
        await hub.ok("agent", "add", "sre-1", "--owner", "ada", "--team", "sre", "--credential", "none")
        hub.live.sessions_here.append(attrs.evolve(WATCH, id="here", hub="1f0c3a9e"))
        elsewhere.live.append(
            attrs.evolve(WATCH, id="there", hub="8c21d004", started_at=WATCH.started_at - 60)
        )
        heading, *rows = (await hub.ok("session", "list")).stdout.splitlines()
        killed = await hub.ok("session", "kill", "there", "--reason", "x")
        assert "killed there: agent:sre-1 on prod" in killed.stderr
        # An id that this hub has is asked of no other one.
        await hub.ok("session", "kill", "here", "--reason", "x")
        assert [asked["id"] for asked in elsewhere.killed] == ["there"]
        assert "no session" in await hub.fails("session", "kill", "none", "--reason", "x")
    assert heading.split()[-1] == "HUB"
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [
        ("there", "8c21d004"),
        ("here", "1f0c3a9e"),
    ]


async def test_a_hub_that_did_not_answer_is_named_and_the_status_says_so(tmp_path: Path) -> None:
    elsewhere = FakeOtherHubs()
    elsewhere.silent = ["8c21d004", "e5550ae1 (replaced)"]
    async with run_hub(tmp_path, other_hubs=elsewhere) as hub:
        await hub.ok("team", "add", "sre")
        await hub.ok("agent", "add", "sre-1", "--owner", "ada", "--team", "sre", "--credential", "none")
        hub.live.sessions_here.append(WATCH)
        listed = await hub.run("session", "list", "--json")
        assert (listed.exit_code, len(json.loads(listed.stdout))) == (3, 1)
        for named in elsewhere.silent:
            assert f"hub {named} did not answer within 2 s: its calls are not in this list" in listed.stderr
        killed = await hub.run("session", "kill", "--agent", "sre-1", "--reason", "x")
        assert killed.exit_code == 3
        assert killed.stderr.startswith(f"killed {WATCH.id}")
        assert "hub 8c21d004 did not answer within 2 s: its calls may go on" in killed.stderr
        # The call may be at the hub that did not answer.
        assert (await hub.run("session", "kill", "none", "--reason", "x")).exit_code == 3
