"""One throw-away CA for all TLS tests of the tunnel, made once: keys cost more than the tests."""

from __future__ import annotations

import atexit
import base64
import datetime
import functools
import ssl
import tempfile
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnel.net.connect import client_context, server_context
from tunnel.net.tls_sessions import ClientContext


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def ca_pem() -> str:
    return authority().cert_pem.bytes().decode()


@functools.cache
def authority_name() -> str:
    """Its name, as it stands in the certificates that it has signed."""
    return x509.load_pem_x509_certificate(authority().cert_pem.bytes()).subject.rfc4514_string()


@functools.cache
def server_files() -> tuple[Path, Path]:
    """The certificate chain and key of `hub.test`, `localhost` and 127.0.0.1."""
    folder = tempfile.TemporaryDirectory(prefix="hawse-test-")
    atexit.register(folder.cleanup)
    certificate, key = Path(folder.name, "cert.pem"), Path(folder.name, "key.pem")
    leaf = authority().issue_cert("hub.test", "localhost", "127.0.0.1")
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return certificate, key


def contexts(version: ssl.TLSVersion | None = None) -> tuple[ClientContext, ssl.SSLContext]:
    """Return (client, server), for one TLS version only if it is given."""
    client, server = client_context(ca_pem()), server_context(*server_files())
    if version is not None:
        client.maximum_version = client.minimum_version = version
    return client, server


# What OpenSSL serves and reads, and `cryptography` refuses or complains of, each in its own way.
ODD = {
    "an unknown version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"),
    "a name that is bits": (b"\x0c\x04evil", b"\x03\x04\x00vil"),
    "a country of four letters": (b"\x06\x03\x55\x04\x03", b"\x06\x03\x55\x04\x06"),
}


def odd_context(kind: str) -> ssl.SSLContext:
    """A server with a certificate of ODD, signed by itself."""
    builder, key = _leaf("evil")
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert ODD[kind][0] in der
    encoded = base64.encodebytes(der.replace(*ODD[kind], 1))
    return _serving(b"-----BEGIN CERTIFICATE-----\n" + encoded + b"-----END CERTIFICATE-----\n", key)


def client_only_context() -> ssl.SSLContext:
    """A server whose certificate is signed by the authority, but not for servers."""
    issuer = x509.load_pem_x509_certificate(authority().cert_pem.bytes())
    builder, key = _leaf("hub", issuer)
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    signer = load_pem_private_key(authority().private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    signed = builder.add_extension(purpose, critical=False).sign(signer, hashes.SHA256())
    return _serving(signed.public_bytes(Encoding.PEM), key)


def _leaf(
    subject: str, issuer: x509.Certificate | None = None
) -> tuple[x509.CertificateBuilder, ec.EllipticCurvePrivateKey]:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(subject))
        .issuer_name(issuer.subject if issuer is not None else _named(subject))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hub.test")]), critical=False)
    )
    if issuer is not None:
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
        builder = builder.add_extension(signer, critical=False)
    return builder, key


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _serving(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        context.load_cert_chain(file.name)
    return context
