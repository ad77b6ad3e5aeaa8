from __future__ import annotations

import ssl
from contextlib import suppress

import pytest
import trustme

from tests.tunnel.certificates import ODD, authority_name, contexts, odd_context
from tunnel.net.connect import client_context
from tunnel.net.issuer import ISSUER_CHARACTERS_MAX, shown_issuer


def failed_handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """The client's end, which has not accepted what it was shown."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="hub.test")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(near, far)
    return near


def shake_hands(*ends: ssl.SSLObject) -> None:
    while True:
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()


def stranger() -> ssl.SSLContext:
    """Trusts a CA that has signed nothing here."""
    return client_context(trustme.CA().cert_pem.bytes().decode())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_issuer_of_a_certificate_that_was_not_accepted_is_known(version: ssl.TLSVersion) -> None:
    _, server = contexts(version)
    assert shown_issuer(failed_handshake(stranger(), server)) == authority_name()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines \x1b[31m", "two?lines ?[31m"),
        ("x" * 60, "x" * 60),
    ],
)
def test_what_a_stranger_calls_himself_stays_one_printable_line(name: str, shown: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA(organization_name=name).issue_cert("hub.test").configure_cert(server)
    issuer = shown_issuer(failed_handshake(stranger(), server))
    assert f"O={shown}" in issuer
    assert issuer.isprintable()


def test_a_long_name_is_cut() -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA(organization_name="o" * 60, organization_unit_name="u" * 60)
    authority.issue_cert("hub.test").configure_cert(server)
    issuer = shown_issuer(failed_handshake(stranger(), server))
    assert issuer.endswith("...")
    assert len(issuer) == ISSUER_CHARACTERS_MAX + 3


def test_before_any_certificate_there_is_no_issuer() -> None:
    client, _ = contexts()
    assert shown_issuer(client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="hub.test")) == ""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ODD)
def test_a_certificate_that_cannot_be_read_has_no_known_issuer_and_ends_nothing(kind: str) -> None:
    issuer = shown_issuer(failed_handshake(stranger(), odd_context(kind)))
    assert issuer in ("", "C=evil")
