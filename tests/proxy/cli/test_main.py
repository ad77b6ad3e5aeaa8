from __future__ import annotations

import errno
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from proxy.cli import group, main
from proxy.cli.group import COMMANDS, build_group
from tests.auth.policies import policy
from tests.fakes.cli import groups


def test_the_help_names_every_command_and_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, _, _ in COMMANDS.values():
        monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(build_group(), ["--help"])
    assert result.exit_code == 0
    assert all(line.split(" ")[0] in result.stdout for _, _, line in COMMANDS.values())
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("admin agent delete x", "Did you mean `hawse admin agent remove`?"),
        ("admin agent key delete x", "Did you mean `hawse admin agent key revoke`?"),
        ("admin describe agent x", "The noun comes first, as in `hawse admin team show`."),
        ("admin get agents", "The noun comes first, as in `hawse admin team list`."),
        ("admin grant prod platform", "Did you mean `hawse admin cluster grant`?"),
        ("admin agent list -o yaml", "Did you mean '--json'?"),
        ("admin policy apply -f x.yaml", "Files are plain arguments here: leave the option out."),
        ("admin team list --config hub.toml", "an option of `hawse admin`: put it right after those words."),
        ("audit --data-dir x list", "Put it after the command, as in `hawse audit list --data-dir`."),
        ("audit tail", "Did you mean `hawse audit list`?"),
        ("whoami", "Did you mean `hawse status`?"),
        ("admin teams list", "Did you mean 'team'?"),
    ],
)
def test_words_of_other_command_lines_are_answered_with_what_is_typed_here(words: str, advice: str) -> None:
    result = CliRunner().invoke(build_group(), words.split(), prog_name="hawse")
    assert result.exit_code == 2
    assert result.stderr.endswith(f"{advice}\n")
    assert "Usage: hawse" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    result = CliRunner().invoke(build_group(), [name, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: hawse {name} ")


@pytest.mark.parametrize("path", [path for name in ("admin", "audit") for path in groups(name)])
def test_what_a_group_says_of_its_commands_is_not_cut(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build_group(), [*path, "--help"])
    assert result.exit_code == 0
    _, listed = result.stdout.split("\nCommands:\n")
    assert "..." not in listed


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("adminn", "No such command 'adminn'. Did you mean 'admin'?"),
        ("kubeconf", "No such command 'kubeconf'. Did you mean 'kubeconfig'?"),
        ("x", "No such command 'x'."),
        ("--no", "No such option '--no'."),
    ],
)
def test_what_is_mistyped_is_told_with_what_is_near(typed: str, told: str) -> None:
    result = CliRunner().invoke(build_group(), [typed])
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: {told}\n")


@pytest.mark.parametrize(
    ("args", "module", "package"),
    [
        (["audit", "list"], "audit.names", "msgspec"),
        (["hub"], "proxy.hub.serve", "sqlalchemy"),
        (["admin", "backup", "FILE"], "proxy.hub.admin.data.backup", "sqlalchemy"),
    ],
)
def test_a_package_of_the_hub_that_is_missing_is_told_in_one_line(
    args: list[str], module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, path: object = None, target: object = None) -> None:
        if name == module:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    class Finder:
        find_spec = staticmethod(refuse)

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    result = CliRunner().invoke(build_group(), args)
    assert result.exit_code == 1
    assert result.stderr == (
        f"hawse: this command needs the package {package}: "
        f"install 'hawse-{version('hawse')}-py3-none-any.whl[hub]' by uv, pipx or pip\n"
    )


# As in an image without some packages.
LEFT_OUT = """
import sys

part = sys.argv.pop(1)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == part:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder)
from proxy.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("part", "args"),
    [("audit", ["audit", "list"]), ("proxy.hub", ["hub"]), ("proxy.hub", ["admin", "team", "list"])],
)
def test_a_command_that_the_relays_image_leaves_out_says_so(part: str, args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OUT, part, *args], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "hawse: this command is not in the relay's image: run it where the hub is installed\n",
    )


def test_a_module_of_ours_that_is_missing_is_not_blamed_on_the_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "proxy.hub.serve", None)
    result = CliRunner().invoke(build_group(), ["hub"])
    assert isinstance(result.exception, ModuleNotFoundError)


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["policy"]])
def test_a_disk_that_is_full_is_told_in_one_line(args: list[str], tmp_path: Path) -> None:
    if args == ["policy"]:
        rules = tmp_path / "policy.yaml"
        rules.write_text(policy("- {id: look, effect: allow, verbs: [read], resources: [pods]}"))
        args = ["admin", "policy", "test", "--json", str(rules)]
    # A failed write then leaves no buffered output that would fail again at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hawse", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
    assert done.stderr == b"hawse: cannot write: No space left on device\n"
    assert done.returncode == 1


def test_a_file_on_a_disk_that_is_full_is_named_where_there_is_no_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*, prog_name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/hub.db")

    monkeypatch.setattr(group, "build_group", lambda: fail)
    # Python's value if a process starts with its stdout closed.
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["hawse", "hub"])
    with pytest.raises(SystemExit, match=r"^hawse: cannot write /data/hub\.db: No space left on device$"):
        main.main()


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(build_group(), ["--version"])
    assert result.stdout == version("hawse") + "\n"


# Interrupts as soon as a module is imported.
INTERRUPTED_AT_IMPORT = """
import os, signal, sys

awaited = sys.argv.pop(1)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == awaited:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
from proxy.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("proxy.agent.token.credential", ["credential"]),
        ("json", ["credential", "--server", "https://hub.example/clusters/prod"]),
        ("click", ["--help"]),
        ("proxy.cli.admin", ["admin", "team", "list"]),
        ("trio", ["hub"]),
    ],
)
def test_ctrl_c_at_the_start_is_no_fault(module: str, args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_IMPORT, module, *args], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("path", ["", "admin", "admin agent key list", "audit list"])
def test_h_is_help_at_every_depth(path: str) -> None:
    # In its own process: a command keeps the help options of its first invocation, and other
    # tests invoke commands without the top group that sets those options.
    done = subprocess.run(
        [sys.executable, "-m", "hawse", *path.split(), "-h"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"Usage: hawse {path}".rstrip())
    assert "-h, --help" in done.stdout


def test_no_command_has_another_use_for_h() -> None:
    def options(command: click.Command) -> set[str]:
        own = {name for parameter in command.params for name in parameter.opts}
        if not isinstance(command, click.Group):
            return own
        found = (
            command.get_command(click.Context(command), name)
            for name in command.list_commands(click.Context(command))
        )
        return own.union(*(options(each) for each in found if each is not None))

    assert "--cluster" in options(build_group())
    assert "-h" not in options(build_group())
