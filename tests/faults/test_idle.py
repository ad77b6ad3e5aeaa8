"""What says nothing for half an hour, with kubectl's own pings alone to cross the tunnel."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from tests.faults.silent import SilentExec, SilentForward
from tests.faults.world import FaultWorld

pytestmark = [pytest.mark.kubectl, pytest.mark.long]

HALF_AN_HOUR_S = 30 * 60.0


@pytest.mark.timeout(HALF_AN_HOUR_S + 120)
def test_what_is_silent_for_half_an_hour_lives(world: FaultWorld, echo_port: int) -> None:
    """Longer than each token, each idle connection and each of kubectl's own deadlines."""
    with ExitStack() as stack:
        execs = [stack.enter_context(SilentExec(world, spdy=spdy)) for spdy in (False, True)]
        forward = stack.enter_context(SilentForward(world, echo_port))
        before = world.tunnel.counts()
        began = time.monotonic()
        world.until(
            lambda: time.monotonic() - began > HALF_AN_HOUR_S, "it is over", HALF_AN_HOUR_S + 60, every_s=10.0
        )
        for each in execs:
            each.says_again()
        forward.says_again()
        assert world.tunnel.counts().opened == before.opened
