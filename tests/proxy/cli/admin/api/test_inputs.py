from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from proxy.cli.admin.api.inputs import read_certificates, read_file
from proxy.cli.errors import CommandError

Read = Callable[[Path | None, str, int], str | None]


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("x" * 10)
    assert read_file(path, "--ca", 10) == "x" * 10
    assert read_file(None, "--ca", 10) is None
    pem = trustme.CA().cert_pem.bytes().decode()
    path.write_text(pem)
    assert read_certificates(path, "--ca", len(pem)) == pem
    assert read_certificates(None, "--ca", 10) is None


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


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("ä", "holds non-ASCII characters, so it is not PEM"),
        ("", "holds no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\nx", "holds a certificate that is damaged"),
        ("-----BEGIN EC PRIVATE KEY-----\nx", "holds a private key"),
    ],
)
def test_what_holds_no_certificate_is_not_sent_and_named_with_its_option(
    content: str, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(content, encoding="utf-8")
    assert read_file(path, "--jwks", 100) == content
    with pytest.raises(CommandError) as refused:
        read_certificates(path, "--ca", 100)
    assert str(refused.value) == f"--ca: {path} {fault}: name the file with the CA's certificate"
