"""The clients and their judge: all is whole where nothing is broken, and what is broken is seen."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.clients import (
    Attach,
    Copy,
    ExecEcho,
    LogsFollow,
    PortForward,
    Verdict,
    Watch,
    Work,
    report,
)
from tests.faults.world import FaultWorld

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]


def all_of_them(world: FaultWorld, echo_port: int, folder: Path) -> list[Work]:
    return [
        ExecEcho(world, 1),
        ExecEcho(world, 2, spdy=True),
        LogsFollow(world, 1, pause_s=0.05),
        Attach(world, 1, pause_s=0.05),
        Watch(world, 1, pause_s=0.05),
        PortForward(world, 1, echo_port),
        Copy(world, 1, folder, size=300_000),
    ]


def test_everything_is_whole_over_a_healthy_tunnel(world: FaultWorld, echo_port: int, tmp_path: Path) -> None:
    works = all_of_them(world, echo_port, tmp_path)
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)
    assert all(judgement.carried for judgement in judgements)


def test_a_killed_relay_breaks_them_and_none_looks_whole(
    world: FaultWorld, echo_port: int, tmp_path: Path
) -> None:
    works = all_of_them(world, echo_port, tmp_path)
    # A cp that runs again afterwards would be as good as new; SPDY is known to end with exit code 0.
    works = [work for work in works if work.kind != "cp" and not work.spdy]
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        relay = world.relays["relay-0"].process
        relay.kill()
        relay.wait()
        world.until(lambda: world.connected() == [], "the hub has noticed")
    verdicts = {work.kind: work.judgement.verdict for work in works}
    assert set(verdicts.values()) == {Verdict.BROKEN}, verdicts
