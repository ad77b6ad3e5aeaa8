"""The clients and their judge: all is whole where nothing is broken, and what is broken is seen."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.clients import Verdict, every_kind, report
from tests.faults.world import FaultWorld

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]


def test_everything_is_whole_over_a_healthy_tunnel(world: FaultWorld, echo_port: int, tmp_path: Path) -> None:
    works = every_kind(world, echo_port, tmp_path, copied_bytes=300_000)
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)
    assert all(judgement.carried for judgement in judgements)


def test_a_killed_relay_breaks_them_and_none_looks_whole(
    world: FaultWorld, echo_port: int, tmp_path: Path
) -> None:
    works = every_kind(world, echo_port, tmp_path, copied_bytes=300_000)
    # A cp that runs again afterwards would be as good as new; SPDY is known to end with exit code 0.
    works = [work for work in works if work.kind != "cp" and not work.spdy]
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        # Only the next process of its name tells the hub that this one will not come back to its session.
        world.fresh_relay()
        world.until(lambda: world.streams() == 0, "nothing goes on")
    judgements = [work.judgement for work in works]
    assert {judgement.verdict for judgement in judgements} == {Verdict.BROKEN}, report(judgements)
