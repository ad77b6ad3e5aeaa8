from __future__ import annotations

import trio

from proxy.process.metrics.loop_lag import EVERY_S, SAMPLES, LoopLag


async def test_an_idle_loop_is_not_late(autojump_clock: trio.testing.MockClock) -> None:
    lag = LoopLag()
    assert lag.p99_s == 0
    with trio.move_on_after(60):
        await lag.run()
    assert lag.p99_s < 0.001


async def test_the_99th_percentile_leaves_the_worst_sample_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lag = LoopLag()

    async def run_for(samples: float) -> None:
        with trio.move_on_after(samples * EVERY_S):
            await lag.run()

    async def block(seconds: float) -> None:
        # As a long computation does: time passes, and no task runs.
        await trio.sleep(EVERY_S / 2)
        autojump_clock.jump(EVERY_S / 2 + seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, 3)
        await block(0.3)
    assert 0.29 < lag.p99_s < 0.31
    # A minute later it is forgotten.
    await run_for(SAMPLES + 1)
    assert lag.p99_s < 0.001
