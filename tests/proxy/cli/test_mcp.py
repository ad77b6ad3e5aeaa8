"""`hawse mcp config`, and the page about it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.agent.mcp.clients import CLIENTS, SERVERS
from proxy.cli.group import build_group

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "mcp.md").read_text()
SHOWN = re.findall(r"<!-- hawse mcp config ([^\n]*) -->\n\n```json\n([^`]*)```\n", PAGE)
PROGRAM = "/home/you/.local/bin/hawse"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder and the home folder, and a program `hawse` on the PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("proxy.cli.mcp.shutil.which", lambda name: PROGRAM)
    return tmp_path


def config(*arguments: str) -> Result:
    return CliRunner().invoke(build_group(), ["mcp", "config", *arguments])


@pytest.mark.parametrize(("arguments", "entry"), SHOWN)
def test_the_page_has_what_the_command_prints(folder: Path, arguments: str, entry: str) -> None:
    done = config(*shlex.split(arguments))
    assert done.exit_code == 0, done.output
    assert done.stdout == entry


def test_the_page_shows_each_client_and_each_server() -> None:
    for name in CLIENTS:
        assert any(f"--client {name}" in arguments for arguments, _ in SHOWN)
    for name, version in SERVERS.items():
        assert f"{name} {version}" in PAGE
        assert any(f'"{name}@{version}"' in entry for _, entry in SHOWN)


def test_the_tests_run_the_versions_that_are_named() -> None:
    lock = json.loads((ROOT / "tests" / "clients" / "mcp" / "package-lock.json").read_text())
    installed = {
        name.removeprefix("node_modules/").removesuffix("-linux-amd64"): package["version"]
        for name, package in lock["packages"].items()
        if name.removesuffix("-linux-amd64").endswith(tuple(SERVERS))
    }
    assert installed == SERVERS


@pytest.mark.parametrize("client", CLIENTS)
def test_an_entry_is_added_once_and_nothing_else_changes(folder: Path, client: str) -> None:
    shown = json.loads(config("--client", client, "--json").stdout)
    path = Path(shown["path"])
    assert path.is_relative_to(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"mine": {"a": [1, 2.5, null]}, "servers": {"other": {}}, "mcpServers": {"other": {}}}')
    done = config("--client", client, "--write")
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"added kubernetes to {path}")
    [(section, servers)] = shown["document"].items()
    document = json.loads(path.read_text())
    assert document == {
        "mine": {"a": [1, 2.5, None]},
        "servers": {"other": {}},
        "mcpServers": {"other": {}},
        section: {"other": {}, **servers},
    }
    before = path.read_bytes()
    done = config("--client", client, "--write")
    assert (done.exit_code, done.output.splitlines()[0]) == (0, f"already there: kubernetes in {path}")
    assert not json.loads(config("--client", client, "--write", "--json").stdout)["written"]
    refused = config("--client", client, "--write", "prod")
    assert refused.exit_code == 1
    assert "never overwritten: remove it there, or choose another name with --name" in refused.output
    assert path.read_bytes() == before
    assert config("--client", client, "--write", "prod", "--name", "prod").exit_code == 0
    assert [*json.loads(path.read_text())[section]] == ["other", "kubernetes", "prod"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Prod"], "cluster"),
        (["--reason", "a\nb"], "--reason has a control character"),
        (["--reason", "x" * 201], "--reason has 201 characters, 200 is the limit"),
        (["--name", " "], "--name is empty"),
        (["--name", "a\x1b"], "--name is empty, or has a control character"),
    ],
)
def test_what_is_no_good_is_refused_in_one_line(folder: Path, arguments: list[str], said: str) -> None:
    refused = config("--write", *arguments)
    assert refused.exit_code == 1
    assert said in refused.output
    assert len(refused.output.splitlines()) == 1
    assert [*folder.iterdir()] == []


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / ".mcp.json").mkdir()
    refused = config("--write")
    assert (refused.exit_code, refused.output) == (
        1,
        f"hawse: cannot read {folder}/.mcp.json: Is a directory\n",
    )


def test_a_folder_of_hostile_name_says_nothing_to_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = folder / os.fsdecode(b"a\x1b]0;b\xff")
    hostile.mkdir()
    monkeypatch.chdir(hostile)
    shown = f"{folder}/a\\x1b]0;b\\udcff/.mcp.json"
    assert config().stderr == f"for {shown}; to add it there: --write\n"
    for said in ("added kubernetes to", "already there: kubernetes in"):
        done = config("--write")
        assert (done.exit_code, done.output.splitlines()[0]) == (0, f"{said} {shown}")
    (hostile / ".mcp.json").write_text("{} // mine")
    assert "\x1b" not in config("--write").output


def test_a_working_folder_that_was_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused = config()
    assert (refused.exit_code, refused.output) == (
        1,
        "hawse: the working folder was removed: change to another one\n",
    )


def test_two_commands_at_once_lose_no_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    replace, tried = os.replace, []

    def replace_while_locked(temporary: str, target: str) -> None:
        """Try to take the lock as another command would, after this one has read the file."""
        with (folder / "cache" / "hawse" / "mcp.lock").open("rb+") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried.append(target)
        replace(temporary, target)

    monkeypatch.setattr("proxy.agent.local.files.os.replace", replace_while_locked)
    assert config("--write").exit_code == 0
    assert tried == [str(folder / ".mcp.json")]
