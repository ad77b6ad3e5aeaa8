"""One throw-away CA for all TLS tests of the tunnel, made once: keys cost more than the tests."""

from __future__ import annotations

import atexit
import functools
import ssl
import tempfile
from pathlib import Path

import trustme
from cryptography import x509

from tunnel.net import client_context, server_context
from tunnel.resumption import ClientContext


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
