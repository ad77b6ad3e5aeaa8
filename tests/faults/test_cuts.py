"""The tunnel is cut, again and again, and nobody who uses it notices anything but the wait."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from tests.faults.clients import Judgement, Verdict, Work, every_kind, report
from tests.faults.control import Way
from tests.faults.figures import note
from tests.faults.pipe import End
from tests.faults.world import FaultWorld

pytestmark = [pytest.mark.kubectl]

# The first dial comes within a second, the next ones 1 to 2 s apart, each of 5 s at most.
BACK_WITHIN_S = 10.0
# In all, by some lanes at once.
CUTS = 1000
LANES = 4


@attrs.define
class Cutter:
    """Breaks the tunnel of a world in one way after another."""

    world: FaultWorld
    random: random.Random
    outage_max_s: float
    kinds: Counter[str] = attrs.Factory(Counter)
    away_s: float = 0.0
    """How long there was no tunnel, in all."""

    def cut(self) -> None:
        """Cut once, and wait until the relay is back."""
        link, chosen = self.world.tunnel, self.random
        how, outage_s, before = chosen.choice(list(End)), self._outage_s(), link.counts()
        if outage_s:
            self.kinds["outage"] += 1
            link.refuse(outage_s)
        if chosen.random() < 0.7:
            self.kinds["mid-stream"] += 1
            # To the byte, and in the middle of a frame more often than not.
            link.cut(how, way=chosen.choice([Way.UP, Way.DOWN]), after=chosen.randrange(20_000))
            self.world.until(lambda: link.counts().cut > before.cut, "so many bytes have moved", every_s=0.02)
        else:
            link.cut(how)
        began = time.monotonic()
        self.world.until(
            lambda: link.counts().opened > before.opened and link.counts().live,
            "the relay has dialled",
            outage_s + BACK_WITHIN_S,
            every_s=0.02,
        )
        self.away_s += time.monotonic() - began

    def _outage_s(self) -> float:
        """None, mostly; else a few seconds, mostly."""
        draw = self.random.random()
        if draw < 0.8:
            return 0.0
        return self.random.uniform(0.2, 5.0 if draw < 0.98 else self.outage_max_s)


def break_and_judge(
    world: FaultWorld, works: list[Work], cuts: int, seed: int, *, outage_max_s: float
) -> tuple[list[Judgement], Cutter]:
    cutter = Cutter(world, random.Random(seed), outage_max_s)
    with ExitStack() as stack:
        for work in works:
            stack.enter_context(work)
        for _ in range(cuts):
            cutter.cut()
            time.sleep(cutter.random.uniform(0.0, 1.0))
    return [work.judgement for work in works], cutter


@pytest.mark.timeout(180)
def test_a_few_cuts_break_nothing(world: FaultWorld, echo_port: int, tmp_path: Path) -> None:
    works = every_kind(world, echo_port, tmp_path, copied_bytes=1_000_000)
    judgements, cutter = break_and_judge(world, works, 4, 1, outage_max_s=2.0)
    assert {judgement.verdict for judgement in judgements} == {Verdict.WHOLE}, report(judgements)
    assert all(judgement.carried for judgement in judgements)
    assert cutter.kinds["mid-stream"]


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("lane", range(LANES))
def test_a_thousand_cuts_break_nothing(world: FaultWorld, echo_port: int, tmp_path: Path, lane: int) -> None:
    works = every_kind(world, echo_port, tmp_path, copied_bytes=1_000_000)
    judgements, cutter = break_and_judge(world, works, CUTS // LANES, 100 + lane, outage_max_s=40.0)
    broken = [judgement for judgement in judgements if judgement.verdict is not Verdict.WHOLE]
    note(
        "cuts of the tunnel under exec, attach, port-forward, logs -f, watch and cp",
        f"lane {lane}",
        cuts=CUTS // LANES,
        broken_streams=len(broken),
        carried_mb=round(sum(judgement.carried for judgement in judgements) / 1e6, 1),
        away_s=round(cutter.away_s, 1),
        **cutter.kinds,
    )
    assert not broken, report(judgements)
    assert all(judgement.carried for judgement in judgements)
