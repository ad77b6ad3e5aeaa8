from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.verdicts import conclude, judge


def test_more_than_is_allowed_fails_and_so_does_what_was_not_measured() -> None:
    baseline = {"a": 4.0, "b": 4.0, "c": 4.0}
    verdicts = judge({"a": 5.0, "b": 5.01}, baseline, unit="x nginx", allowed=1.25)
    assert [verdict.passed for verdict in verdicts] == [True, False, False]
    assert "5.01 x nginx, baseline 4" in str(verdicts[1])
    assert "not measured" in str(verdicts[2])


def test_a_gate_fails_by_its_file_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "baseline.json"
    conclude({"a": 2.0}, file, unit="calls", allowed=1.1, write=True)
    assert json.loads(file.read_text()) == {"a": 2.0}
    conclude({"a": 2.2}, file, unit="calls", allowed=1.1, write=False)
    with pytest.raises(SystemExit):
        conclude({"a": 2.3}, file, unit="calls", allowed=1.1, write=False)
    assert "more than 1.1 times the baseline" in capsys.readouterr().out
