from __future__ import annotations

from pathlib import Path

import pytest

from proxy.cli.admin.cluster.check import _kubectl
from proxy.cli.errors import CommandError


@pytest.mark.parametrize("answer", ["x", "[]", "[" * 100_000], ids=["text", "list", "deep"])
def test_a_kubectl_that_answers_with_no_object_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    (tmp_path / "answer").write_text(answer)
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/answer\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(CommandError, match="JSON object"):
        _kubectl("get", "clusterroles")


def test_kubectls_words_are_told_without_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    log = 'E1130 19:33:39.543816   29937 memcache.go:381] "Unhandled Error"'
    program.write_text(
        f"#!/bin/sh\necho '{log}' >&2\necho '{log}' >&2\necho 'The server was  refused' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(CommandError, match=r"^kubectl failed: The server was refused$"):
        _kubectl("get", "clusterroles")
    program.write_text(f"#!/bin/sh\necho '{log}' >&2\nexit 1\n")
    with pytest.raises(CommandError, match="memcache"):
        _kubectl("get", "clusterroles")
