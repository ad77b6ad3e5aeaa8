"""What an operator may give as a CA."""

from __future__ import annotations

from cryptography import x509

from proxy.hub.errors import InvalidError
from proxy.hub.rules import PEM_LENGTH_MAX


def check_certificates(pem: str | None) -> None:
    """Raise InvalidError for what is no certificate, or more than that; None is no CA, and fine."""
    if pem is None:
        return
    try:
        if len(pem) > PEM_LENGTH_MAX or "PRIVATE" in pem:
            raise ValueError
        x509.load_pem_x509_certificates(pem.encode("ascii"))
    except ValueError:
        raise InvalidError("a CA must be certificates in PEM, and nothing else") from None
