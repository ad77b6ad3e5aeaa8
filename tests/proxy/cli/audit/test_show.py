"""`hawse audit show`: all of one call, by its id or by the number of one of its rows."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from audit.ids import uuid7
from audit.record import Event, Response, utc
from audit.retention import PrunableStore
from audit.store import AuditStore
from proxy.cli.audit.commands import audit
from tests.audit.events import NOW_S, call

EID = "01a0c450-6fe8-73b1-972e-73985bc19800"


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(audit, ["show", "--data-dir", str(data_dir), *arguments])


def at(second: float) -> Event:
    now_s = NOW_S + second
    return replace(call(at_s=now_s), eid=uuid7(int(now_s * 1000), os.urandom(10)))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    first, other = replace(call(), eid=EID), at(300)
    with closing(AuditStore(tmp_path / "audit.db")) as store:
        store.append([first, other])
        store.append([first.completed(utc(NOW_S + 0.5), resp=Response(200, processed="yes"))])
    return tmp_path


@pytest.fixture(autouse=True)
def _made_when_it_happened() -> None:
    assert EID.startswith(uuid7(int(NOW_S * 1000), bytes(10))[:8])


@pytest.mark.parametrize("said", [EID, EID.upper(), EID[:13], "1", "3"])
def test_both_rows_are_shown_by_the_id_its_beginning_or_a_number(data_dir: Path, said: str) -> None:
    result = run(data_dir, said)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"event     {EID}, call"
    assert lines[1] == "request   kubectl --context prod delete pods web -n app"
    assert "ended     2026-09-21 14:13:20.500 UTC, after 500ms" in lines
    assert lines[-1] == "rows      1 (intent) and 3 (complete)"


def test_a_program_gets_the_rows_as_they_are(data_dir: Path) -> None:
    rows = [json.loads(line) for line in run(data_dir, EID, "--json").stdout.splitlines()]
    listed = CliRunner().invoke(audit, ["list", "--data-dir", str(data_dir), "--json"]).stdout.splitlines()
    assert rows == [json.loads(listed[0]), json.loads(listed[2])]


def test_a_call_that_goes_on_says_so(data_dir: Path) -> None:
    assert "status    still open" in run(data_dir, "2").stdout.splitlines()


def test_showing_is_an_event_in_the_trail(data_dir: Path) -> None:
    run(data_dir, EID[:13])
    listed = CliRunner().invoke(audit, ["list", "--data-dir", str(data_dir), "--json"]).stdout.splitlines()
    assert json.loads(listed[3])["note"] == f"audit show eid={EID[:13]}"


def test_an_id_that_the_trail_does_not_have_is_told_with_what_it_has(data_dir: Path) -> None:
    unknown = EID[:-1] + "1"
    result = run(data_dir, unknown)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"hawse: no event has the id {unknown}: the trail has 1 to 3, from 2026-09-21 14:13:20 UTC on\n"
    )
    with closing(PrunableStore(data_dir / "audit.db")) as store:
        store.append([replace(at(301), phase=call().phase)])
        ended = at(300)
        store.append([ended.completed(ended.ts)])
    assert "no event has the number 99: the trail has 1 to 5" in run(data_dir, "99").stderr
    assert run(data_dir, "01a0").exit_code == 2
    for wrong in ("x", "0", "-1", "01a0", f"{EID}0", "audit-id", str(2**63)):
        result = run(data_dir, "--", wrong)
        assert result.exit_code == 2
        assert (
            f"{wrong!r} is neither an event id nor the beginning of one: expected an id such as 0199a1b2-"
            in result.stderr
        )


def test_what_was_pruned_is_to_be_looked_for_in_an_archive(tmp_path: Path) -> None:
    old, new = at(0), at(100)
    with closing(PrunableStore(tmp_path / "audit.db")) as store:
        store.append([old, old.completed(old.ts), new, new.completed(new.ts)])
        store.prune(utc(NOW_S + 50), lambda removal: at(200))
    result = run(tmp_path, old.eid)
    assert result.exit_code == 1
    assert result.stderr == (
        f"hawse: no event has the id {old.eid}: the trail has 3 to 5, from 2026-09-21 14:15:00 UTC on; "
        "older ones were pruned: search your archives\n"
    )


def test_a_trail_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, EID)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("hawse: there is no audit trail at")
    assert "--data-dir" in result.stderr
