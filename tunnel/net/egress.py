"""The way out of a network that lets nothing out but its HTTP proxy.

Which hosts go through the proxy is decided as Go's httpproxy does it, hence as kubectl does; where curl or
others differ, an operator who has set up the one has set up the other.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

import attrs
import h11
import trio

__all__ = ["Connect", "Proxy", "ProxyRefused", "ProxySettings", "connect_through"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_FORBIDDEN: Final = 403

# The head of a CONNECT answer is small; h11 refuses one of more than 16 KiB by itself.
RECEIVE_BYTES_MAX: Final = 4096


class ProxyRefused(Exception):
    """The proxy does not connect us; the text is one line without any credential."""


@attrs.frozen
class Proxy:
    """An HTTP proxy, spoken to over TLS if `tls`."""

    host: str
    port: int
    tls: bool = False
    authorization: bytes | None = attrs.field(default=None, repr=False)
    """The value of Proxy-Authorization."""

    @property
    def name(self) -> str:
        """Where it is, for logs."""
        return join_host_port(self.host, self.port)


@attrs.frozen
class _Exception:
    """One entry of NO_PROXY: a network, or a domain with or without the name itself; for one port or all."""

    port: int | None
    network: _Network | None = None
    suffix: str | None = None
    exact: str | None = None

    def covers(self, host: str, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        address = _address(host)
        if address is not None:
            return self.network is not None and address in self.network
        return host == self.exact or (self.suffix is not None and host.endswith(self.suffix))


@attrs.frozen
class ProxySettings:
    """Which proxy to use for which host."""

    proxy: Proxy | None = None
    exceptions: tuple[_Exception, ...] = ()
    everything_excepted: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ProxySettings:
        """Read HTTPS_PROXY and NO_PROXY, or their lower-case forms.

        Raises ValueError for a proxy that we cannot use; the text never holds the variable's value, in which
        a password may stand.
        """
        url = environ.get("HTTPS_PROXY") or environ.get("https_proxy") or ""
        listed = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
        entries = [entry.strip().lower() for entry in listed.split(",")]
        exceptions = [_parse_exception(entry) for entry in entries if entry and entry != "*"]
        return cls(
            proxy=_parse_proxy(url) if url else None,
            exceptions=tuple(exception for exception in exceptions if exception is not None),
            everything_excepted="*" in entries,
        )

    def proxy_for(self, host: str, port: int) -> Proxy | None:
        """Return the proxy on the way to `host`, or None for the direct way."""
        name = host.lower().rstrip(".")
        address = _address(name)
        # As in Go: a proxy cannot mean the same machine by these names as we do.
        if name == "localhost" or (address is not None and address.is_loopback):
            return None
        if self.everything_excepted or any(exception.covers(name, port) for exception in self.exceptions):
            return None
        return self.proxy


async def connect_through(stream: trio.abc.Stream, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end of `stream` to connect to `host`; afterwards it is the host's stream.

    Raises ProxyRefused, also when what answers is no proxy.
    """
    connect = Connect(proxy, host, port)
    try:
        await stream.send_all(connect.request)
        while not connect.receive(bytes(await stream.receive_some(RECEIVE_BYTES_MAX))):
            pass
    except trio.BrokenResourceError as exc:
        raise connect.cut() from exc


class Connect:
    """What is said to a proxy so that it connects to `host`, without the connection; see connect_through."""

    def __init__(self, proxy: Proxy, host: str, port: int) -> None:
        self._proxy = proxy
        self._target = join_host_port(host, port)
        self._connection = h11.Connection(h11.CLIENT)
        headers = [("Host", self._target)]
        if proxy.authorization is not None:
            headers.append(("Proxy-Authorization", proxy.authorization.decode("ascii")))
        request = self._connection.send(h11.Request(method="CONNECT", target=self._target, headers=headers))
        assert request is not None
        self.request = request + (self._connection.send(h11.EndOfMessage()) or b"")

    def receive(self, data: bytes) -> bool:
        """Whether the connection is the host's, now that this has come; raises ProxyRefused."""
        if not data:
            raise self.cut()
        proxy = self._proxy
        try:
            self._connection.receive_data(data)
            event = self._connection.next_event()
            while not isinstance(event, h11.Response):
                if event is h11.NEED_DATA:
                    return False
                event = self._connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise ProxyRefused(
                f"what answers at the proxy's address {proxy.name} speaks no HTTP: {exc}"
            ) from exc
        if not 200 <= event.status_code < 300:
            raise ProxyRefused(_refusal(event.status_code, proxy, self._target))
        if self._connection.trailing_data[0]:
            raise ProxyRefused(f"the proxy {proxy.name} sent bytes of its own behind its answer to CONNECT")
        return True

    def cut(self) -> ProxyRefused:
        """What it is called when the connection ends in between."""
        return ProxyRefused(f"the proxy {self._proxy.name} cut the connection before its answer to CONNECT")


def _refusal(status: int, proxy: Proxy, target: str) -> str:
    if status == _PROXY_AUTHENTICATION_REQUIRED and proxy.authorization is None:
        return f"the proxy {proxy.name} demands a user and a password (407); put them into HTTPS_PROXY"
    if status == _PROXY_AUTHENTICATION_REQUIRED:
        return f"the proxy {proxy.name} does not accept the user and password of HTTPS_PROXY (407)"
    if status == _FORBIDDEN:
        return f"the proxy {proxy.name} does not allow connections to {target} (403)"
    return f"the proxy {proxy.name} cannot connect to {target} ({status})"


def join_host_port(host: str, port: int) -> str:
    """Return `host:port` as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_proxy(url: str) -> Proxy:
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # Its text may quote the password, so it is not even the cause.
        raise ValueError("HTTPS_PROXY is no URL like http://proxy.example:3128") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(
            f"HTTPS_PROXY: a proxy of the kind {parts.scheme}:// is not supported, http:// and https:// are"
        )
    if not host:
        raise ValueError("HTTPS_PROXY names no host")
    authorization = None
    if parts.username is not None:
        userinfo = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
        authorization = b"Basic " + base64.b64encode(userinfo)
    # The percent sign in front of a zone is itself escaped in a URL (RFC 6874), as Go demands it.
    host = host.replace("%25", "%")
    return Proxy(host, port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "https", authorization)


def _parse_exception(entry: str) -> _Exception | None:
    network = _network(entry)
    if network is not None:
        return _Exception(None, network=network)
    name, _, digits = entry.rpartition(":")
    port = None
    if name and digits.isascii() and digits.isdigit():
        entry, port = name, int(digits)
    network = _network(entry.removeprefix("[").removesuffix("]"))
    if network is not None:
        return _Exception(port, network=network)
    if entry.startswith("*."):
        entry = entry[1:]
    if entry.startswith("."):
        return _Exception(port, suffix=entry)
    # Something that cannot match any name is ignored, as Go does.
    return _Exception(port, suffix=f".{entry}", exact=entry) if entry else None


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # As in Go, an IPv4 address is the same one in the form of IPv6.
    return getattr(address, "ipv4_mapped", None) or address
