"""TCP and TLS as tunnel and proxy use them: how a connection is opened, wrapped and tuned, in one place."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from tunnel.net.tcp import Bonds, TCPStream, tune_socket
from tunnel.net.tls import HandshakeFailed, TLSStream
from tunnel.net.tls_sessions import ClientContext

__all__ = [
    "NO_NAME",
    "HandshakeFailed",
    "TLSStream",
    "bind_to_peer",
    "client_context",
    "close_forcefully",
    "has_input",
    "open_first",
    "open_tcp",
    "open_tls",
    "os_reason",
    "peer_address",
    "server_context",
    "tls_socket",
    "tune",
    "wrap_client",
    "wrap_server",
]

# HTTP/1.1 is the only protocol spoken on any leg. Offering it by name keeps peers from choosing HTTP/2, on
# which exec and port-forward cannot be upgraded.
ALPN: Final = ["http/1.1"]

# How long an address may keep the next one of the same host waiting (RFC 8305 section 8).
NEXT_ADDRESS_S: Final = 0.25
# Of a name with a part that is empty or too long: Python raises a UnicodeError then, and no OSError.
NO_NAME: Final = "no host can have that name"


async def open_tcp(host: str, port: int) -> TCPStream:
    """Connect to the first address of `host` that answers, trying the next after a short wait (RFC 8305).

    The name is resolved again each time. Raises OSError. When cancelled, nothing is left open.
    """
    try:
        return TCPStream.take_over(await trio.open_tcp_stream(host, port))
    except UnicodeError as exc:
        raise OSError(NO_NAME) from exc


async def open_first(addresses: Sequence[str], port: int) -> TCPStream:
    """The same for addresses of a host that were looked at before. Raises the last one's OSError."""
    connected: TCPStream | None = None
    failures: list[OSError] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        nonlocal connected
        try:
            stream = await open_tcp(address, port)
        except OSError as exc:
            failures.append(exc)
            failed.set()
            return
        if connected is None:
            connected = stream
            nursery.cancel_scope.cancel()
        else:
            stream.close_nowait()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(NEXT_ADDRESS_S):
                    await failed.wait()
    except BaseException:
        if connected is not None:
            connected.close_nowait()
        raise
    if connected is None:
        try:
            raise failures[-1]
        finally:
            # Their tracebacks hold this frame, which must not hold them in turn.
            failures.clear()
    return connected


async def open_tls(
    host: str, port: int, context: ssl.SSLContext, *, server_hostname: str | None = None
) -> TLSStream:
    """Connect to `host` and finish the handshake.

    The certificate must be that of `server_hostname`, or of `host` without one. Raises OSError or
    HandshakeFailed. The caller sets the deadline; when cancelled, nothing is left open.
    """
    return await wrap_client(await open_tcp(host, port), context, server_hostname=server_hostname or host)


async def wrap_client(stream: trio.abc.Stream, context: ssl.SSLContext, *, server_hostname: str) -> TLSStream:
    """Make a TLS client of a connected stream and finish the handshake; on a failure the stream is closed.

    A stream of trio's sockets becomes one of ours, and is as good as closed.
    """
    if isinstance(stream, trio.SocketStream):
        stream = TCPStream.take_over(stream)
    resumption = context.resumption(server_hostname) if isinstance(context, ClientContext) else None
    try:
        tls = TLSStream(stream, context, server_hostname=server_hostname, resumption=resumption)
    except (ssl.SSLError, ValueError) as exc:
        # It was not resolved, where a proxy is on the way: ssl is the first that looks at it.
        await trio.aclose_forcefully(stream)
        raise HandshakeFailed(NO_NAME) from exc
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def wrap_server(stream: trio.abc.Stream, context: ssl.SSLContext) -> TLSStream:
    """Make a TLS server of an accepted stream; the caller awaits `do_handshake` under its own deadline."""
    return TLSStream(stream, context, server_side=True)


