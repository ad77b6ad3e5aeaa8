"""A certificate authority for development, so that a first hub serves TLS without an operator's certificate.

The CA is made once and kept, because kubeconfigs and relays hold its certificate. Its server certificate is
replaced before it expires, and when it no longer names the hub. A year before the CA's certificate expires,
the CA gets another one for the same name and key; clients with either certificate accept the hub.
Not used when the configuration names a certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.hub.home.files.private_files import DataDirError, is_there, read_private, write_private

CA_DAYS = 3650
# Apple's clients refuse a server certificate of more than 825 days; public CAs stop at 398 and less.
SERVER_DAYS = 365
RENEW_BEFORE_DAYS = 30
# How long clients that hold the CA's certificate have to get the next one.
CA_RENEW_BEFORE_DAYS = 365
# Other machines' clocks may be behind, or ours ahead until it is set, mostly by a time zone.
BACKDATE = datetime.timedelta(days=1)
_log = logging.getLogger("hawse.hub")

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@attrs.frozen
class ServerCertificate:
    """The files that a TLS context loads, and the CA for clients."""

    certificate: Path
    key: Path
    ca: Path


def ensure_certificate(tls_dir: Path, hosts: tuple[str, ...], now: datetime.datetime) -> ServerCertificate:
    """Return a certificate for localhost and `hosts`, making or renewing it when due; raises DataDirError.

    `now` is timezone-aware. Cheap when nothing is due, so a running hub can call it often.
    """
    files = _files(tls_dir)
    names = tuple(dict.fromkeys((*LOCAL_NAMES, *hosts)))
    ca, ca_key = _ensure_ca(files, now)
    if not _is_current(files, names, ca, now):
        certificate, key = _issue_server(names, ca, ca_key, now)
        # The key first: a crash in between leaves a pair that does not match, which _is_current detects.
        write_private(files.key, _key_pem(key))
        write_private(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def check_ca(tls_dir: Path) -> None:
    """Raise DataDirError for a CA that is damaged or incomplete; changes nothing."""
    _existing_ca(_files(tls_dir))


def _files(tls_dir: Path) -> ServerCertificate:
    return ServerCertificate(tls_dir / "server.pem", tls_dir / "server.key", tls_dir / "ca.pem")


def _existing_ca(files: ServerCertificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """Load the CA; None before the first start has made it. Raises DataDirError."""
    certificate_file, key_file = files.ca, files.ca.with_name("ca.key")
    # The key is written first, so a certificate without its key means a lost key. A key without its
    # certificate means a lost certificate if the CA has signed something, else an interrupted first start.
    if is_there(certificate_file):
        try:
            certificate = x509.load_pem_x509_certificate(read_private(certificate_file))
            key = serialization.load_pem_private_key(read_private(key_file), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError("a key of another kind")
            if key.public_key() != certificate.public_key():
                raise ValueError("the key does not match the certificate")
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise DataDirError(
                f"{key_file.parent}: the development CA is damaged; restore it from a backup, or delete "
                "ca.pem and ca.key for a new one (kubeconfigs and relays then need it too)"
            ) from error
        return certificate, key
    if is_there(key_file) and (is_there(files.key) or is_there(files.certificate)):
        raise DataDirError(
            f"{certificate_file} is missing beside {key_file}: restore it from a backup or a client that has "
            "it, or delete ca.key for a new CA (kubeconfigs and relays then need it too)"
        )
    return None


def _ensure_ca(
    files: ServerCertificate, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    made = _existing_ca(files)
    if made is None:
        return _make_ca(files, now)
    certificate, key = made
    left = certificate.not_valid_after_utc - now
    if left > datetime.timedelta(days=CA_RENEW_BEFORE_DAYS) and certificate.not_valid_before_utc <= now:
        return certificate, key
    _log.warning(
        "%s: the development CA is valid only from %s to %s and is replaced now: give the new one to "
        "relays, logins and kubeconfigs that use it",
        files.ca, certificate.not_valid_before_utc, certificate.not_valid_after_utc,
    )  # fmt: skip
    certificate = _self_signed(certificate.subject, key, now)
    write_private(files.ca, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _make_ca(
    files: ServerCertificate, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Hawse development CA {now:%Y-%m-%d}")])
    certificate = _self_signed(name, key, now)
    write_private(files.ca.with_name("ca.key"), _key_pem(key))
    write_private(files.ca, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _self_signed(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _is_current(
    files: ServerCertificate, names: tuple[str, ...], ca: x509.Certificate, now: datetime.datetime
) -> bool:
    """Return whether the certificate on disk is complete, signed by `ca`, not due, and names every host."""
    if not (is_there(files.certificate) and is_there(files.key)):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(read_private(files.certificate))
        key = serialization.load_pem_private_key(read_private(files.key), password=None)
        certificate.verify_directly_issued_by(ca)
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == certificate.public_key()
        and certificate.not_valid_after_utc - now > datetime.timedelta(days=RENEW_BEFORE_DAYS)
        and certificate.not_valid_before_utc <= now
        and all(_general_name(name) in alternatives for name in names)
    )


def _issue_server(
    names: tuple[str, ...], ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Never beyond the CA's own expiry, after which clients refuse the chain.
    end = min(now + datetime.timedelta(days=SERVER_DAYS), ca.not_valid_after_utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hawse hub")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return certificate, key


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
