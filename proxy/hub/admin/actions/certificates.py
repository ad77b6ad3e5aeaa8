"""What an operator may give as a CA."""

from __future__ import annotations

from cryptography import x509

from proxy.hub.store.errors import InvalidError
from proxy.hub.store.names import PEM_LENGTH_MAX


def check_certificates(name: str, pem: str | None) -> None:
    """Raise InvalidError for what is no certificate, or more than that; None is no CA, and fine.

    `name` is the field that holds it.
    """
    if pem is None:
        return
    try:
        if len(pem) > PEM_LENGTH_MAX or "PRIVATE" in pem:
            raise ValueError
        x509.load_pem_x509_certificates(pem.encode("ascii"))
    except (ValueError, x509.InvalidVersion):
        raise InvalidError(f"{name}: a CA must be certificates in PEM, and nothing else") from None
