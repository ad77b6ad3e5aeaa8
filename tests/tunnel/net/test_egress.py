from __future__ import annotations

import base64

import pytest
import trio
from trio.testing import memory_stream_pair

from tunnel.net.egress import Connect, Proxy, ProxyRefused, ProxySettings, connect_through

PROXY = Proxy("proxy.test", 3128)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://proxy.test:3128", Proxy("proxy.test", 3128)),
        ("http://proxy.test", Proxy("proxy.test", 80)),
        ("https://proxy.test", Proxy("proxy.test", 443, tls=True)),
        ("proxy.test:3128", Proxy("proxy.test", 3128)),
        ("http://[fd00::1]:3128/", Proxy("fd00::1", 3128)),
        ("http://[fe80::1%25eth0]:3128", Proxy("fe80::1%eth0", 3128)),
        (
            "http://al%40ice:p%3Ass%2Fw@proxy.test:3128",
            Proxy("proxy.test", 3128, authorization=b"Basic " + base64.b64encode(b"al@ice:p:ss/w")),
        ),
        (
            "http://alice@proxy.test:1",
            Proxy("proxy.test", 1, authorization=b"Basic " + base64.b64encode(b"alice:")),
        ),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_proxy_of_the_environment(name: str, value: str, expected: Proxy) -> None:
    assert ProxySettings.from_environment({name: value}).proxy == expected


@pytest.mark.parametrize(
    "value",
    [
        "socks5://alice:secret@proxy.test:1080",
        "http://alice:secret@proxy.test:port",
        "http://alice:secret@",
        "http://[alice:secret",
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(value: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY") as caught:
        ProxySettings.from_environment({"HTTPS_PROXY": value})
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_does_not_stand_in_the_repr() -> None:
    settings = ProxySettings.from_environment({"HTTPS_PROXY": "http://alice:secret@proxy.test:3128"})
    assert base64.b64encode(b"alice:secret").decode() not in repr(settings)
    assert "secret" not in repr(settings)


def test_without_a_proxy_all_ways_are_direct() -> None:
    assert ProxySettings.from_environment({}).proxy_for("hub.test", 443) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", "hub.test", False),
        ("*", "hub.test", True),
        ("other.test, *", "hub.test", True),
        # A name covers itself and what is below it.
        ("hub.test", "hub.test", True),
        ("hub.test", "a.hub.test", True),
        ("hub.test", "myhub.test", False),
        ("test", "hub.test", True),
        ("other.test,hub.test", "hub.test", True),
        (" other.test , hub.test ", "hub.test", True),
        ("HUB.Test", "hub.TEST", True),
        ("hub.test", "hub.test.", True),
        # With a dot in front only what is below it.
        (".hub.test", "hub.test", False),
        (".hub.test", "a.hub.test", True),
        ("*.hub.test", "hub.test", False),
        ("*.hub.test", "a.b.hub.test", True),
        # Ports.
        ("hub.test:443", "hub.test", True),
        ("hub.test:8443", "hub.test", False),
        ("*.test:443", "hub.test", True),
        # Addresses and networks, compared with addresses only.
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.30", False),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:444", "10.1.2.3", False),
        ("10.0.0.0/8", "10.200.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.1.2.3/8", "10.200.0.1", True),
        ("10.0.0.0/8", "ten.test", False),
        ("fd00::/8", "fd12::1", True),
        ("fd00::/8", "fe80::1", False),
        ("fd00::/8", "10.0.0.1", False),
        ("fd12::1", "fd12:0::1", True),
        ("[fd12::1]:443", "fd12::1", True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("[fd12::1]:444", "fd12::1", False),
        # Always direct.
        ("", "localhost", True),
        ("", "127.0.0.53", True),
        ("", "::1", True),
        ("", "::ffff:127.0.0.1", True),
        # Nonsense covers nothing.
        (",,:443,10.0.0.0/99", "hub.test", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy(name: str, no_proxy: str, host: str, direct: bool) -> None:
    settings = ProxySettings.from_environment({"HTTPS_PROXY": "http://proxy.test:3128", name: no_proxy})
    assert (settings.proxy_for(host, 443) is None) is direct


async def connect(answer: bytes, proxy: Proxy = PROXY, *, end: bool = True) -> bytes:
    """Return what the proxy got."""
    near, far = memory_stream_pair()
    await far.send_all(answer)
    if end:
        await far.send_eof()
    try:
        await connect_through(near, proxy, "hub.test", 443)
    finally:
        await near.aclose()
    request = b""
    while data := await far.receive_some():
        request += data
    return request


async def test_connect_names_the_target_and_the_password_goes_in_a_header() -> None:
    request = await connect(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert request == b"CONNECT hub.test:443 HTTP/1.1\r\nHost: hub.test:443\r\n\r\n"
    request = await connect(
        b"HTTP/1.1 200 Connection established\r\n\r\n", Proxy("proxy.test", 3128, authorization=b"Basic eDp5")
    )
    assert b"\r\nProxy-Authorization: Basic eDp5\r\n" in request


async def test_connect_writes_an_ipv6_address_as_in_a_url() -> None:
    assert Connect(PROXY, "fd00::1", 8443).request == (
        b"CONNECT [fd00::1]:8443 HTTP/1.1\r\nHost: [fd00::1]:8443\r\n\r\n"
    )


async def test_an_interim_answer_is_no_answer() -> None:
    assert await connect(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n", end=False)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 407 Auth\r\n\r\n", "demands a user and a password (407); put them into HTTPS_PROXY"),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nforbidden",
            "does not allow connections to hub.test:443 (403)",
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "cannot connect to hub.test:443 (502)"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "speaks no HTTP"),
        (b"", "cut the connection before its answer to CONNECT"),
        (b"HTTP/1.1 200 O", "cut the connection before its answer to CONNECT"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0", "sent bytes of its own"),
    ],
)
async def test_each_refusal_of_the_proxy_is_named(answer: bytes, text: str) -> None:
    with pytest.raises(ProxyRefused) as caught:
        await connect(answer)
    assert text in str(caught.value)
    assert "proxy.test:3128" in str(caught.value)


async def test_a_wrong_password_is_told_from_a_missing_one() -> None:
    with pytest.raises(ProxyRefused, match="does not accept the user and password") as caught:
        await connect(b"HTTP/1.1 407 Auth\r\n\r\n", Proxy("proxy.test", 3128, authorization=b"Basic eDp5"))
    assert "eDp5" not in str(caught.value)


async def test_a_head_without_end_is_refused() -> None:
    with pytest.raises(ProxyRefused, match="speaks no HTTP"):
        await connect(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000)


async def test_a_proxy_that_resets_is_named() -> None:
    near, far = memory_stream_pair()
    await trio.aclose_forcefully(far)
    with pytest.raises(ProxyRefused, match="cut the connection"):
        await connect_through(near, PROXY, "hub.test", 443)
    await near.aclose()
