"""The identity of one boot of a hub towards the other hubs: an Ed25519 key, and a certificate that it signs.

The certificate stands in the hub's row (`Member.certificate`), which only hubs can write. A hub that dials
trusts that very certificate and no CA. The one that is dialled verifies the dialer's hello by the key in the
dialer's certificate. So there is no shared secret and no PKI, and nothing to renew.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from auth.assertion import ed25519_members, thumbprint
from auth.keys import PublicKey, SigningKey
from tunnel.net.connect import client_context, server_context
from tunnel.net.tls_sessions import ClientContext

# The certificate is compared, and its times mean nothing: hubs whose clocks are wrong reach each other all
# the same. 9999-12-31 is RFC 5280's date for what does not expire (4.1.2.5).
_VALID_FROM = datetime(2000, 1, 1, tzinfo=UTC)
_VALID_TO = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@attrs.frozen
class LinkIdentity:
    """What a hub proves itself by, from its start to its end; on no disk."""

    key: SigningKey
    certificate: str
    """PEM."""
    context: ssl.SSLContext = attrs.field(repr=False)
    """For the listener."""

    @classmethod
    def make(cls, boot: str) -> LinkIdentity:
        """Make the identity of a new boot."""
        key = SigningKey.generate()
        pem = _self_signed(boot, key.key)
        with (
            _in_memory(pem) as certificate_file,
            _in_memory(key.to_pem()) as key_file,
        ):
            context = server_context(certificate_file, key_file)
        return cls(key, pem.decode("ascii"), context)


def server_name(boot: str) -> str:
    """Return the name in a boot's certificate. It is resolved nowhere."""
    return f"{boot.lower()}.hub.hawse.internal"


def trust_in(certificate: str) -> ClientContext:
    """Return a context that trusts one hub's certificate alone; raises ValueError if it is malformed."""
    return client_context(certificate)


def key_in(certificate: str) -> PublicKey:
    """Return the key in a hub's certificate; raises ValueError if it is malformed."""
    try:
        key = x509.load_pem_x509_certificate(certificate.encode("ascii", "replace")).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError("the certificate has a key of an unknown kind") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ValueError("the certificate has another key than an Ed25519 one")
    return PublicKey(thumbprint(ed25519_members(key)), "EdDSA", key)


def _self_signed(boot: str, key: ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Hawse hub {boot}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_TO)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name(boot))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A file of this process alone: ssl loads certificate and key from files only."""
    descriptor = os.memfd_create("hawse", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
