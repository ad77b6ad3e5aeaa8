"""Blocking HTTPS for commands that send one request and exit. Few imports, so that it loads fast.

Not http.client: it loads for 10 ms, and tries a name's addresses one after another, each until its timeout,
while kubectl moves on at once. Proxies are spoken to through tunnel.net.egress.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from proxy.agent.https.answer import HTTPError, begin_answer, read_answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from tunnel.net.egress import Proxy

# The delay before the host's next address is tried in parallel (RFC 8305 section 8).
NEXT_ADDRESS_S = 0.25

# RFC 1035 section 2.3.4.
LABEL_MAX = 63
# RFC 9110 section 8.6: these state the length of an empty body too.
_WITH_BODY = frozenset({"PATCH", "POST", "PUT"})
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_EXPIRED = frozenset({9, 10})
# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_WRONG_HOST = frozenset({62, 64})


def next_step(error: ssl.SSLCertVerificationError, ca: str) -> str:
    """Return the next step for an untrusted certificate; `ca` is the step for an unknown CA."""
    if error.verify_code in _EXPIRED:
        return "it must be renewed, unless this machine's clock is wrong"
    if error.verify_code in _WRONG_HOST:
        return "the URL must name the host as the certificate does"
    return ca


def trusting(ca_pem: str | None) -> ssl.SSLContext:
    """Return a context that verifies servers by these CAs, or by the system's without them.

    It accepts the same CAs as tunnel.net.connect and kubectl. Raises ValueError if the text holds no
    certificate.
    """
    # Not ssl.create_default_context: it writes session keys to the file of SSLKEYLOGFILE, and from Python
    # 3.13 on refuses many hand-made CAs.
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


class HTTPSConnection:
    """A connection for one request, direct or through an http:// proxy.

    Its methods raise OSError. If a proxy refused, the text names the proxy, but never its password.
    """

    def __init__(
        self, host: str, port: int, *, timeout_s: float, context: ssl.SSLContext, proxy: Proxy | None = None
    ) -> None:
        self.host = host
        self.port = port
        self.proxy = proxy
        self._timeout_s = timeout_s
        self._context = context
        self._socket: ssl.SSLSocket | None = None

    def begin(self) -> None:
        """Connect, through the proxy if there is one, and send the first message of the TLS handshake.

        The caller can prepare its request while the server answers.
        """
        host, port = (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)
        raw = open_tcp(host, port, self._timeout_s)
        try:
            if self.proxy is not None:
                _connect_through(raw, self.proxy, self.host, self.port)
            self._socket = self._context.wrap_socket(
                raw, server_hostname=_plain(self.host), do_handshake_on_connect=False
            )
        except BaseException:
            raw.close()
            raise
        self._socket.setblocking(False)
        with suppress(ssl.SSLWantReadError):
            self._socket.do_handshake()
        self._socket.settimeout(self._timeout_s)

    def connect(self) -> None:
        """Finish the TLS handshake. Begins it first, unless that is done."""
        if self._socket is None:
            self.begin()
        assert self._socket is not None
        # Does nothing after the handshake.
        self._socket.do_handshake()

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None, *, body_bytes_max: int
    ) -> tuple[int, bytes]:
        """Send the request, and return the answer's status and at most so many bytes of its body.

        Redirects are not followed. Connects first, unless that is done.
        """
        head = _request_head(self._authority(), method, target, headers, body)
        self.connect()
        assert self._socket is not None
        # One write: the server wakes up once, and TLS makes one record of a small request.
        self._socket.sendall(head + (body or b""))
        with self._socket.makefile("rb") as stream:
            return read_answer(cast("BinaryIO", stream), body_bytes_max)

    def stream(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, Iterator[bytes]]:
        """Send the request, and return the answer's status, and its body in pieces as they arrive.

        The pieces raise OSError as well, also if the body is cut.
        """
        head = _request_head(self._authority(), method, target, headers, body)
        self.connect()
        assert self._socket is not None
        self._socket.sendall(head + (body or b""))
        return begin_answer(cast("BinaryIO", self._socket.makefile("rb")))

    def close(self) -> None:
        """Close the connection without TLS's farewell."""
        if self._socket is not None:
            self._socket.close()

    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def _request_head(
    authority: str, method: str, target: str, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    fields = {"host": authority, "accept-encoding": "identity", **headers, "connection": "close"}
    if body is not None or method in _WITH_BODY:
        fields["content-length"] = str(len(body or b""))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    # The text is not repeated: it may hold a credential.
    if " " in target or not all(line.isascii() and line.isprintable() for line in lines):
        raise HTTPError("the request has a character that HTTP does not allow")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _connect_through(raw: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    # Imported only if there is a proxy: loading it takes time.
    from tunnel.net.egress import RECEIVE_BYTES_MAX, Connect, ProxyRefused

    connect = Connect(proxy, host, port)
    raw.sendall(connect.request)
    try:
        while not connect.receive(raw.recv(RECEIVE_BYTES_MAX)):
            pass
    except ProxyRefused as error:
        raise OSError(str(error)) from error


def _plain(host: str) -> bytes:
    """Return a host as ASCII; raises OSError. For a string, Python would load its IDNA codec, in 2 ms."""
    if host.isascii():
        name = host.encode("ascii")
        # As that codec does, so that no resolver is asked.
        valid = all(1 <= len(label) <= LABEL_MAX for label in host.removesuffix(".").split("."))
    else:
        try:
            name, valid = host.encode("idna"), True
        except UnicodeError:
            valid = False
    if not valid:
        raise OSError("no host can have that name")
    return name


def open_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address of `host` that answers; the next one is tried after a delay (RFC 8305).

    The timeout covers all addresses together, and later each wait on the socket. Raises OSError.
    """
    addresses = socket.getaddrinfo(_plain(host), port, type=socket.SOCK_STREAM)
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
                    # The handshake's last message and the request are two writes; the second must not wait
                    # for an ACK of the first.
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
    """Wait until a connection attempt ends or `wait_s` is over; returns the ended attempts."""
    # Not select(2), whose limit is descriptor 1,023: `hawse connect` may have more connections.
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
