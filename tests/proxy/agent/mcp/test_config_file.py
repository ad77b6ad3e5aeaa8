from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.agent.local.errors import AgentError
from proxy.agent.mcp import config_file
from proxy.agent.mcp.config_file import add_server

ENTRY = {"command": "hawse", "args": ["connect"]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON), st.text())
def test_all_that_is_there_stays_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    document: dict[str, object],
    servers: dict[str, object],
    name: str,
) -> None:
    path = tmp_path_factory.mktemp("home") / "mcp.json"
    document["servers"] = servers
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    try:
        changed = add_server(str(path), "servers", name, ENTRY)
    except AgentError:
        assert servers[name] != ENTRY
        assert path.read_bytes() == before
        return
    assert changed == (name not in servers)
    after = json.loads(path.read_text())
    assert after["servers"].pop(name) == ENTRY
    servers.pop(name, None)
    assert after == document
    assert list(after) == list(document)
    # The second time changes nothing.
    if changed:
        written = path.read_bytes()
        assert not add_server(str(path), "servers", name, ENTRY)
        assert path.read_bytes() == written


@pytest.mark.parametrize("content", [None, b"", b" \n"])
def test_a_file_that_is_missing_or_empty_is_made(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "new" / "mcp.json"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    assert add_server(str(path), "servers", "kubernetes", ENTRY)
    assert json.loads(path.read_text()) == {"servers": {"kubernetes": ENTRY}}
    if content is None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_keeps_its_mode_and_a_link_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "dotfiles.json", tmp_path / "mcp.json"
    target.write_text("{}")
    target.chmod(0o644)
    link.symlink_to(target)
    assert add_server(str(link), "servers", "kubernetes", ENTRY)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert "kubernetes" in target.read_text()


def test_a_kill_at_any_moment_leaves_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("{}")
    path.chmod(0o664)
    modes: list[int] = []

    def replace(temporary: str, target: str) -> None:
        modes.append(stat.S_IMODE(os.stat(temporary).st_mode))
        os.rename(temporary, target)

    monkeypatch.setattr("proxy.agent.local.files.os.replace", replace)
    assert add_server(str(path), "servers", "kubernetes", ENTRY)
    assert modes == [0o664]


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    for path in (fifo, link):
        with pytest.raises(AgentError, match=f"{path} is not a regular file"):
            add_server(str(path), "servers", "kubernetes", ENTRY)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"servers": {"kubernetes": {"command": "other"}}}', "has another server .?kubernetes"),
        (b'{"servers": {"kubernetes": null}}', "has another server .?kubernetes"),
        (b'{"servers": []}', "servers.? is not an object"),
        (b"[]", "it is not a JSON object"),
        (b'{"a": 1} // mine', "is not plain JSON"),
        (b'{"a": 1, "a": 2}', "an object has two equal keys"),
        (b'{"servers": {"a": 1, "a": 2}}', "an object has two equal keys"),
        (b"\xff", "is not plain JSON"),
        (b'{"a": NaN}', "cannot write back"),
        (b'{"a": 1e999}', "cannot write back"),
        (b'{"a": "\\ud800"}', "cannot write back"),
        (b"[" * 100_000, "is not plain JSON"),
        (b" " * (4 * 1024 * 1024 + 1), "larger than"),
    ],
)
def test_what_cannot_be_kept_is_not_touched(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_bytes(content)
    with pytest.raises(AgentError, match=message):
        add_server(str(path), "servers", "kubernetes", ENTRY)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["mcp.json"]


def test_a_write_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("{}")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("proxy.agent.local.files.os.replace", full)
    with pytest.raises(AgentError, match="No space left"):
        config_file.add_server(str(path), "servers", "kubernetes", ENTRY)
    assert path.read_text() == "{}"
    assert os.listdir(tmp_path) == ["mcp.json"]
