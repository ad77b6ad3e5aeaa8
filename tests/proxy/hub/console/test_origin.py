from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.console.origin import Origin

HUB = Origin.of("https://console.example")
PORT = Origin.of("https://Console.example:8446")
LOOPBACK = Origin.of("http://127.0.0.1:8446")
VALUE = "A" * 43


@pytest.mark.parametrize(
    ("origin", "host", "is_for_it"),
    [
        (HUB, b"console.example", True),
        (HUB, b"CONSOLE.example:443", True),
        (HUB, b"console.example:8446", False),
        (HUB, b"console.example.evil.example", False),
        (HUB, b"evil.example", False),
        (HUB, b"console.example.", False),
        (PORT, b"console.example:8446", True),
        (PORT, b"console.example", False),
        (LOOPBACK, b"127.0.0.1:8446", True),
        (LOOPBACK, b"localhost:8446", False),
        (LOOPBACK, b"rebound.example:8446", False),
    ],
)
def test_a_request_is_for_the_host_of_the_url_alone(origin: Origin, host: bytes, is_for_it: bool) -> None:
    assert origin.is_for_it([(b"host", host)]) is is_for_it


def test_a_request_without_a_host_or_with_two_is_for_nothing() -> None:
    assert not HUB.is_for_it([])
    assert not HUB.is_for_it([(b"host", b"console.example")] * 2)


SITE, ORIGIN = b"sec-fetch-site", b"origin"
OWN = (ORIGIN, b"https://console.example")


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ([(SITE, b"same-origin")], True),
        ([(SITE, b"same-origin"), OWN], True),
        ([OWN], True),
        ([], False),
        ([(SITE, b"cross-site")], False),
        ([(SITE, b"same-site")], False),
        ([(SITE, b"none")], False),
        # `Origin` counts only where the other header is missing.
        ([(SITE, b"cross-site"), OWN], False),
        ([(SITE, b"same-origin"), (SITE, b"same-origin")], False),
        ([(ORIGIN, b"null")], False),
        ([(ORIGIN, b"http://console.example")], False),
        ([(ORIGIN, b"https://console.example:8446")], False),
        ([OWN, (ORIGIN, b"https://evil.example")], False),
    ],
)
def test_a_change_comes_from_a_page_of_this_origin(headers: list[tuple[bytes, bytes]], may: bool) -> None:
    assert (HUB.cross_site(headers) == "") is may


def test_data_is_not_for_pages_of_other_sites() -> None:
    assert [
        HUB.is_read_by_another_site([(SITE, site)])
        for site in (b"same-origin", b"none", b"same-site", b"cross-site", b"")
    ] == [False, False, True, True, True]
    assert not HUB.is_read_by_another_site([])


def test_the_cookie_is_for_this_host_and_no_script() -> None:
    assert HUB.set_cookie(VALUE) == f"__Host-hawse={VALUE}; Path=/; HttpOnly; SameSite=Lax; Secure"
    assert HUB.clear_cookie == "__Host-hawse=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax; Secure"
    # Two hubs on one machine differ by the port, which cookies do not know.
    assert LOOPBACK.set_cookie(VALUE) == f"hawse-8446={VALUE}; Path=/; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([f"__Host-hawse={VALUE}"], VALUE),
        ([f"hawse-theme=dark; __Host-hawse={VALUE}; x=y"], VALUE),
        (["a=b", f"__Host-hawse={VALUE}"], VALUE),
        ([f"hawse={VALUE}"], None),
        ([f"__host-hawse={VALUE}"], None),
        ([f"__Host-hawse={VALUE}A"], None),
        ([f'__Host-hawse="{VALUE}"'], None),
        (["__Host-hawse="], None),
        # Another program of the host may have planted one of them.
        ([f"__Host-hawse={VALUE}; __Host-hawse={'B' * 43}"], None),
        ([], None),
    ],
)
def test_a_session_is_one_cookie_of_its_form(lines: list[str], found: str | None) -> None:
    assert HUB.session_in([(b"cookie", line.encode()) for line in lines]) == found


@given(st.lists(st.tuples(st.sampled_from([b"cookie", SITE, ORIGIN, b"host"]), st.binary(max_size=80))))
def test_headers_of_any_bytes_are_read(headers: list[tuple[bytes, bytes]]) -> None:
    for origin in (HUB, LOOPBACK):
        origin.session_in(headers)
        origin.cross_site(headers)
        origin.is_for_it(headers)


def test_headers_of_answers() -> None:
    found = HUB.headers()
    assert b"'unsafe-inline'" not in found[b"content-security-policy"]
    assert b"strict-transport-security" in found
    # A loopback origin would pin all of the machine's ports to TLS.
    assert b"strict-transport-security" not in LOOPBACK.headers()
