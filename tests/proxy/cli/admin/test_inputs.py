from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.cli.admin.inputs import read_certificates, read_file
from proxy.cli.errors import CommandError

Read = Callable[[Path | None, str, int], str | None]


@pytest.mark.parametrize("read", [read_file, read_certificates])
def test_a_file_is_read_whole(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("x" * 10)
    assert read(path, "--ca", 10) == "x" * 10
    assert read(None, "--ca", 10) is None


@pytest.mark.parametrize("read", [read_file, read_certificates])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"x" * 11, "has more than 10 bytes"),
        (b"\xff", "is not text"),
        (None, "No such file or directory"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_option(
    read: Read, content: bytes | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=rf"^--ca: .*{re.escape(str(path))}.*{fault}"):
        read(path, "--ca", 10)


def test_certificates_are_ascii(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("ä", encoding="utf-8")
    assert read_file(path, "--jwks", 10) == "ä"
    with pytest.raises(CommandError, match=r"^--ca: .* is not PEM"):
        read_certificates(path, "--ca", 10)
