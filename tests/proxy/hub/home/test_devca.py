from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from auth.keys import SigningKey
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import ServerCertificate, ensure_certificate
from proxy.hub.home.files.private_files import DataDirError

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def another_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    return DataDir.open(tmp_path).tls_dir


def test_it_names_localhost_and_the_public_host(tls: Path) -> None:
    files = ensure_certificate(tls, ("hub.example", "10.1.2.3", "localhost"), NOW)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "hub.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "10.1.2.3")
    ]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(files.ca.read_bytes()))


def test_a_ca_that_cannot_be_looked_at_is_not_replaced(tls: Path) -> None:
    (tls / "ca.pem").symlink_to("x" * 300)
    with pytest.raises(DataDirError, match="name too long"):
        ensure_certificate(tls, (), NOW)
    assert not (tls / "ca.key").exists()


def test_a_client_that_trusts_the_ca_accepts_it(tls: Path) -> None:
    files = ensure_certificate(tls, ("hub.example",), NOW)
    assert accepts(files, files.ca.read_text())


@pytest.mark.parametrize("ago", [3300 * DAY, 0 * DAY], ids=["the-old-one", "none"])
def test_who_holds_the_ca_of_before_accepts_the_hub_as_long_as_that_is_good(
    tls: Path, ago: datetime.timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    before = ensure_certificate(tls, ("hub.example",), NOW - ago).ca.read_text()
    caplog.clear()
    files = ensure_certificate(tls, ("hub.example",), NOW)
    after = files.ca.read_text()
    assert (after == before) is (not ago)
    assert ("is replaced now" in caplog.text) is bool(ago)
    assert accepts(files, before)
    assert accepts(files, after)


def test_a_ca_of_a_day_that_has_not_come_is_replaced(tls: Path) -> None:
    """The hub had started with a clock that was ahead."""
    ensure_certificate(tls, ("hub.example",), NOW + 800 * DAY)
    files = ensure_certificate(tls, ("hub.example",), NOW)
    assert accepts(files, files.ca.read_text())


def accepts(files: ServerCertificate, ca: str) -> bool:
    """Whether a client that trusts the CA takes the hub for hub.example."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.create_default_context(cadata=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    left, right = socket.socketpair()
    thread = threading.Thread(target=lambda: server.wrap_socket(left, server_side=True).close())
    thread.start()
    with client.wrap_socket(right, server_hostname="hub.example") as wrapped:
        shown = wrapped.getpeercert()
    thread.join()
    left.close()
    return bool(shown)


def test_nothing_is_made_anew_before_it_is_due(tls: Path) -> None:
    first = ensure_certificate(tls, ("hub.example",), NOW).certificate.read_bytes()
    assert ensure_certificate(tls, ("hub.example",), NOW + 300 * DAY).certificate.read_bytes() == first
    assert ensure_certificate(tls, (), NOW).certificate.read_bytes() == first


@pytest.mark.parametrize(("hosts", "later"), [(("hub.example",), 340 * DAY), (("other.example",), 0 * DAY)])
def test_it_is_renewed_near_its_end_and_for_another_host(
    tls: Path, hosts: tuple[str, ...], later: datetime.timedelta
) -> None:
    first = ensure_certificate(tls, ("hub.example",), NOW)
    before, ca = first.certificate.read_bytes(), first.ca.read_bytes()
    again = ensure_certificate(tls, hosts, NOW + later)
    assert again.certificate.read_bytes() != before
    assert again.ca.read_bytes() == ca  # what kubeconfigs and relays hold stays


def test_a_server_certificate_never_outlives_its_ca(tls: Path) -> None:
    ensure_certificate(tls, (), NOW)
    files = ensure_certificate(tls, (), NOW + 3600 * DAY)
    server, ca = (x509.load_pem_x509_certificate(p.read_bytes()) for p in (files.certificate, files.ca))
    assert server.not_valid_after_utc <= ca.not_valid_after_utc


def test_a_torn_pair_is_replaced(tls: Path) -> None:
    files = ensure_certificate(tls, (), NOW)
    key = files.key.read_bytes()
    (tls / "ca.key").read_bytes()
    files.key.write_bytes((tls / "ca.key").read_bytes())
    ensure_certificate(tls, (), NOW)
    assert files.key.read_bytes() not in {key, (tls / "ca.key").read_bytes()}
    files.certificate.write_bytes(b"torn")
    ensure_certificate(tls, (), NOW)
    assert files.certificate.read_bytes().startswith(b"-----BEGIN CERTIFICATE")


@pytest.mark.parametrize(
    "content",
    [b"SECRET", SigningKey.generate().to_pem(), another_key()],
    ids=["none", "another-kind", "another-pair"],
)
def test_a_damaged_ca_is_not_silently_replaced(tls: Path, content: bytes) -> None:
    ensure_certificate(tls, (), NOW)
    (tls / "ca.key").write_bytes(content)
    with pytest.raises(DataDirError, match="damaged") as caught:
        ensure_certificate(tls, (), NOW)
    assert "SECRET" not in str(caught.value)


def test_a_ca_whose_key_was_lost_is_not_silently_replaced(tls: Path) -> None:
    ca = ensure_certificate(tls, (), NOW).ca.read_bytes()
    (tls / "ca.key").unlink()
    with pytest.raises(DataDirError, match=r"/ca\.key: No such file or directory: restore it from a backup"):
        ensure_certificate(tls, (), NOW)
    assert (tls / "ca.pem").read_bytes() == ca


@pytest.mark.parametrize("gone", [("ca.pem",), ("ca.pem", "server.pem"), ("ca.pem", "server.key")])
def test_a_ca_whose_certificate_was_lost_is_not_silently_replaced(tls: Path, gone: tuple[str, ...]) -> None:
    ensure_certificate(tls, (), NOW)
    key = (tls / "ca.key").read_bytes()
    for name in gone:
        (tls / name).unlink()
    with pytest.raises(
        DataDirError, match=r"/ca\.pem is missing beside .*/ca\.key: restore it from a backup"
    ):
        ensure_certificate(tls, (), NOW)
    assert (tls / "ca.key").read_bytes() == key


def test_a_first_start_that_was_cut_short_is_begun_again(tls: Path) -> None:
    (tls / "ca.key").write_bytes(another_key())
    files = ensure_certificate(tls, ("hub.example",), NOW)
    assert accepts(files, files.ca.read_text())
