"""Reads certificate and CA files, and predicts why clients would refuse a certificate.

OpenSSL decides whether a text is a certificate, since OpenSSL uses it. Names and dates are checked here:
OpenSSL serves a certificate with wrong ones, and only the clients refuse it.
"""

from __future__ import annotations

import ipaddress
import ssl
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from cryptography import x509

# When a certificate should have been renewed: renewal normally happens in the last third of its life.
LAST_PART = 6
LAST_MAX = timedelta(days=30)
# Names of a certificate that a message lists: a CDN's may have hundreds.
NAMES_SHOWN_MAX = 4


@attrs.frozen
class Remark:
    """A remark about a certificate; messages put the file's name before it."""

    text: str
    refused: bool
    """Clients refuse the certificate now; if False, they will later."""


def fault_of_ca(pem: str) -> str | None:
    """Why a text is not a list of PEM certificates, worded to follow its file's name; None if it is."""
    if not pem.isascii():
        return "holds non-ASCII characters, so it is not PEM"
    try:
        # Not create_default_context: for an empty text that loads the system's CAs.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        begun = "-----BEGIN CERTIFICATE-----" in pem
        return "holds a certificate that is damaged" if begun else "holds no certificate in PEM"
    return None


def remarks_on(pem: bytes, now: datetime, host: str | None = None) -> list[Remark]:
    """Return why clients refuse the first certificate, now or soon. Their clocks may differ from ours.

    `host` is this server's host in public_url.
    """
    shown = first_of(pem)
    if shown is None:
        # OpenSSL has accepted it, and its verdict counts.
        return []
    remarks = []
    if host is not None and not names_host(shown, host):
        remarks.append(
            Remark(
                f"the certificate is for {_listed(shown)} and not for {host}, the host of public_url, so "
                f"clients refuse it: get one that names {host}, or correct public_url",
                refused=True,
            )
        )
    begins, ends = shown.not_valid_before_utc, shown.not_valid_after_utc
    if now > ends:
        remarks.append(Remark(f"the certificate has expired on {ends}: renew it", refused=True))
    elif now < begins:
        text = f"the certificate is not valid before {begins}, and it is {now} by this machine's clock"
        remarks.append(Remark(text, refused=True))
    elif ends - now < min((ends - begins) / LAST_PART, LAST_MAX):
        remarks.append(
            Remark(f"the certificate expires on {ends}, and has not been renewed yet", refused=False)
        )
    return remarks


def summary_of(pem: bytes) -> str:
    """The names and the expiry of the first certificate."""
    shown = first_of(pem)
    return "" if shown is None else f"{_listed(shown)}, until {shown.not_valid_after_utc:%Y-%m-%d}"


def first_of(pem: bytes) -> x509.Certificate | None:
    """The first certificate of a file; None if only OpenSSL can parse it."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        return None


def dns_names(certificate: x509.Certificate) -> list[str]:
    """The DNS names of a certificate, in lower case."""
    from cryptography import x509

    alternatives = _alternatives(certificate)
    return [] if alternatives is None else [n.lower() for n in alternatives.get_values_for_type(x509.DNSName)]


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether a client that connects to `host` accepts the certificate's names (RFC 9525)."""
    try:
        return ipaddress.ip_address(host) in _addresses(certificate)
    except ValueError:
        pass
    names, (_, _, domain) = dns_names(certificate), host.partition(".")
    # OpenSSL accepts a wildcard only with two labels after it.
    return host in names or ("." in domain and f"*.{domain}" in names)


def _alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return None


def _addresses(certificate: x509.Certificate) -> list[object]:
    from cryptography import x509

    alternatives = _alternatives(certificate)
    return [] if alternatives is None else [*alternatives.get_values_for_type(x509.IPAddress)]


def _listed(certificate: x509.Certificate) -> str:
    """The names of a certificate in one line, safe for a log."""
    names = [ascii(str(name))[1:-1] for name in (*dns_names(certificate), *_addresses(certificate))]
    more = len(names) - NAMES_SHOWN_MAX
    shown = ", ".join(names[:NAMES_SHOWN_MAX]) or "no host at all"
    return f"{shown} and {more} more" if more > 0 else shown
