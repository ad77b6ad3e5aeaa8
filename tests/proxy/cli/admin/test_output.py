from __future__ import annotations

import io
import sys

import click
import pytest

from proxy.cli.admin.output import confirm


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_a_person_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    confirm("Remove it?", yes=False)
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    with pytest.raises(click.Abort):
        confirm("Remove it?", yes=False)
    shown = capsys.readouterr()
    assert shown.err.count("Remove it? [y/N]:") == 2
    assert "Remove" not in shown.out


def test_whoever_said_yes_and_a_program_are_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    confirm("Remove it?", yes=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    confirm("Remove it?", yes=False)
    assert capsys.readouterr() == ("", "")
