"""Checks the CA certificates that an operator sends."""

from __future__ import annotations

from cryptography import x509

from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.names import PEM_LENGTH_MAX


def check_certificates(name: str, pem: str | None) -> None:
    """Raise InvalidError unless this is certificates only; None (no CA) is valid.

    `name` is the field with the CA.
    """
    if pem is None:
        return
    try:
        if len(pem) > PEM_LENGTH_MAX or "PRIVATE" in pem:
            raise ValueError
        x509.load_pem_x509_certificates(pem.encode("ascii"))
    except (ValueError, x509.InvalidVersion):
        raise InvalidError(f"{name}: a CA must be certificates in PEM, and nothing else") from None
