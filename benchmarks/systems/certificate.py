"""A CA and a certificate for loopback, for peers that want them as files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme


class Certificate(NamedTuple):
    """The CA, and the certificate with its key and chain, as PEM files."""

    ca: Path
    pem: Path


def make_certificate(folder: Path) -> Certificate:
    """Write both into the folder, for the address 127.0.0.1."""
    made = Certificate(folder / "ca.pem", folder / "hub.pem")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(made.ca)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(made.pem)
    return made
