from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Each of the processes takes 0.2 s of CPU, which lasts longer on a busy machine. A point in each step of each
# call is enough for the tests that always run, and on one engine: the steps are the same on both.
FEW = pytest.param("sqlite", 20, marks=pytest.mark.timeout(300))


@pytest.mark.parametrize(
    ("engine", "points"),
    [FEW, *(pytest.param(engine, 200, marks=pytest.mark.long) for engine in ("sqlite", "postgres"))],
)
def test_a_hub_that_is_killed_writes_nothing_without_grant_and_intent_and_nothing_twice(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str, points: int
) -> None:
    program = [sys.executable, "-m", "tests.proxy.hub.approvals.requests.crashes"]
    database = [request.getfixturevalue("postgres_database")] if engine == "postgres" else []
    done = subprocess.run(
        [*program, tmp_path, str(points), *database], stdout=subprocess.PIPE, text=True, check=True
    )
    crashes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(crashes) == points
    for crash in crashes:
        assert not any(crash[fault] for fault in ("without_grant", "without_intent", "twice", "open")), crash
    assert {crash["died"] for crash in crashes} == {"use", "intent", "write", "end"}
    # Of the calls whose use was not begun, or was returned, the repeat finds the grant.
    assert {crash["written"] for crash in crashes} == {0, 1, 2, 3}
    assert {crash["repeated"] for crash in crashes} == {0, 1, 2, 3}
