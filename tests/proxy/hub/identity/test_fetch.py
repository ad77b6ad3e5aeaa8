from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import trio

from auth.federation import parse_jwks
from proxy.hub.identity.fetch import ANSWER_BYTES_MAX, FetchFailed, fetch, fetch_jwks
from proxy.hub.store.entities import Issuer
from tests.fakes.https import Reply
from tests.fakes.issuer import DISCOVERY, FakeIssuer, running_issuer


@pytest.fixture
def issuer() -> Iterator[FakeIssuer]:
    with running_issuer() as issuer:
        yield issuer


def known(issuer: FakeIssuer, *, jwks_url: str | None = None, private: bool = True) -> Issuer:
    return Issuer("i", issuer.url, jwks_url, None, issuer.ca_pem, private)


async def test_keys_are_found_by_the_discovery_document_or_where_they_are_said_to_be(
    issuer: FakeIssuer,
) -> None:
    assert list(parse_jwks(await fetch_jwks(known(issuer)))) == ["k1"]
    assert issuer.asked == [DISCOVERY, "/jwks"]
    assert list(parse_jwks(await fetch_jwks(known(issuer, jwks_url=f"{issuer.url}/jwks")))) == ["k1"]
    assert issuer.asked[2:] == ["/jwks"]


async def test_an_issuer_whose_name_ends_in_a_slash_is_found_without_it() -> None:
    with running_issuer(slash=True) as issuer:
        assert list(parse_jwks(await fetch_jwks(known(issuer)))) == ["k1"]
        assert issuer.asked == [DISCOVERY, "/jwks"]


def reply(status: int, body: bytes = b"", **headers: str) -> Reply:
    return status, headers, body


async def test_c36_what_is_no_straight_answer_is_refused(issuer: FakeIssuer) -> None:
    jwks_url = f"{issuer.url}/jwks"
    lies = {
        "redirects": reply(302, location=jwks_url + "2"),
        "redirects, which": reply(308, location="http://169.254.169.254/latest"),
        "answered 500": reply(500),
        "answered 204": reply(204),
        "more than 262144 bytes": reply(200, b"x" * (ANSWER_BYTES_MAX + 1)),
    }
    for words, answer in lies.items():
        issuer.replies["/jwks"] = lambda answer=answer: answer  # type: ignore[misc]
        with pytest.raises(FetchFailed, match=words):
            await fetch_jwks(known(issuer, jwks_url=jwks_url))
    assert "/jwks2" not in issuer.asked


async def test_c36_a_discovery_document_that_lies_is_refused(issuer: FakeIssuer) -> None:
    good = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks"}
    port = issuer.url.rpartition(":")[2]
    for document, words in (
        ({**good, "issuer": issuer.url + "/"}, "another issuer"),
        ({**good, "issuer": "https://evil.example"}, "another issuer"),
        ({**good, "jwks_uri": f"http://127.0.0.1:{port}/jwks"}, "is not https"),
        ({**good, "jwks_uri": "https://169.254.169.254/jwks"}, "the hub never connects to"),
        ({**good, "jwks_uri": "https://[fe80::1]/jwks"}, "the hub never connects to"),
        ({**good, "jwks_uri": "file:///etc/passwd"}, "is not https"),
        ({**good, "jwks_uri": f"https://user:pw@127.0.0.1:{port}/jwks"}, "is not https"),
        ({**good, "jwks_uri": None}, "no jwks_uri"),
        ([], "another issuer"),
        (None, "is not JSON"),
    ):
        body = b"<html>" if document is None else json.dumps(document).encode()
        issuer.replies[DISCOVERY] = lambda body=body: reply(200, body)  # type: ignore[misc]
        with pytest.raises(FetchFailed, match=words):
            await fetch_jwks(known(issuer))
    assert "/jwks" not in issuer.asked


async def test_c36_an_issuer_at_a_private_address_must_be_meant(issuer: FakeIssuer) -> None:
    with pytest.raises(FetchFailed, match="private address"):
        await fetch_jwks(known(issuer, private=False))
    by_name = issuer.url.replace("127.0.0.1", "localhost")
    with pytest.raises(FetchFailed, match="not a public address"):
        await fetch(f"{by_name}/jwks", ca_pem=issuer.ca_pem, private=False)
    # However it is allowed, a cloud's credentials are never asked for.
    with pytest.raises(FetchFailed, match="the hub never connects to"):
        await fetch("https://169.254.169.254/", ca_pem=None, private=True)
    assert issuer.asked == []


async def test_a_certificate_of_another_authority_is_refused(issuer: FakeIssuer) -> None:
    with running_issuer() as other:
        with pytest.raises(FetchFailed, match="cannot reach"):
            await fetch_jwks(Issuer("i", issuer.url, None, None, other.ca_pem, True))
    with pytest.raises(FetchFailed, match="cannot reach"):
        await fetch_jwks(Issuer("i", issuer.url, None, None, None, True))
    assert issuer.asked == []


async def test_a_request_to_an_issuer_that_hangs_can_be_cancelled(issuer: FakeIssuer) -> None:
    let_go = threading.Event()

    def hang() -> Reply:
        let_go.wait(10)
        return reply(200)

    issuer.replies["/jwks"] = hang
    began = time.monotonic()
    with trio.move_on_after(0.3) as scope:
        await fetch_jwks(known(issuer, jwks_url=f"{issuer.url}/jwks"))
    let_go.set()
    assert scope.cancelled_caught
    assert time.monotonic() - began < 5


async def test_what_listens_and_is_no_tls_or_nothing_at_all_is_one_clear_line() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        port = held.getsockname()[1]
        with pytest.raises(FetchFailed, match="cannot reach") as refused:
            await fetch(f"https://127.0.0.1:{port}/jwks", ca_pem=None, private=True)
    assert "\n" not in str(refused.value)
