"""Whether a text is what the file of a CA has to hold. OpenSSL is asked, since it will be used by that."""

from __future__ import annotations

import ssl


def fault_of_ca(pem: str) -> str | None:
    """What keeps a text from being certificates in PEM, to stand behind its file's name; None if nothing."""
    if not pem.isascii():
        return "holds more than ASCII, so it is no PEM"
    try:
        # Not create_default_context: for an empty text that would take the system's CAs instead.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        begun = "-----BEGIN CERTIFICATE-----" in pem
        return "holds a certificate that is damaged" if begun else "holds no certificate in PEM"
    return None
