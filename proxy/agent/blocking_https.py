"""HTTPS for commands that ask once and end: by the standard library, blocking, and fast to load.

http.client by itself tries the addresses of a name one after the other, each until it times out, where
kubectl beside it goes on at once. And before Python 3.13 its CONNECT writes an IPv6 address so that no proxy
can read it, so that what is said to a proxy is not its business here.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from contextlib import suppress
from http import client
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunnel.net.egress import Proxy

# How long an address may keep the next one of the same host waiting (RFC 8305 section 8).
NEXT_ADDRESS_S = 0.25


# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_OUT_OF_TIME = frozenset({9, 10})
# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OF_ANOTHER_HOST = frozenset({62, 64})


def next_step(error: ssl.SSLCertVerificationError, ca: str) -> str:
    """What to do about a certificate that is not trusted; `ca` is how its CA is told."""
    if error.verify_code in _OUT_OF_TIME:
        return "it must be renewed, unless this machine's clock is wrong"
    if error.verify_code in _OF_ANOTHER_HOST:
        return "the URL must name the host as the certificate does"
    return ca


def trusting(ca_pem: str | None) -> ssl.SSLContext:
    """Return a context that verifies servers by these CAs, or by the system's where there are none.

    As tunnel.net.connect's, for the same reasons: what is a CA to that and to kubectl is one here. Raises
    ValueError when the text holds no certificate.
    """
    # Not ssl.create_default_context: that writes the session keys to the file that SSLKEYLOGFILE names, and
    # from Python 3.13 on refuses the CAs that people make by hand.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, TypeError, ValueError) as error:
        raise ValueError("no usable certificate in the PEM of the CA") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class HTTPSConnection(client.HTTPSConnection):
    """One that is opened by its first request, straight or through a proxy of the kind http://.

    Raises OSError, whose text names the proxy if that is what refused, and never holds its password.
    """

    def __init__(
        self, host: str, port: int, *, timeout_s: float, context: ssl.SSLContext, proxy: Proxy | None = None
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self.proxy = proxy
        self._timeout_s = timeout_s
        self._tls = context

    def connect(self) -> None:
        """Connect, through the proxy if there is one, and shake hands."""
        if self.proxy is None:
            raw = open_tcp(self.host, self.port, self._timeout_s)
        else:
            raw = open_tcp(self.proxy.host, self.proxy.port, self._timeout_s)
        try:
            if self.proxy is not None:
                _connect_through(raw, self.proxy, self.host, self.port)
            self.sock = self._tls.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise


def _connect_through(raw: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    # Only who is behind a proxy pays for loading what knows of them.
    from tunnel.net.egress import RECEIVE_BYTES_MAX, Connect, ProxyRefused

    connect = Connect(proxy, host, port)
    raw.sendall(connect.request)
    try:
        while not connect.receive(raw.recv(RECEIVE_BYTES_MAX)):
            pass
    except ProxyRefused as error:
        raise OSError(str(error)) from error


def open_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address of `host` that answers, trying the next after a short wait (RFC 8305).

    The timeout is that of all addresses together, and afterwards of each wait on the socket. Raises OSError.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        # Of a part that is empty or too long, which no resolver is asked about.
        raise OSError("no host can have that name") from error
    deadline = time.monotonic() + timeout_s
    failure = OSError(f"{host} has no address")
    pending: list[socket.socket] = []
    try:
        while addresses or pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no connection within {timeout_s:.0f} s")
            if addresses:
                family, kind, protocol, _, address = addresses.pop(0)
                try:
                    pending.append(_begin(socket.socket(family, kind, protocol), address))
                except OSError as error:
                    failure = error
                    continue
            for attempt in _ended(pending, min(left_s, NEXT_ADDRESS_S) if addresses else left_s):
                pending.remove(attempt)
                number = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number == 0:
                    # Head and body are two writes, and the second is not to wait for the first one's ACK.
                    with suppress(OSError):
                        attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    attempt.settimeout(timeout_s)
                    return attempt
                attempt.close()
                failure = OSError(number, os.strerror(number))
        raise failure
    finally:
        for attempt in pending:
            attempt.close()


def _ended(pending: list[socket.socket], wait_s: float) -> list[socket.socket]:
    """Those that have come to their end, as soon as one has, or after that long."""
    # No select(2), which takes no descriptor from 1,024 on: `hawse connect` may have as many connections.
    poll = select.poll()
    for attempt in pending:
        poll.register(attempt, select.POLLOUT)
    ended = {descriptor for descriptor, _ in poll.poll(wait_s * 1000)}
    return [attempt for attempt in pending if attempt.fileno() in ended]


def _begin(attempt: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    attempt.setblocking(False)
    number = attempt.connect_ex(address)
    if number not in {0, errno.EINPROGRESS}:
        attempt.close()
        raise OSError(number, os.strerror(number))
    return attempt
