from __future__ import annotations

import errno
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from trio.testing import assert_no_checkpoints, memory_stream_pair

from tests.fakes.addresses import one_that_swallows_and_one_that_answers
from tests.tunnel.certificates import ca_pem, contexts, server_files
from tests.tunnel.stream_pairs import tcp_pair
from tunnel.net.connect import (
    HandshakeFailed,
    _shown,
    client_context,
    close_forcefully,
    has_input,
    open_first,
    open_tcp,
    open_tls,
    os_reason,
    peer_address,
    server_context,
    tune,
    wrap_client,
    wrap_server,
)
from tunnel.net.tcp import NOTSENT_LOWAT_BYTES, TCPStream


@asynccontextmanager
async def tls_echo(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve one byte string back on each connection, and yield the port."""

    async def handle(stream: trio.SocketStream) -> None:
        async with wrap_server(stream, context) as tls:
            try:
                await tls.do_handshake()
                await tls.send_all(await tls.receive_some())
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_open_tls_verifies_and_talks_to_wrap_server() -> None:
    client_side, server_side = contexts()
    async with tls_echo(server_side) as port, await open_tls("localhost", port, client_side) as tls:
        await tls.send_all(b"hello")
        assert await tls.receive_some() == b"hello"
        assert tls.ssl_object.version() == "TLSv1.3"
        assert tls.ssl_object.selected_alpn_protocol() == "http/1.1"
        assert await tls.receive_some() == b""


async def test_the_name_to_verify_may_differ_from_the_address() -> None:
    client_side, server_side = contexts()
    async with tls_echo(server_side) as port:
        tls = await open_tls("127.0.0.1", port, client_side, server_hostname="hub.test")
        await tls.aclose()
        # No socket is left behind by a failure: filterwarnings would tell.
        with pytest.raises(HandshakeFailed, match="Hostname mismatch"):
            await open_tls("127.0.0.1", port, client_side, server_hostname="other.test")


@pytest.mark.parametrize("name", ["hub..example", ".example", f"{'x' * 64}.example", "x." * 150])
async def test_a_name_that_no_certificate_can_have_is_a_failed_handshake(name: str) -> None:
    client_side, _ = contexts()
    near, far = memory_stream_pair()
    with pytest.raises(HandshakeFailed, match="no host can have that name"):
        await wrap_client(near, client_side, server_hostname=name)
    assert await far.receive_some() == b""


async def test_the_address_itself_is_verified() -> None:
    client_side, server_side = contexts()
    async with tls_echo(server_side) as port:
        tls = await open_tls("127.0.0.1", port, client_side)
        await tls.aclose()


async def test_a_refused_connection_is_an_os_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(OSError, match="all attempts to connect"):
            await open_tcp("127.0.0.1", port)


@pytest.mark.parametrize("host", ["hub..example", f"{'x' * 64}.example"])
async def test_a_name_that_no_host_can_have_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError) as caught:
        await open_tcp(host, 443)
    assert os_reason(caught.value) == "no host can have that name"


async def test_sockets_are_tuned() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with listener, await open_tcp("127.0.0.1", port) as ours, await listener.accept() as trios:
        tune(trios)
        for end in (ours, trios):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                lowat = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
                assert lowat == NOTSENT_LOWAT_BYTES


async def test_a_forceful_close_cuts_and_passes_no_checkpoint_over_a_socket() -> None:
    near, far = await tcp_pair()
    with assert_no_checkpoints():
        await close_forcefully(near)
        await close_forcefully(near)
    assert await far.receive_some() == b""
    await close_forcefully(far)
    memory, _ = memory_stream_pair()
    await close_forcefully(memory)
    with pytest.raises(trio.ClosedResourceError):
        await memory.send_all(b"x")


async def test_peer_address_looks_through_tls() -> None:
    client_side, server_side = contexts()
    async with tls_echo(server_side) as port, await open_tls("127.0.0.1", port, client_side) as tls:
        assert peer_address(tls) == f"127.0.0.1:{port}"
    assert peer_address(tls) == "a closed connection"
    near, _far = memory_stream_pair()
    assert peer_address(near) == "StapledStream"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("192.0.2.1", "192.0.2.1:1"),
        ("::ffff:192.0.2.1", "192.0.2.1:1"),
        ("2001:db8::1", "[2001:db8::1]:1"),
        ("::ffff:0:192.0.2.1", "[::ffff:0:192.0.2.1]:1"),
        ("fe80::1%eth0", "[fe80::1%eth0]:1"),
    ],
)
def test_a_peer_has_the_address_that_it_would_have_at_a_socket_of_its_family(host: str, shown: str) -> None:
    assert _shown(host, 1) == shown


async def test_an_address_that_does_not_answer_holds_up_the_next_one_for_a_moment_only() -> None:
    with one_that_swallows_and_one_that_answers() as (addresses, port), trio.fail_after(5):
        async with await open_first(addresses, port) as stream:
            assert stream.socket.getpeername() == ("127.0.0.1", port)


async def test_an_address_that_refuses_does_not_hold_up_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.net.connect.NEXT_ADDRESS_S", 100.0)
    with socket.create_server(("127.0.0.1", 0)) as listening, trio.fail_after(5):
        port = listening.getsockname()[1]
        async with await open_first(["127.0.0.2", "127.0.0.1"], port) as stream:
            assert stream.socket.getpeername() == ("127.0.0.1", port)


async def test_when_all_addresses_refuse_it_is_said_why() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="all attempts") as caught:
            await open_first(["127.0.0.1"], unused.getsockname()[1])
    assert os_reason(caught.value) == "Connection refused"


def test_contexts_are_strict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    client_side, server_side = client_context(ca_pem()), server_context(*server_files())
    for context in (client_side, server_side, client_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.keylog_filename is None
    assert client_side.verify_mode == ssl.CERT_REQUIRED
    assert client_side.check_hostname
    assert server_side.num_tickets == 1
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    "pem", ["", "no PEM at all", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_without_a_certificate_is_refused(pem: str) -> None:
    with pytest.raises(ValueError, match="no usable certificate"):
        client_context(pem)


async def test_any_certificate_in_the_ca_file_is_an_anchor() -> None:
    leaf_only = client_context(server_files()[0].read_text())
    async with tls_echo(contexts()[1]) as port:
        tls = await open_tls("localhost", port, leaf_only)
        await tls.aclose()


def test_an_encrypted_key_is_refused_instead_of_asking_for_its_password(tmp_path: Path) -> None:
    certificate, key = server_files()
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    encrypted = tmp_path / "key.pem"
    encrypted.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    load = "import sys, tunnel.net.connect; tunnel.net.connect.server_context(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", load, certificate, encrypted],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        capture_output=True,
        text=True,
    )
    assert "pass phrase" not in done.stderr
    assert "SSLError" in done.stderr


async def test_input_on_an_idle_connection_is_seen_below_tls() -> None:
    client_side, server_side = contexts()
    async with tls_echo(server_side) as port, await open_tls("127.0.0.1", port, client_side) as tls:
        # The server's session tickets come with its first data, and not before.
        assert not has_input(tls)
        await tls.send_all(b"x")
        assert isinstance(tls.transport_stream, TCPStream)
        await trio.lowlevel.wait_readable(tls.transport_stream.socket)
        assert has_input(tls)
    assert not has_input(tls)
    assert not has_input(memory_stream_pair()[0])


def test_why_a_connection_failed_is_said_in_the_systems_words() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Error connecting to ('127.0.0.1', 1)")
    assert os_reason(refused) == "Connection refused"
    several = OSError("all attempts to connect to hub.example:443 failed")
    several.__cause__ = ExceptionGroup("", [OSError(errno.EHOSTUNREACH, "x"), refused])
    assert os_reason(several) == "No route to host"
    assert os_reason(socket.gaierror(socket.EAI_NONAME, "Name or service not known")) == (
        "Name or service not known"
    )
    assert os_reason(OSError("words alone")) == "words alone"
