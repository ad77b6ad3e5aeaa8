"""`hawse admin cluster rbac --output-dir`: a file for each cluster, as a platform team keeps them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.admin.cluster.role_files import Found, Given, Options, first_line, parse_first_line, planned
from proxy.cli.errors import CommandError
from proxy.cli.output import Object
from tests.proxy.cli.admin.conftest import Hub

ALL = ("cluster", "rbac", "--all", "--output-dir")
SLUGS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@pytest.fixture
async def folder(hub: Hub, tmp_path: Path) -> Path:
    """A folder, and a hub with three clusters, one of them without a team."""
    await hub.ok("team", "add", "sre")
    await hub.ok("cluster", "add", "prod", "--team", "sre")
    await hub.ok("cluster", "add", "stage", "--team", "sre")
    await hub.ok("cluster", "add", "bare")
    folder = tmp_path / "rbac"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(SLUGS, st.builds(Options, SLUGS, SLUGS, st.booleans(), st.booleans()))
def test_a_first_line_is_read_back(cluster: str, options: Options) -> None:
    line = first_line(cluster, options)
    assert parse_first_line(line) == (cluster, options)
    for other in (f"{line} --more", f"{line}\r", f" {line}", line.replace("Written", "Made")):
        assert parse_first_line(other) is None


@given(st.text())
def test_another_first_line_marks_no_file(line: str) -> None:
    assert parse_first_line(line) is None


async def test_one_command_writes_what_an_added_agent_changes(hub: Hub, folder: Path) -> None:
    wrote = await hub.ok(*ALL, str(folder))
    assert wrote.stdout == ""
    assert wrote.stderr == (
        f"wrote {folder}/bare.yaml\nwrote {folder}/prod.yaml\nwrote {folder}/stage.yaml\n"
        "wrote 3 files, 0 are as they were\n"
        "apply each to its own cluster: the objects have the same names in all clusters\n"
    )
    before = contents(folder)
    assert sorted(before) == ["bare.yaml", "prod.yaml", "stage.yaml"]
    inodes = {name: (folder / name).stat().st_ino for name in before}
    assert (await hub.ok(*ALL, str(folder))).stderr == "wrote 0 files, 3 are as they were\n"
    assert (await hub.ok(*ALL, str(folder), "--check")).output == ""

    await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    checked = await hub.run(*ALL, str(folder), "--check")
    assert checked.exit_code == 3
    assert checked.stdout == f"behind   {folder}/prod.yaml\nbehind   {folder}/stage.yaml\n"
    assert checked.stderr == (
        f"hawse: not up to date in {folder}: 2 of 3 files; run the same command without --check\n"
    )
    assert contents(folder) == before
    assert "wrote 2 files, 1 is as it was\n" in (await hub.ok(*ALL, str(folder))).stderr
    after = contents(folder)
    assert after["bare.yaml"] == before["bare.yaml"]
    assert (folder / "bare.yaml").stat().st_ino == inodes["bare.yaml"]
    # The only difference is the agent's name.
    new = set(after["prod.yaml"].splitlines()) - set(before["prod.yaml"].splitlines())
    assert [line.strip() for line in new if b"agent" in line] == [b'- "agent:sre-1"']
    assert (await hub.ok(*ALL, str(folder), "--check")).output == ""


async def test_a_file_holds_what_is_printed_and_its_origin(hub: Hub, folder: Path) -> None:
    await hub.ok(*ALL, str(folder), "--namespace", "tools", "--service-account", "r", "--constrained")
    mark, note, body = (folder / "prod.yaml").read_text().split("\n", 2)
    command = "cluster rbac prod --namespace tools --service-account r --constrained"
    assert mark == f"# Written by: hawse admin {command}"
    assert note == "# For cluster prod alone. Edits are overwritten: run the command again instead."
    assert body == (await hub.ok(*command.split())).stdout


async def test_each_file_keeps_the_options_it_was_written_with(hub: Hub, folder: Path) -> None:
    one = ("cluster", "rbac", "stage", "--output-dir", str(folder))
    await hub.ok(*one, "--namespace", "tools", "--constrained")
    assert sorted(contents(folder)) == ["stage.yaml"]
    await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    await hub.ok(*ALL, str(folder))

    def place(cluster: str) -> object:
        _, binding = yaml.safe_load_all((folder / f"{cluster}.yaml").read_bytes())
        return binding["subjects"][0]["namespace"]

    assert (place("stage"), place("prod")) == ("tools", "hawse")
    assert b"impersonate:user-info" in (folder / "stage.yaml").read_bytes()
    # An option that is given counts for all files, and the others stay.
    await hub.ok(*ALL, str(folder), "--namespace", "other")
    assert (place("stage"), place("prod")) == ("other", "other")
    assert b"impersonate:user-info" in (folder / "stage.yaml").read_bytes()
    # With a name, the options are those that are given.
    await hub.ok(*one)
    assert place("stage") == "hawse"
    assert b"impersonate:user-info" not in (folder / "stage.yaml").read_bytes()


async def test_a_file_of_a_removed_cluster_is_named_and_left(hub: Hub, folder: Path) -> None:
    await hub.ok(*ALL, str(folder))
    await hub.ok("cluster", "remove", "stage", "--yes")
    (folder / "kustomization.yaml").write_text("resources: [prod.yaml]\n")
    (folder / "prod-copy.yaml").write_bytes((folder / "prod.yaml").read_bytes())
    (folder / "prod.yaml").unlink()
    checked = await hub.run(*ALL, str(folder), "--check")
    assert checked.exit_code == 3
    assert checked.stdout == f"missing  {folder}/prod.yaml\ngone     {folder}/stage.yaml\n"
    assert checked.stderr == (
        f"hawse: not up to date in {folder}: 2 of 3 files; run the same command without --check, "
        "and delete the files of clusters that are gone\n"
    )
    wrote = await hub.ok(*ALL, str(folder))
    assert f"left {folder}/stage.yaml: the hub has no cluster stage; delete the file" in wrote.stderr
    assert (folder / "stage.yaml").exists()
    assert (await hub.run(*ALL, str(folder), "--check")).exit_code == 3
    (folder / "stage.yaml").unlink()
    assert (await hub.ok(*ALL, str(folder), "--check")).output == ""


async def test_edits_of_its_own_file_are_overwritten(hub: Hub, folder: Path) -> None:
    await hub.ok(*ALL, str(folder))
    before = contents(folder)
    path = folder / "prod.yaml"
    path.write_bytes(before["prod.yaml"] + b"# more\n")
    assert (await hub.run(*ALL, str(folder), "--check")).stdout == f"behind   {path}\n"
    await hub.ok(*ALL, str(folder))
    assert contents(folder) == before


async def test_nothing_of_other_origin_is_touched(hub: Hub, folder: Path, tmp_path: Path) -> None:
    # The last by name, so that a file written before it would show.
    path, elsewhere = folder / "stage.yaml", tmp_path / "elsewhere"
    own = first_line("stage", Options()) + "\n"
    elsewhere.write_text(own)
    foreign = "was not written by this command for cluster stage"
    cases: list[tuple[Callable[[], object], Callable[[], None], str]] = [
        (lambda: path.write_text("kind: ConfigMap\n"), path.unlink, foreign),
        (path.touch, path.unlink, foreign),
        (lambda: path.write_text(first_line("prod", Options(namespace="n")) + "\n"), path.unlink, foreign),
        (lambda: path.symlink_to(elsewhere), path.unlink, "is a symbolic link"),
        (lambda: path.symlink_to(tmp_path / "nowhere"), path.unlink, "is a symbolic link"),
        (path.mkdir, path.rmdir, "is not a regular file"),
        (lambda: os.mkfifo(path), path.unlink, "is not a regular file"),
    ]
    for make, remove, said in cases:
        make()
        for flags in ((), ("--check",)):
            line = await hub.fails(*ALL, str(folder), *flags)
            assert line == f"hawse: {path} {said}: move it away, or choose another --output-dir\n"
            assert os.listdir(folder) == ["stage.yaml"]
        remove()
    assert elsewhere.read_text() == own


async def test_a_folder_that_is_missing_or_cannot_be_written(hub: Hub, folder: Path) -> None:
    missing = folder / "misspelt"
    line = await hub.fails(*ALL, str(missing))
    assert line == f"hawse: the folder {missing} does not exist: create it, or correct --output-dir\n"
    # Not even root can write there.
    line = await hub.fails(*ALL, "/proc/self")
    assert line.startswith("hawse: cannot write /proc/self/bare.yaml: ")
    assert line.endswith("; correct that, and run the command again\n")
    (folder / "file").touch()
    assert "is a file" in await hub.fails(*ALL, str(folder / "file"), code=2)


async def test_a_path_that_the_system_refuses_is_named(hub: Hub, folder: Path) -> None:
    line = await hub.fails(*ALL, "x" * 300)
    assert line == f"hawse: cannot read {'x' * 300}: File name too long\n"
    # The folder's path is within the limit of 4095 bytes, and the paths of its files are not.
    deep = folder
    while (left := 4090 - len(os.fsencode(deep))) > 1:
        deep /= "d" * min(200, left - 1)
    deep.mkdir(parents=True)
    assert await hub.fails(*ALL, str(deep)) == f"hawse: cannot read {deep}/bare.yaml: File name too long\n"


async def test_programs_get_json(hub: Hub, folder: Path) -> None:
    await hub.ok("cluster", "rbac", "prod", "--output-dir", str(folder))
    (folder / "old.yaml").write_text(first_line("old", Options()) + "\n")
    checked = await hub.run(*ALL, str(folder), "--check", "--json")
    assert checked.exit_code == 3
    files = [
        {"cluster": "bare", "file": "bare.yaml", "found": "missing"},
        {"cluster": "prod", "file": "prod.yaml", "found": "unchanged"},
        {"cluster": "stage", "file": "stage.yaml", "found": "missing"},
        {"cluster": "old", "file": "old.yaml", "found": "gone"},
    ]
    expected = {"output_dir": str(folder), "written": 0, "files": files}
    assert yaml.safe_load(checked.stdout) == expected
    assert await hub.json(*ALL, str(folder)) == {**expected, "written": 2}


async def test_an_empty_name_is_not_all(hub: Hub, folder: Path) -> None:
    await hub.fails("cluster", "rbac", "", "--output-dir", str(folder))
    assert contents(folder) == {}


async def test_an_operator_elsewhere_writes_the_same_files(hub: Hub, folder: Path) -> None:
    await hub.ok(*ALL, str(folder))
    assert (await hub.ok(*ALL, str(folder), "--check", env=hub.elsewhere())).output == ""


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--all",),
        ("prod", "--all", "--output-dir", "."),
        ("prod", "--check"),
        ("prod", "--json"),
        ("--output-dir", "."),
    ],
)
async def test_options_that_do_not_go_together(hub: Hub, args: tuple[str, ...]) -> None:
    assert "--output-dir" in await hub.fails("cluster", "rbac", *args, code=2)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "system", "\x1b[2J"])
def test_a_name_of_a_hostile_hub_makes_no_path(tmp_path: Path, name: str) -> None:
    answer: Object = {"impersonate": {"agents": [], "groups": []}}
    with pytest.raises(CommandError, match="invalid name"):
        planned(tmp_path, name, answer, Given(), keep=True)
    assert planned(tmp_path, "a", answer, Given(), keep=True).found is Found.MISSING
