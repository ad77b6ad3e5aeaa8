from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from trio.testing import MockClock

from proxy.process import files
from proxy.process.files import FileError, WatchedFile, warn_of_expiry, watch_certificate
from tests.fakes.mounts import mount, swap

DAY_S = 24 * 3600.0
PLAIN = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


def write_lasting(folder: Path, *, life_d: float, left_d: float) -> tuple[Path, Path]:
    """A certificate of some age."""
    end = datetime.now(UTC) + timedelta(days=left_d)
    issued = trustme.CA().issue_cert("127.0.0.1", not_before=end - timedelta(days=life_d), not_after=end)
    pem, key = folder / "tls.crt", folder / "tls.key"
    key.write_bytes(issued.private_key_pem.bytes())
    pem.write_bytes(issued.cert_chain_pems[0].bytes())
    return pem, key


def parse_text(raw: bytes) -> bytes:
    if not raw:
        raise FileError("nothing in it")
    return raw


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    mount(tmp_path, {"token": b"token-1"})
    return tmp_path


def test_a_rotated_token_is_used_within_a_second_and_not_looked_for_more_often(mounted: Path) -> None:
    clock = Clock()
    looks = []

    def parse(raw: bytes) -> bytes:
        looks.append(raw)
        return raw

    file = WatchedFile(mounted / "token", parse, clock=clock)
    swap(mounted, 2, {"token": b"token-2"})
    clock.now = 0.9
    assert file.current() == b"token-1"
    clock.now = 1.0
    assert file.current() == b"token-2"
    clock.now = 5.0
    assert file.current() == b"token-2"
    assert looks == [b"token-1", b"token-2"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_file_keeps_the_last_good_token_and_is_logged_once(
    mounted: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    clock = Clock()
    file = WatchedFile(mounted / "token", parse_text, clock=clock)
    damage(mounted / "..1" / "token")
    with caplog.at_level(logging.WARNING):
        for clock.now in (1.0, 2.0, 3.0):
            assert file.current() == b"token-1"
    assert len(caplog.records) == 1
    assert "token-1" not in caplog.text
    swap(mounted, 2, {"token": b"token-2"})
    clock.now = 4.0
    assert file.current() == b"token-2"


def test_the_first_read_must_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    with pytest.raises(FileError, match="token cannot be read: No such file"):
        WatchedFile(path, parse_text)
    path.write_bytes(b"")
    with pytest.raises(FileError, match="token: nothing in it"):
        WatchedFile(path, parse_text)
    monkeypatch.setattr(files, "FILE_BYTES_MAX", 3)
    path.write_bytes(b"four")
    with pytest.raises(FileError, match="larger than 3 bytes"):
        WatchedFile(path, parse_text)


def write_certificate(folder: Path) -> tuple[Path, Path, trustme.CA]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    pem, key = folder / "tls.crt", folder / "tls.key"
    key.write_bytes(issued.private_key_pem.bytes())
    pem.write_bytes(issued.cert_chain_pems[0].bytes())
    return pem, key, authority


def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(tmp_path: Path) -> None:
    pem, key, _ = write_certificate(tmp_path)
    file = watch_certificate(pem, key)
    before = file.current()
    assert isinstance(before, ssl.SSLContext)
    write_certificate(tmp_path)
    after = file.refresh()
    assert after is not before
    pem.write_text("nothing")
    assert file.refresh() is after


@pytest.mark.parametrize(
    ("ends", "said"),
    [(datetime(2020, 1, 1, tzinfo=UTC), ["tls.crt: the certificate has expired on 2020-01-01"]), (None, [])],
)
def test_an_expired_certificate_is_logged_and_served(
    ends: datetime | None, said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1", not_after=ends)
    pem, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    key.write_bytes(issued.private_key_pem.bytes())
    pem.write_bytes(issued.cert_chain_pems[0].bytes())
    assert isinstance(watch_certificate(pem, key).current(), ssl.SSLContext)
    assert len(caplog.messages) == len(said)
    assert all(text in message for text, message in zip(said, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("life_d", "left_d", "told"),
    [(90, 14, True), (90, 16, False), (398, 29, True), (398, 31, False), (1, 0.1, True), (1, 0.3, False)],
)
def test_a_certificate_due_for_renewal_is_logged(
    life_d: float, left_d: float, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pem, key = write_lasting(tmp_path, life_d=life_d, left_d=left_d)
    watch_certificate(pem, key)
    assert ("tls.crt: the certificate expires on " in caplog.text) is told


async def test_a_process_that_runs_tells_of_the_end_of_its_certificate_until_there_is_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    write_lasting(tmp_path, life_d=90, left_d=80)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warn_of_expiry, tmp_path / "tls.crt")
        await trio.sleep(10 * DAY_S)
        assert caplog.messages == []
        # It is the clock on the wall that says so, of which this one is not part.
        write_lasting(tmp_path, life_d=90, left_d=10)
        await trio.sleep(3 * DAY_S)
        assert 2 <= len(caplog.messages) <= 4
        (tmp_path / "tls.crt").unlink()
        await trio.sleep(3 * DAY_S)
        write_lasting(tmp_path, life_d=90, left_d=90)
        caplog.clear()
        await trio.sleep(10 * DAY_S)
        assert caplog.messages == []
        nursery.cancel_scope.cancel()


def test_a_certificate_that_is_not_valid_yet_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1", not_before=datetime(2999, 1, 1, tzinfo=UTC))
    pem, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    key.write_bytes(issued.private_key_pem.bytes())
    pem.write_bytes(issued.cert_chain_pems[0].bytes())
    watch_certificate(pem, key)
    assert "tls.crt: the certificate is not valid before 2999-01-01" in caplog.text


def test_a_certificate_of_an_odd_version_is_shown_as_long_as_openssl_takes_it(tmp_path: Path) -> None:
    pem, key, _ = write_certificate(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(pem.read_text())
    pem.write_text(ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1)))
    assert isinstance(watch_certificate(pem, key).current(), ssl.SSLContext)


def test_a_certificate_without_its_key_is_a_clear_error(tmp_path: Path) -> None:
    pem, key, _ = write_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, wrong, _ = write_certificate(other)
    assert fault_of(pem, wrong) == f"{pem}: its key {wrong} is another certificate's"
    wrong.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*PLAIN))
    assert fault_of(pem, wrong) == f"{pem}: its key {wrong} is another certificate's"
    for content in (b"", b"-----BEGIN PRIVATE KEY-----\nx", pem.read_bytes(), encrypted(key.read_bytes())):
        wrong.write_bytes(content)
        said = f"{pem}: its key {wrong} is no private key in PEM, or has a password"
        assert fault_of(pem, wrong) == said
    key.unlink()
    assert fault_of(pem, key) == f"{pem}: its key {key} cannot be read: No such file or directory"


def test_what_holds_no_certificate_is_said_with_the_key_of_the_configuration(tmp_path: Path) -> None:
    pem, key, _ = write_certificate(tmp_path)
    good = pem.read_bytes()
    for content, fault in (
        (b"\xff", "holds no certificate in PEM"),
        (good + b"-----BEGIN CERTIFICATE-----\nx", "holds a certificate that is damaged"),
        (
            key.read_bytes(),
            "holds no certificate in PEM, but a private key: are the two files swapped?",
        ),
    ):
        pem.write_bytes(content)
        assert fault_of(pem, key, "tls.certificate") == f"tls.certificate: {pem}: it {fault}"
    pem.write_bytes("# Stiftung für Zertifikate\n".encode() + good)
    key.unlink()
    assert "its key" in fault_of(pem, key)


def fault_of(pem: Path, key: Path, stated: str = "") -> str:
    with pytest.raises(FileError) as refused:
        watch_certificate(pem, key, stated=stated)
    return str(refused.value)


def encrypted(key: bytes) -> bytes:
    private = serialization.load_pem_private_key(key, None)
    return private.private_bytes(*PLAIN[:2], serialization.BestAvailableEncryption(b"secret"))
