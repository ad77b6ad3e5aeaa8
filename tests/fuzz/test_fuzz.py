from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.fuzz import peer
from tests.fuzz.__main__ import run
from tests.fuzz.mutation import ANSWERS, CALLS, CANONICAL, CHUNKS, REQUESTS, RESPONSES


def test_mutated_heads_and_bodies_are_read_as_h11_and_the_rules_want_it():
    done = run(4000, seed=int.from_bytes(os.urandom(4)))
    assert sum(done.values()) == 4000


async def test_a_hub_goes_on_whatever_another_one_sends(autojump_clock: MockClock) -> None:
    done = await peer.run(200, seed=int.from_bytes(os.urandom(4)))
    assert sum(done.values()) == 400


@pytest.mark.long
def test_a_million_mutated_heads_and_bodies_are():
    run(1_000_000, seed=1)


@pytest.mark.long
def test_what_coverage_leads_to_is_read_alike_too(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed: pip install '.[fuzz]'")
    for kind, seeds in (
        (b"\x00", REQUESTS),
        (b"\x60", RESPONSES),
        (b"\xa0", CANONICAL),
        (b"\xc0\x00", CHUNKS),
        (b"\xd0\x00", CALLS),
        (b"\xe8\x00", ANSWERS),
    ):
        for number, seed in enumerate(seeds):
            (tmp_path / f"{kind.hex()}-{number}").write_bytes(kind + seed)
    arguments = ["-runs=300000", "-max_len=600", f"-artifact_prefix={tmp_path}/", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