def tune(stream: trio.abc.Stream) -> None:
    """Set what all our TCP connections want, below TLS as well; a TCPStream has it from the beginning."""
    while isinstance(stream, TLSStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        tune_socket(stream.socket)


def bind_to_peer(stream: trio.abc.Stream, bonds: Bonds) -> None:
    """Have the kernel give a TCP or TLS connection up once the peer has been out of reach for CUT_S.

    For direct mode, where nothing but TCP tells one end that the other one is gone.
    """
    while isinstance(stream, TLSStream):
        stream = stream.transport_stream
    if isinstance(stream, TCPStream | trio.SocketStream):
        bonds.bind(stream.socket)


def os_reason(exc: OSError) -> str:
    """Return the reason for the first address that failed; trio tries several and raises one error."""
    if isinstance(exc, socket.gaierror):
        return exc.strerror or str(exc)
    cause: BaseException | None = exc.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    errno = cause.errno if isinstance(cause, OSError) else exc.errno
    return os.strerror(errno) if errno is not None else str(exc)


async def close_forcefully(stream: trio.abc.Stream) -> None:
    """Close a TCP or TLS stream without a farewell and without a wait; any other one as trio does.

    trio.aclose_forcefully takes two passes of the scheduler and 150 function calls, also for a stream that is
    closed already.
    """
    if isinstance(stream, TCPStream) or (isinstance(stream, TLSStream) and tls_socket(stream) is not None):
        stream.close_nowait()
    else:
        await trio.aclose_forcefully(stream)


def shut_down(stream: trio.abc.Stream) -> None:
    """End a TCP connection both ways, which wakes tasks that wait on it; closing it stays theirs."""
    if isinstance(stream, TCPStream | trio.SocketStream):
        with suppress(OSError):
            stream.socket.shutdown(socket.SHUT_RDWR)


def peer_address(stream: trio.abc.Stream) -> str:
    """Return `address:port` of the other end of a TCP or TLS stream; the stream's kind for any other.

    Behind a load balancer the other end is the client, as far as that was stated (`TCPStream.peer`).
    """
    while isinstance(stream, TLSStream):
        stream = stream.transport_stream
    if isinstance(stream, TCPStream) and stream.peer is not None:
        return _shown(*stream.peer)
    if not isinstance(stream, TCPStream | trio.SocketStream):
        return type(stream).__name__
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "a closed connection"
    return _shown(host, port)


def _shown(host: str, port: int) -> str:
    # At a socket for both families an IPv4 peer has such an address (RFC 4291 section 2.5.5.2).
    mapped = host.removeprefix("::ffff:")
    if "." in mapped and ":" not in mapped:
        host = mapped
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tls_socket(stream: trio.abc.Stream) -> socket.socket | None:
    """Return the socket below a TLS stream that can be sent to, and received from, without a wait.

    It may be TLS in TLS, as through a proxy that is reached by TLS. None for any other stream.
    """
    if type(stream) is not TLSStream:
        return None
    while type(stream) is TLSStream:
        stream = stream.transport_stream
    return stream.socket if type(stream) is TCPStream else None


def has_input(stream: trio.abc.Stream) -> bool:
    """Tell whether the kernel has something to read on a TCP or TLS stream: bytes, the peer's end, an error.

    On an idle connection that is its end, or bytes that were not asked for. False for any other stream.
    """
    while type(stream) is TLSStream:
        stream = stream.transport_stream
    if type(stream) is not TCPStream or stream.socket.fileno() < 0:
        return False
    try:
        # A sixth of what a poll costs: nearly always the answer is that there is nothing.
        stream.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def client_context(ca_pem: str | None = None) -> ClientContext:
    """Return a context that verifies servers against `ca_pem`, or against the system's CAs without it.

    It remembers a session for each server, and wrap_client resumes that one.

    Raises ValueError when `ca_pem` holds no certificate.
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    if ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as exc:
        raise ValueError("no usable certificate in the PEM of the CA") from exc
    # Any certificate in the file is an anchor, an intermediate or the server's own as well, as it is for
    # kubectl.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def server_context(cert: str | os.PathLike[str], key: str | os.PathLike[str]) -> ssl.SSLContext:
    """Return a context for a server with the certificate chain and private key in two PEM files.

    Raises OSError when a file cannot be read and ssl.SSLError when they do not fit, or when the key is
    encrypted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    # With no password at all OpenSSL asks the terminal for one, and the whole process waits for it.
    context.load_cert_chain(cert, key, password="")
    # OpenSSL sends two by default. Clients that resume keep the newest and use it again. Each costs 15 µs.
    context.num_tickets = 1
    return context


def _restrict(context: ssl.SSLContext) -> None:
    # Contexts are not made by ssl.create_default_context: that writes the session keys to the file that
    # SSLKEYLOGFILE names, and a user that can set an agent's environment could then read every token.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    # Renegotiation lets a peer burn our CPU, and makes a write wait for a read. Compression leaks what is
    # encrypted. Session tickets stay on: a resumed handshake costs a third.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
