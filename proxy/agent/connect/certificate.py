"""A certificate for the loopback address, made for one run and not stored.

client-go sends no bearer token over plain HTTP, so even a proxy on loopback needs TLS.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnel.net.connect import server_context

ADDRESS = "127.0.0.1"
# Longer than a process runs. A restart makes a new certificate.
DAYS = 365
# The clock may be set back this far while it runs. Apple's clients accept at most 825 days of validity.
_BACKDATE = datetime.timedelta(days=365)


def loopback_context() -> tuple[ssl.SSLContext, str]:
    """Return a server context for the loopback address, and the certificate (PEM) that clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hawse connect")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(ADDRESS)), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_usage(), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # OpenSSL reads only files. The folder is 0700, and removed before the first client connects.
    with tempfile.TemporaryDirectory(prefix="hawse-") as folder:
        paths = [os.path.join(folder, each) for each in ("certificate.pem", "key.pem")]
        for path, data in zip(paths, (pem, key_pem), strict=True):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        return server_context(*paths), pem.decode("ascii")


def _key_usage() -> x509.KeyUsage:
    # The certificate signs itself, and serves TLS.
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
