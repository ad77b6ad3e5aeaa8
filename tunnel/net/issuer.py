"""Reads the issuer of a certificate that was not accepted.

It shows an operator that a proxy intercepts TLS, or that another hub answers, and which CA is missing.
OpenSSL keeps the chain of a handshake that failed; Python shows it from 3.13 on, and has it in its inner
object before that.
"""

from __future__ import annotations

import ssl
import sys
import warnings
from typing import Final

__all__ = ["shown_issuer"]

# An unauthenticated peer chooses these names, and they go into a log.
ISSUER_CHARACTERS_MAX: Final = 120
_DER: Final = 2


def shown_issuer(connection: ssl.SSLObject) -> str:
    """Return the issuer's name in the peer's certificate, in one printable line; "" if it is not known."""
    # The import costs a process tens of milliseconds, and is needed only when a handshake has failed.
    from cryptography import x509

    try:
        chain = _unverified_chain(connection)
        with warnings.catch_warnings(action="ignore"):
            name = x509.load_der_x509_certificate(chain[0]).issuer.rfc4514_string() if chain else ""
    except Exception:
        # OpenSSL accepts certificates that this parser refuses, each in its own way.
        return ""
    shown = "".join(character if character.isprintable() else "?" for character in name)
    return shown if len(shown) <= ISSUER_CHARACTERS_MAX else f"{shown[:ISSUER_CHARACTERS_MAX]}..."


def _unverified_chain(connection: ssl.SSLObject) -> list[bytes]:
    """The certificates as the peer sent them, the peer's own first; DER."""
    if sys.version_info >= (3, 13):
        return connection.get_unverified_chain()
    # The types know of the outer one alone.
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [certificate.public_bytes(_DER) for certificate in chain or ()]
