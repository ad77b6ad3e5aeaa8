"""HTTPS for commands. tests/proxy/agent/hub/test_requests.py has the tests with a proxy."""

from __future__ import annotations

import os
import resource
import socket
import ssl

import pytest
import trustme

from proxy.agent.https import blocking
from proxy.agent.https.answer import HTTPError
from proxy.agent.https.blocking import HTTPSConnection, open_tcp, trusting
from tests.fakes.addresses import one_that_swallows_and_one_that_answers

TIMEOUT_S = 5.0
FD_SETSIZE = 1024
"""The limit of select(2)."""


def leads_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Resolve every name to these addresses; "" is one of a family that this system lacks."""

    def getaddrinfo(host: str, port: int, type: int) -> list[tuple[object, ...]]:
        return [(socket.AF_INET if address else -1, type, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_an_address_that_does_not_answer_holds_up_the_next_one_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with one_that_swallows_and_one_that_answers() as (addresses, port):
        leads_to(monkeypatch, addresses)
        with open_tcp("hub.example", port, TIMEOUT_S) as connected:
            assert connected.getpeername() == ("127.0.0.1", port)
            assert connected.gettimeout() == TIMEOUT_S
            # A form must not wait for the acknowledgement of its head, which takes a round trip.
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_refuses_and_one_that_cannot_be_tried_hold_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking, "NEXT_ADDRESS_S", 100.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        leads_to(monkeypatch, ["", "127.0.0.2", "127.0.0.1"])
        with open_tcp("hub.example", listening.getsockname()[1], TIMEOUT_S) as connected:
            assert connected.getpeername() == listening.getsockname()


def test_a_process_with_very_many_files_connects_as_well() -> None:
    """A process with 510 open watches, such as `hawse connect`, fetches its tokens this way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard > 2 * FD_SETSIZE
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * FD_SETSIZE), hard))
    held: list[int] = []
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            while not held or held[-1] < FD_SETSIZE:
                held.append(os.dup(listening.fileno()))
            with open_tcp("127.0.0.1", listening.getsockname()[1], TIMEOUT_S) as connected:
                assert connected.fileno() > FD_SETSIZE
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_when_none_answers_the_last_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        leads_to(monkeypatch, ["", "127.0.0.1"])
        with pytest.raises(ConnectionRefusedError):
            open_tcp("hub.example", unused.getsockname()[1], TIMEOUT_S)


@pytest.mark.parametrize("host", ["hub..example", f"{'x' * 64}.example"])
def test_a_name_that_no_host_can_have_is_a_failed_connection(host: str) -> None:
    with pytest.raises(OSError, match="no host can have that name"):
        open_tcp(host, 443, TIMEOUT_S)


def test_all_addresses_together_have_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with one_that_swallows_and_one_that_answers() as (addresses, port):
        leads_to(monkeypatch, addresses[:1] * 3)
        with pytest.raises(TimeoutError, match="no connection within"):
            open_tcp("hub.example", port, 0.1)


def test_servers_are_verified_as_kubectl_does_it() -> None:
    for context in (trusting(None), trusting(trustme.CA().cert_pem.bytes().decode())):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        # Few hand-made CAs pass this check.
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    for pem in ("", "no PEM", "\u00e9"):
        with pytest.raises(ValueError, match="no usable certificate"):
            trusting(pem)


@pytest.mark.parametrize(
    ("method", "target", "name", "value"),
    [
        ("GET", "/", "authorization", "Bearer s3cret\r\nx: y"),
        ("GET", "/", "authorization", "Bearer s3cret\x00"),
        ("GET", "/", "authorization", "Bearer s3cret\u00e9"),
        ("GET", "/", "s3cret\n", ""),
        ("GET", "/ HTTP/1.1\r\nx: s3cret", "a", ""),
        ("GET", "/s3cret x", "a", ""),
        ("GET s3cret\n", "/", "a", ""),
    ],
)
def test_a_request_that_http_cannot_express_is_not_sent_and_not_quoted(
    method: str, target: str, name: str, value: str
) -> None:
    connection = HTTPSConnection("127.0.0.1", 1, timeout_s=TIMEOUT_S, context=trusting(None))
    with pytest.raises(HTTPError, match="a character that HTTP does not allow") as error:
        connection.exchange(method, target, {name: value}, None, body_bytes_max=1)
    assert "s3cret" not in str(error.value)


def test_the_first_message_of_a_handshake_is_sent_without_a_wait_for_its_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connection = HTTPSConnection("127.0.0.1", port, timeout_s=TIMEOUT_S, context=trusting(None))
        connection.begin()
        peer, _ = silent.accept()
        with peer:
            # A handshake record with a ClientHello.
            assert peer.recv(6)[::5] == b"\x16\x01"
        with pytest.raises(OSError, match=r"EOF|reset"):
            connection.connect()
        connection.close()
