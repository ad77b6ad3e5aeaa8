"""Simulations over the admin API: one at a time, cancellable, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from proxy.hub.admin.simulation.job import Job, Outcome, Progress
from proxy.hub.admin.simulation.simulations import (
    KEPT_MAX,
    SIMULATION_S_MAX,
    UNFINISHED_MAX,
    Simulations,
    State,
)
from proxy.hub.store.roles import Role
from tests.auth.policies import policy
from tests.fakes.admin import ROLE_TOKENS, Bench, enrol, give_each_role_a_token

LOOK = policy("- {id: look, effect: allow, verbs: [read], resources: [pods]}", name="look")
PATH = "/v1/policy-simulations"
BODY = {"files": [{"text": LOOK, "name": "look.yaml"}], "since": "2027-01-01T08:00:00+01:00"}


async def started(bench: Bench, **more: object) -> dict[str, Any]:
    reply = await bench.ask("POST", PATH, {**BODY, **more})
    assert reply.status == 202, reply.body
    found: dict[str, Any] = reply.json
    return found


async def test_a_simulation_runs_beside_the_request_that_started_it(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    await enrol(bench)
    bench.work.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.simulations.run)
        first = await started(bench, agent="sre-1", without=["granted"])
        assert (first["state"], first["operator"], first["policies"]) == ("waiting", "local", ["look"])
        assert (first["since"], first["agent"], first["ended_at"]) == ("2027-01-01T07:00:00Z", "sre-1", None)
        assert bench.recorder.events[-1].note == (
            f"simulation={first['id']} policies=look since=2027-01-01T07:00:00Z agent=sre-1 without=granted"
        )
        await trio.testing.wait_all_tasks_blocked()
        at_work = await bench.ok("GET", f"{PATH}/{first['id']}")
        assert (at_work["state"], at_work["read"], at_work["of"]) == ("running", 1, 2)
        [job] = bench.work.jobs
        assert (job.without, [agent.name for agent in job.agents], job.teams) == (
            ("granted",),
            ["sre-1"],
            ("sre",),
        )
        assert [cluster.labels for cluster in job.clusters] == [{"env": "prod"}]
        assert any("kind: Policy" in text for text in job.in_force)
        nursery.start_soon(finish, bench.work.go, 5.0)
        done = await bench.ok("GET", f"{PATH}/{first['id']}?wait_s=20")
        assert (done["state"], done["result"], trio.current_time()) == ("done", {"calls": 0}, 5.0)
        assert done["ended_at"] is not None
        nursery.cancel_scope.cancel()


async def finish(go: trio.Event, after_s: float) -> None:
    await trio.sleep(after_s)
    go.set()


async def test_one_runs_at_a_time_and_few_wait(bench: Bench) -> None:
    bench.work.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.simulations.run)
        made = [await started(bench) for _ in range(UNFINISHED_MAX)]
        await trio.testing.wait_all_tasks_blocked()
        listed = (await bench.ok("GET", PATH))["simulations"]
        assert [each["id"] for each in listed] == [each["id"] for each in reversed(made)]
        assert [each["state"] for each in reversed(listed)] == ["running", "waiting", "waiting", "waiting"]
        assert len(bench.work.jobs) == 1
        refused = await bench.ask("POST", PATH, BODY)
        assert (refused.status, refused.json["error"]["code"]) == (409, "conflict")
        # One that was cancelled while it waited makes room, and never runs.
        await bench.ok("DELETE", f"{PATH}/{made[1]['id']}")
        await started(bench)
        bench.work.go.set()
        await trio.testing.wait_all_tasks_blocked()
        listed = (await bench.ok("GET", PATH))["simulations"]
        assert [each["state"] for each in reversed(listed)] == ["done", "cancelled", "done", "done", "done"]
        assert len(bench.work.jobs) == UNFINISHED_MAX
        nursery.cancel_scope.cancel()


async def test_a_cancelled_simulation_ends_at_once(bench: Bench) -> None:
    bench.work.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.simulations.run)
        first = await started(bench)
        await trio.testing.wait_all_tasks_blocked()
        gone = await bench.ok("DELETE", f"{PATH}/{first['id']}")
        assert (gone["state"], gone["result"]) == ("cancelled", None)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.work.cancelled == 1
        again = await bench.ask("DELETE", f"{PATH}/{first['id']}")
        assert (again.status, again.json["error"]["code"]) == (409, "conflict")
        # The next one runs.
        bench.work.go.set()
        second = await started(bench)
        await trio.testing.wait_all_tasks_blocked()
        assert (await bench.ok("GET", f"{PATH}/{second['id']}"))["state"] == "done"
        nursery.cancel_scope.cancel()


async def test_a_simulation_that_ends_while_it_is_cancelled_stays_cancelled() -> None:
    async def work(job: Job, tell: Callable[[Progress], None]) -> Outcome:
        with trio.CancelScope(shield=True):
            await begun.wait()
        return Outcome({"calls": 0})

    begun, simulations = trio.Event(), Simulations(work, lambda: 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(simulations.run)
        running = simulations.start(Job((), False, (), 0.0, "", "", (), (), (), ()), "ada", ())
        await trio.testing.wait_all_tasks_blocked()
        running.cancel(2.0)
        begun.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (running.state, running.ended_at, running.outcome.result) == (State.CANCELLED, 2.0, None)
        nursery.cancel_scope.cancel()


async def test_a_simulation_fails_with_its_message_or_after_its_time(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.work.outcome = Outcome(message="no", faults=({"line": 3},))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.simulations.run)
        first = await started(bench)
        found = await bench.ok("GET", f"{PATH}/{first['id']}?wait_s=1")
        assert (found["state"], found["message"], found["faults"]) == ("failed", "no", [{"line": 3}])
        bench.work.go = trio.Event()
        second = await started(bench)
        await trio.sleep(SIMULATION_S_MAX + 1)
        found = await bench.ok("GET", f"{PATH}/{second['id']}")
        assert (found["state"], found["message"][:28]) == ("failed", "it took longer than 600 s: u")
        assert bench.work.cancelled == 1
        nursery.cancel_scope.cancel()


async def test_the_last_simulations_are_kept(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.simulations.run)
        made = []
        for _ in range(KEPT_MAX + 2):
            made.append((await started(bench))["id"])
            await trio.testing.wait_all_tasks_blocked()
        assert [each["id"] for each in (await bench.ok("GET", PATH))["simulations"]] == made[:1:-1]
        assert (await bench.ask("GET", f"{PATH}/{made[0]}")).status == 404
        nursery.cancel_scope.cancel()


async def test_simulations_read_the_trail_so_they_need_an_auditor(bench: Bench) -> None:
    await give_each_role_a_token(bench)
    statuses = {}
    for role, token in ROLE_TOKENS.items():
        statuses[role] = (await bench.ask("POST", PATH, BODY, token=token)).status
    assert statuses == {role: 202 if role in {Role.AUDITOR, Role.ADMIN} else 403 for role in Role}


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": "2027-01-01T08:00:00"},
        # In the years 0 and 10000 in UTC. A simulation that is kept must be listed.
        {"since": "0001-01-01T00:00:00+01:00"},
        {"since": "9999-12-31T23:59:59-01:00"},
        {"since": "yesterday"},
        {"files": [1]},
        {"sinse": 1},
    ],
)
async def test_a_malformed_simulation_is_refused(bench: Bench, wrong: dict[str, object]) -> None:
    reply = await bench.ask("POST", PATH, {**BODY, **wrong})
    assert (reply.status, reply.json["error"]["code"]) == (422, "invalid")
    assert bench.simulations.all() == []


async def test_an_unknown_simulation_may_be_of_another_hub(bench: Bench) -> None:
    path = "/v1/policy-simulations/none"
    assert "several hubs" not in (await bench.ask("GET", path)).json["error"]["message"]
    bench.simulations.hub = "hub-2"
    assert (
        "of several hubs, only the one that began it has it"
        in ((await bench.ask("GET", path)).json["error"]["message"])
    )
