"""The script that kubectl runs, under several shells: what it answers itself, and what it passes on."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from proxy.agent.local.account import Account, logins_path, save_account
from tests.fakes.hub import FakeHub
from tests.proxy.agent.conftest import API_KEY, Home
from tests.proxy.agent.token.exec_info import NO_CLUSTER, V1, exec_info

PLUGIN = Path(sys.executable).parent / "hawse-credential"
SOURCE = Path(__file__).parents[4] / "proxy/agent/hawse-credential"
# The system's shell, and others that are installed.
SHELLS = [found for found in map(shutil.which, ("sh", "bash", "busybox")) if found is not None]


def run(home: Home, argv: list[str], info: str | None) -> subprocess.CompletedProcess[str]:
    environment = home.environment | ({} if info is None else {"KUBERNETES_EXEC_INFO": info})
    # Not in the checkout: without a program `hawse`, bash would take the folder `hawse` for it.
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, cwd=home.path)


def ask(home: Home, info: str | None, *arguments: str) -> str:
    """Run the plugin as kubectl does."""
    done = run(home, [str(PLUGIN), *arguments], info)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def write_script(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@attrs.frozen
class Alone:
    """The script under a shell that finds no other program of Hawse."""

    home: Home
    folder: Path
    shell: str

    def ask(self, info: str | None, *arguments: str, **variables: str) -> str | None:
        """Return the script's own answer; None if it would run `hawse credential`."""
        script = shutil.copy(SOURCE, self.folder)
        shell = [self.shell, "sh"] if self.shell.endswith("busybox") else [self.shell]
        # The kernel passes the script's full path, so this must too.
        home = attrs.evolve(
            self.home, environment=self.home.environment | {"PATH": "/usr/bin:/bin"} | variables
        )
        done = run(home, [*shell, script, *arguments], info)
        if done.returncode == 0:
            assert done.stderr == ""
            return done.stdout
        assert (done.returncode, done.stdout) == (127, "")
        assert "hawse" in done.stderr
        assert done.stderr.count("\n") == 1, "what is not there is no error"
        return None


@pytest.fixture(params=SHELLS)
def alone(home: Home, tmp_path: Path, request: pytest.FixtureRequest) -> Alone:
    folder = tmp_path / "alone"
    folder.mkdir()
    return Alone(home, folder, request.param)


def kept(home: Home) -> Path:
    (path,) = answers(home)
    return path


def answers(home: Home) -> list[Path]:
    return [file for file in home.files() if file.parent.name == "answers"]


def test_the_script_that_is_installed_is_the_one_here() -> None:
    assert PLUGIN.read_bytes() == SOURCE.read_bytes()
    assert os.access(PLUGIN, os.X_OK)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("end", ["\n", ""])
def test_an_answer_is_given_again_without_python(alone: Alone, hub: FakeHub, end: str) -> None:
    # As written by kubectl, and by Python's clients.
    spaced = exec_info(hub.url)
    for info in (spaced + end, json.dumps(json.loads(spaced), separators=(",", ":")) + end):
        assert alone.ask(info) is None
        answer = ask(alone.home, info)
        assert json.loads(answer)["status"]["token"] == "token-1-prod"
        assert alone.ask(info) == answer
    assert hub.token_calls == 1
    # One answer for each way of writing it.
    assert len(answers(alone.home)) == 2
    for path in answers(alone.home):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert API_KEY not in path.read_text()


@pytest.mark.usefixtures("account")
def test_questions_in_turn_each_keep_their_answer(alone: Alone, hub: FakeHub) -> None:
    sdk = ("--server", f"{hub.url}/clusters/prod")
    questions: list[tuple[str | None, tuple[str, ...]]] = [
        (exec_info(hub.url), ()),
        (exec_info(hub.url, "dev"), ()),
        (exec_info(hub.url).replace("/prod", "/prod/"), ()),
        # kubectl without a terminal, an older client, and a client that says nothing.
        (exec_info(hub.url).replace("true", "false"), ()),
        (exec_info(hub.url, api_version="client.authentication.k8s.io/v1beta1"), ()),
        (None, sdk),
        (NO_CLUSTER, sdk),
    ]
    given = [ask(alone.home, info, *arguments) for info, arguments in questions]
    assert hub.token_calls == 2
    for _ in range(2):
        assert [alone.ask(info, *arguments) for info, arguments in questions] == given


