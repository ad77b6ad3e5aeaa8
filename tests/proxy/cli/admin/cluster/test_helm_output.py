"""`cluster add --output helm`: values for a repository, and apart from them the Secret with the key."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import trio
import yaml

from auth.keys import SigningKey
from proxy.cli.admin.cluster.values import FILE_BYTES_MAX, differences
from tests.proxy.cli.admin.conftest import Hub
from tests.proxy.cli.admin.terminal import at_a_terminal

ADD = ("cluster", "add", "prod", "--output", "helm")


async def test_the_values_hold_no_key_and_the_secret_nothing_else(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "prod.secret.yaml"
    await hub.ok("team", "add", "sre")
    await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    options = ("--namespace", "tools", "--image", "reg.example:5000/x/relay:1.2", "--replicas", "2")
    made = await hub.ok(*ADD, "--team", "sre", "--secret", str(file), *options)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    namespace, secret = yaml.safe_load_all(file.read_text())
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", "tools")
    assert (secret["kind"], secret["metadata"]["namespace"]) == ("Secret", "tools")
    assert sorted(secret["stringData"]) == ["hub-ca.pem", "hub-keys.json", "relay-key.pem"]
    key = SigningKey.from_pem(secret["stringData"]["relay-key.pem"].encode())
    cluster = hub.directory.current.clusters_by_name["prod"]
    assert cluster.relay_keys == (key.public,)
    values = yaml.safe_load(made.stdout)
    digest = values.pop("keysDigest")
    assert values == {
        "hub": {"url": "https://hub.example", "caInSecret": True},
        "cluster": {"id": cluster.id},
        "existingSecret": secret["metadata"]["name"],
        "replicas": 2,
        "image": {"repository": "reg.example:5000/x/relay", "tag": "1.2"},
        "impersonate": {"form": "plain", "agents": ["sre-1"], "groups": ["main/sre"]},
    }
    lines = [line for line in secret["stringData"]["relay-key.pem"].splitlines() if len(line) > 20]
    assert all(line not in made.output for line in (*lines, "PRIVATE KEY"))
    said = made.stderr
    assert f"kubectl apply -f {file}, then remove it" in said
    assert "helm upgrade --install prod CHART --namespace tools --values FILE" in said
    # A new key: another Secret, and values that make new pods.
    file.unlink()
    again = await hub.ok("cluster", "key", "prod", "--output", "helm", "--secret", str(file), "--constrained")
    assert yaml.safe_load(again.stdout)["keysDigest"] != digest
    assert yaml.safe_load(again.stdout)["impersonate"]["form"] == "constrained"


async def test_values_may_be_printed_on_a_terminal(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "prod.secret.yaml"
    code, shown, _ = await at_a_terminal(hub, *ADD, "--secret", str(file))
    assert (code, b"existingSecret" in shown, b"PRIVATE KEY" in shown) == (0, True, False)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--output", "helm"), "--output helm needs --secret FILE"),
        (("--secret", "{file}"), "--secret goes with --output helm only"),
        (("--output", "helm", "--secret", "{file}", "--json"), "leave out --json"),
        (("--output", "helm", "--secret", "{file}", "--output-dir", "{file}.d"), "for one outside"),
        (
            (
                "--output",
                "helm",
                "--secret",
                "{file}",
                "--mode",
                "direct",
                "--relay-url",
                "https://r.example",
            ),
            "for mode tunnel",
        ),
    ],
)
async def test_what_does_not_go_together_makes_no_cluster(
    hub: Hub, tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "prod.secret.yaml"
    line = await hub.fails("cluster", "add", "prod", *(each.format(file=file) for each in args), code=2)
    assert said in " ".join(line.split())
    assert await hub.json("cluster", "list") == []
    assert os.listdir(tmp_path) == ["hub"]


async def test_a_secret_that_cannot_be_written_costs_no_key(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "prod.secret.yaml"
    file.touch()
    line = await hub.fails(*ADD, "--secret", str(file))
    assert line == f"hawse: {file} exists already: choose another --secret, or overwrite it with --force\n"
    assert "is a folder" in await hub.fails(*ADD, "--secret", str(tmp_path), "--force")
    missing = tmp_path / "none" / "x"
    assert "No such file" in await hub.fails(*ADD, "--secret", str(missing))
    line = await hub.fails(*ADD, "--image", "x@md5:1", "--secret", f"{file}.2")
    assert (
        line == "hawse: these can't be values of the chart: image 'x@md5:1' has a digest that is not valid\n"
    )
    assert await hub.json("cluster", "list") == []


async def test_a_disk_that_fills_up_says_how_to_go_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prod.secret.yaml"
    opened = os.open

    def full(path: str | Path, flags: int, mode: int = 0o777) -> int:
        os.close(opened(path, flags, mode))
        return opened("/dev/full", os.O_WRONLY)

    with monkeypatch.context() as patched:
        patched.setattr("proxy.cli.admin.cluster.secret_output.os.open", full)
        line = await hub.fails(*ADD, "--secret", str(file))
    assert line == (
        f"hawse: cannot write {file}: No space left on device; the hub has stored the new key of prod "
        "already, so make another: hawse admin cluster key prod\n"
    )
    assert os.listdir(tmp_path) == ["hub"]
    await hub.ok("cluster", "key", "prod", "--output", "helm", "--secret", str(file))


async def test_values_that_cannot_be_printed_say_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "prod.secret.yaml"
    command = [sys.executable, "-m", "hawse", "admin", *ADD, "--secret", str(file)]
    # Buffered, as a user's output is: what is left of it is written at the end of the process.
    env = {**os.environ, "HAWSE_HUB_DATA_DIR": str(hub.data.path), "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "wb") as stdout:
        done = await trio.run_process(command, stdout=stdout, capture_stderr=True, check=False, env=env)
    assert (done.returncode, done.stderr.decode()) == (
        1,
        "hawse: cannot print: No space left on device; the hub has stored the new key of prod already, so "
        "make another: hawse admin cluster key prod\n",
    )


async def test_the_names_are_printed_and_compared(hub: Hub, tmp_path: Path) -> None:
    await hub.ok("team", "add", "sre")
    await hub.ok("cluster", "add", "prod", "--team", "sre")
    await hub.ok("agent", "add", "sre-1", "--owner", "Ada", "--team", "sre")
    values = ("cluster", "values", "prod")
    printed = (await hub.ok(*values)).stdout
    assert printed.startswith("# Printed by: hawse admin cluster values prod\nimpersonate:\n")
    names = {"impersonate": {"agents": ["sre-1"], "groups": ["main/sre"]}}
    assert yaml.safe_load(printed) == await hub.json(*values) == names
    file = tmp_path / "names.yaml"
    file.write_text(printed + "replicas: 3\n")
    assert (await hub.ok(*values, "--check", str(file))).output == ""
    await hub.ok("agent", "add", "sre-2", "--owner", "Ada", "--team", "sre")
    await hub.ok("agent", "remove", "sre-1", "--yes")
    behind = await hub.run(*values, "--check", str(file))
    assert behind.exit_code == 3
    assert behind.stdout == "missing  impersonate.agents  sre-2\nextra    impersonate.agents  sre-1\n"
    assert behind.stderr == (
        f"hawse: not up to date: {file}; write it again with hawse admin cluster values prod, then run "
        "helm upgrade\n"
    )
    asked = await hub.run(*values, "--check", str(file), "--json")
    assert (asked.exit_code, json.loads(asked.stdout)) == (
        3,
        {
            "cluster": "prod",
            "file": str(file),
            "up_to_date": False,
            "differences": [{"key": "agents", "missing": ["sre-2"], "extra": ["sre-1"]}],
        },
    )
    # A wildcard names no agent, so it is never behind.
    file.write_text("impersonate: {form: wildcard, iKnow: true}\n")
    assert (await hub.ok(*values, "--check", str(file))).output == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("replicas: 3\n", "has no impersonate"),
        ("impersonate: {agents: [x]}\n", "has no list of names as impersonate.groups"),
        ("impersonate: {agents: [x], groups: [1]}\n", "has no list of names as impersonate.groups"),
        ("a: [\n", "is not YAML"),
        ("[]\n", "has no impersonate"),
        ("\0", "is not YAML"),
        ("impersonate: {agents: [], groups: []}\n" + "#" * FILE_BYTES_MAX, "has more than 4194304 bytes"),
    ],
    ids=range(7),
)
async def test_a_file_without_the_names_is_not_taken_for_up_to_date(
    hub: Hub, tmp_path: Path, content: str, said: str
) -> None:
    await hub.ok("cluster", "add", "prod")
    file = tmp_path / "values.yaml"
    file.write_text(content)
    assert said in await hub.fails("cluster", "values", "prod", "--check", str(file))


def test_differences_are_by_key_and_sorted() -> None:
    stated = {"agents": frozenset({"c", "b"}), "groups": frozenset({"o/t"})}
    [found] = differences(stated, {"agents": ["b", "z", "a"], "groups": ["o/t"]})
    assert (found.key, found.missing, found.extra) == ("agents", ("a", "z"), ("c",))
