"""The worker process of simulations."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio

from audit.ids import new_eid
from audit.record import Actor, ActorType, Cluster, Event, Kind, Phase, Request, utc
from audit.store import AuditStore
from proxy.hub.admin.simulation import process
from proxy.hub.admin.simulation.job import AgentFacts, ClusterFacts, Document, Job, Outcome, Progress
from proxy.hub.admin.simulation.process import run_in_process
from proxy.hub.admin.simulation.worker import run_job
from proxy.hub.home.databases import note_address
from proxy.hub.home.datadir import DataDir
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.auth.policies import policy

ALL = policy("- {id: all, effect: allow, verbs: ['*'], resources: ['*']}", name="all")
NONE = policy("- {id: none, effect: deny, verbs: [delete], resources: [pods]}", name="none")
DELETE = "/api/v1/namespaces/a/pods/b"


def job(text: str = NONE) -> Job:
    return Job(
        files=(Document(text, "none.yaml"),),
        only=False,
        without=(),
        since=0.0,
        agent="",
        cluster="",
        in_force=(ALL,),
        agents=(AgentFacts("sre-1", ("sre",), "", False),),
        clusters=(ClusterFacts("prod", {}, ("sre",)),),
        teams=("sre",),
    )


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir.open(tmp_path / "hub")
    store = AuditStore(data.audit_file)
    who, where = Actor(ActorType.AGENT, "sre-1"), Cluster("id", "prod")
    event = Event(
        eid=new_eid(), kind=Kind.CALL, phase=Phase.COMPLETE, ts=utc(1_800_000_000.0), actor=who,
        cluster=where, req=Request("DELETE", DELETE),
    )  # fmt: skip
    store.append([event])
    store.close()
    return data


def unheard(progress: Progress) -> None:
    raise AssertionError("so short a simulation tells no progress")


async def test_a_process_simulates_as_the_hub_itself_would(
    data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module in the current folder, which others may write to, is not imported.
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    found = await run_in_process(data.path, job(), unheard)
    assert msgspec.json.encode(found) == msgspec.json.encode(run_job(data.path, job(), unheard))
    assert found.result is not None
    assert (found.result["calls"], found.result["newly_denied"]) == (1, 1)
    assert found.result["changes"] == [
        {
            "change": "newly denied",
            "count": 1,
            "agent": "sre-1",
            "cluster": "prod",
            "verb": "delete",
            "resource": "pods",
            "namespace": "a",
            "rule_before": "all/all",
            "rule_after": "none/none",
        }
    ]
    [change] = cast("list[dict[str, str]]", found.result["diff"])
    assert (change["policy"], change["change"]) == ("none", "added")


async def test_a_cancelled_simulation_leaves_no_process(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    async def feed(worker: trio.Process, job_data: bytes) -> None:
        # The input never comes, so the worker waits for it.
        pids.append(worker.pid)
        await trio.sleep_forever()

    monkeypatch.setattr(process, "_feed", feed)
    with trio.move_on_after(0.2):
        await run_in_process(data.path, job(), unheard)
    [pid] = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_dies_is_a_failure_and_not_the_hubs(
    data: DataDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def feed(worker: trio.Process, job_data: bytes) -> None:
        worker.send_signal(signal.SIGKILL)

    monkeypatch.setattr(process, "_feed", feed)
    found = await run_in_process(data.path, job(), unheard)
    assert found == Outcome(message="the simulation's process failed: see the hub's log")
    assert "a simulation's process failed" in caplog.text


def test_faults_of_the_policies_are_an_outcome(data: DataDir) -> None:
    found = run_job(data.path, job(NONE.replace("deny", "denies")), unheard)
    assert found.result is None
    [fault] = found.faults
    assert (fault["file"], fault["path"]) == ("none.yaml", "spec.rules[0].effect")
    assert found.message.startswith("none.yaml:")


def test_a_simulation_of_no_policy_is_refused(data: DataDir) -> None:
    assert run_job(data.path, job("# nothing"), unheard) == Outcome(message="the input contains no policy")


def test_a_trail_that_cannot_be_found_is_an_outcome(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "hub")
    assert run_job(data.path, job(), unheard).message.startswith("there is no audit trail at ")
    note_address(data, PostgresAddress("postgresql://hawse@localhost/hawse"))
    data.address_file.write_text("x")
    assert "database: damaged" in run_job(data.path, job(), unheard).message