@pytest.mark.usefixtures("account")
def test_a_client_that_says_nothing_is_told_apart_by_its_argument(alone: Alone, hub: FakeHub) -> None:
    arguments = ("--server", f"{hub.url}/clusters/dev")
    answer = ask(alone.home, None, *arguments)
    assert json.loads(answer)["status"]["token"] == "token-1-dev"
    assert alone.ask(None, *arguments) == answer
    assert alone.ask(exec_info(hub.url, "dev"), *arguments) is None
    assert alone.ask(None, "--server", f"{hub.url}/clusters/prod") is None
    assert alone.ask(None) is None
    # A client that states a version but no cluster gets its own answer, in that version.
    own = ask(alone.home, NO_CLUSTER, *arguments)
    assert json.loads(own)["apiVersion"] == V1
    assert alone.ask(NO_CLUSTER, *arguments) == own
    assert alone.ask(None, *arguments) == answer


@pytest.mark.usefixtures("account")
def test_the_folders_are_found_as_python_finds_them(alone: Alone, hub: FakeHub) -> None:
    home = alone.home
    info = exec_info(hub.url)
    Path(home.environment.pop("XDG_CONFIG_HOME")).rename(home.path / ".config")
    del home.environment["XDG_CACHE_HOME"]
    answer = ask(home, info)
    assert kept(home).is_relative_to(home.path / ".cache/hawse/answers")
    for variables in ({}, {"XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}, {"XDG_CACHE_HOME": ""}):
        assert alone.ask(info, **variables) == answer


@pytest.mark.usefixtures("account")
def test_a_login_behind_a_link_is_known_by_its_file(alone: Alone, hub: FakeHub) -> None:
    # The layout of a mounted secret in a pod.
    info = exec_info(hub.url)
    link = Path(logins_path(alone.home.environment))
    file = link.rename(link.with_name("mounted"))
    link.symlink_to(file)
    answer = ask(alone.home, info)
    assert alone.ask(info) == answer
    file.rename(link.with_name("before"))
    shutil.copy2(link.with_name("before"), file)
    assert alone.ask(info) is None


@pytest.mark.usefixtures("account")
def test_without_home_nothing_is_found(alone: Alone, hub: FakeHub) -> None:
    info = exec_info(hub.url)
    ask(alone.home, info)
    login = kept(alone.home).read_text().splitlines()[1]
    # Python then looks up the user's home; a shell would use the file system's root.
    stat = write_script(alone.folder / "stat", f'case $3 in /.config/*) echo "{login}" ;; esac')
    alone.home.environment.pop("HOME")
    path = f"{stat.parent}:/usr/bin:/bin"
    assert alone.ask(info, XDG_CONFIG_HOME="", PATH=path) is None


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("variable", [{"SHELLOPTS": "allexport:xtrace"}, {"answer": "before"}])
def test_the_environment_has_no_token_traced_or_handed_on(
    alone: Alone, hub: FakeHub, variable: dict[str, str]
) -> None:
    info = exec_info(hub.url)
    answer = ask(alone.home, info)
    seen = alone.folder / "environment"
    date = write_script(alone.folder / "date", f'env >"{seen}"; exec /bin/date "$@"')
    assert alone.ask(info, PATH=f"{date.parent}:/usr/bin:/bin", **variable) == answer
    # Busybox has its own `date`.
    assert not seen.exists() or "token-1-prod" not in seen.read_text()


@pytest.mark.usefixtures("account")
def test_another_question_is_asked_anew(alone: Alone, hub: FakeHub) -> None:
    ask(alone.home, exec_info(hub.url))
    for other in (
        exec_info(hub.url, "dev"),
        exec_info(hub.url, api_version="client.authentication.k8s.io/v1beta1"),
        exec_info(hub.url).replace("AA==", "AAA="),
        exec_info(hub.url) + "\n\n",
        exec_info(hub.url.replace("127.0.0.1", "localhost")),
        exec_info("https://.."),
        "{",
    ):
        assert alone.ask(other) is None


def other_login(home: Home, account: Account) -> None:
    save_account(home.environment, account._replace(serial="serial-2"))


def older_login(home: Home, account: Account) -> None:
    """Replace the file by one that is older than the answer, as restored from a backup."""
    before = Path(logins_path(home.environment))
    other_login(home, account)
    os.utime(before, (1, 1))


def edited_login(home: Home, account: Account) -> None:
    """Change the file in place, and restore its times."""
    path = Path(logins_path(home.environment))
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def no_login(home: Home, account: Account) -> None:
    Path(logins_path(home.environment)).unlink()


@pytest.mark.parametrize("change", [other_login, older_login, edited_login, no_login])
def test_an_answer_is_only_for_the_login_that_got_it(
    alone: Alone, hub: FakeHub, account: Account, change: Callable[[Home, Account], None]
) -> None:
    info = exec_info(hub.url)
    ask(alone.home, info)
    assert alone.ask(info) is not None
    change(alone.home, account)
    assert alone.ask(info) is None


@pytest.mark.usefixtures("account")
def test_an_answer_of_no_login_is_not_given_where_there_is_none(alone: Alone, hub: FakeHub) -> None:
    info = exec_info(hub.url)
    ask(alone.home, info)
    changed(1, "")(kept(alone.home))
    Path(logins_path(alone.home.environment)).unlink()
    assert alone.ask(info) is None


@pytest.mark.usefixtures("account")
def test_two_agents_that_share_a_cache_get_their_own(alone: Alone, hub: FakeHub, account: Account) -> None:
    info = exec_info(hub.url)
    ask(alone.home, info)
    other = {"XDG_CONFIG_HOME": str(alone.home.path / "other")}
    save_account(alone.home.environment | other, account._replace(serial="serial-2"))
    assert alone.ask(info, **other) is None


def changed(line: int, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[line] = text
        path.write_text("\n".join(lines) + "\n")

    return change


def later(seconds: int) -> Callable[[Path], None]:
    """Write the answer as it would be if the clock had been set back this far since."""

    def change(path: Path) -> None:
        until_s, started_s = map(int, path.read_text().splitlines()[0].split())
        changed(0, f"{until_s + seconds} {started_s + seconds}")(path)

    return change


def ending(in_s: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        _, started_s = path.read_text().splitlines()[0].split()
        changed(0, f"{int(time.time()) + in_s} {started_s}")(path)

    return change


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize(
    "change",
    [
        ending(-1),
        ending(70),
        later(-60),
        later(-14),
        later(+60),
        later(+14),
        lambda path: changed(0, path.read_text().split()[0])(path),
        changed(0, ""),
        changed(0, "soon"),
        changed(0, "$(date +%s)"),
        changed(1, ""),
        lambda path: path.write_text(""),
        lambda path: path.write_text(path.read_text()[:-9]),
        lambda path: path.write_bytes(bytes(range(256)) * 9),
        lambda path: os.chown(path, 65534, -1),
    ],
    ids=[
        "over",
        "too long",
        "past",
        "near past",
        "future",
        "near future",
        "no start",
        "no time",
        "words",
        "a command",
        "no login",
        "empty",
        "short",
        "bytes",
        "another's",
    ],
)
def test_an_answer_that_is_not_just_so_is_not_given(
    alone: Alone, hub: FakeHub, change: Callable[[Path], None]
) -> None:
    info = exec_info(hub.url)
    answer = ask(alone.home, info)
    assert alone.ask(info) == answer
    change(kept(alone.home))
    assert alone.ask(info) is None
    # The script also repairs it.
    assert ask(alone.home, info) == answer
    assert alone.ask(info) == answer


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("more", ["\u00e9", "\\n", "\\u001b[2J"])
def test_a_question_or_answer_that_a_shell_might_read_otherwise_is_not_kept(
    home: Home, hub: FakeHub, more: str
) -> None:
    info = json.loads(exec_info(hub.url))
    info["spec"]["cluster"]["config"] = more
    ask(home, json.dumps(info, ensure_ascii=False, indent=1))
    assert not answers(home)


@pytest.mark.usefixtures("account")
def test_an_answer_that_cannot_be_kept_is_given_all_the_same(home: Home, hub: FakeHub) -> None:
    cache = Path(home.environment["XDG_CACHE_HOME"], "hawse")
    cache.mkdir(parents=True)
    (cache / "answers").touch()
    assert json.loads(ask(home, exec_info(hub.url)))["status"]["token"] == "token-1-prod"
    assert not answers(home)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("linked", [False, True])
def test_the_command_is_the_one_beside_it_whatever_the_path(
    home: Home, hub: FakeHub, tmp_path: Path, linked: bool
) -> None:
    home.environment["PATH"] = "/usr/bin:/bin"
    plugin = tmp_path / "link"
    plugin.symlink_to(PLUGIN)
    done = run(home, [str(plugin if linked else PLUGIN)], exec_info(hub.url))
    assert json.loads(done.stdout)["status"]["token"] == "token-1-prod"


def test_what_it_does_not_know_is_for_the_command_behind_it(home: Home) -> None:
    done = run(home, [str(PLUGIN), "--help"], None)
    assert done.returncode == 0
    assert "KUBERNETES_EXEC_INFO" in done.stdout
    done = run(home, [str(PLUGIN)], None)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hawse: KUBERNETES_EXEC_INFO is not set")
