"""Fetches an OpenID Connect issuer's documents: HTTPS only, no redirects, bounded size, public addresses.

An operator chooses the URL, but DNS and the server behind it are not trusted. So each address is checked when
it is dialled, and an answer is read up to a bound. Environment variables (proxies, CA bundles) are ignored,
and no credential is sent.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import trio

from proxy.exchange.client import ClientConnection
from proxy.hub.identity.guarded_dial import HTTPS_PORT, dial_checked
from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.entities import Issuer
from proxy.hub.store.names import check_https_url
from proxy.message.failure import OutboundBroken
from proxy.message.head import HeadError, RequestHead
from proxy.process.untrusted_json import read_json
from tunnel.net.connect import HandshakeFailed, client_context

# The largest issuers publish about ten keys of 2 KB each.
ANSWER_BYTES_MAX = 256 * 1024
_DISCOVERY = "/.well-known/openid-configuration"


class FetchFailed(Exception):
    """The fetch failed; the message is one line that names the URL."""


async def fetch_jwks(issuer: Issuer) -> bytes:
    """Return an issuer's key set as published; raises FetchFailed. The caller sets the deadline."""
    url = issuer.jwks_url or await _discovered(issuer)
    return await fetch(url, ca_pem=issuer.ca_pem, private=issuer.address_private)


async def _discovered(issuer: Issuer) -> str:
    # OpenID Connect Discovery 1.0 section 4: "any terminating / MUST be removed before appending".
    url = issuer.url.removesuffix("/") + _DISCOVERY
    data = await fetch(url, ca_pem=issuer.ca_pem, private=issuer.address_private)
    try:
        document = read_json(data)
    except ValueError as error:
        raise FetchFailed(f"{url} is not JSON") from error
    if not isinstance(document, dict) or document.get("issuer") != issuer.url:
        # Section 4.3: the issuer "MUST be identical to the Issuer URL that was used as the prefix".
        raise FetchFailed(f"{url} is of another issuer")
    jwks_url = document.get("jwks_uri")
    if not isinstance(jwks_url, str):
        raise FetchFailed(f"{url} names no jwks_uri")
    return jwks_url


async def fetch(url: str, *, ca_pem: str | None, private: bool) -> bytes:
    """GET a document; raises FetchFailed. When cancelled, the connection is closed."""
    try:
        check_https_url("URL", url, private=private)
    except InvalidError as error:
        raise FetchFailed(str(error)) from error
    parts = urlsplit(url)
    assert parts.hostname is not None
    try:
        context = client_context(ca_pem)
        stream = await dial_checked(parts.hostname, parts.port or HTTPS_PORT, context, private=private)
    except (OSError, HandshakeFailed, trio.BrokenResourceError, ValueError) as error:
        raise FetchFailed(f"cannot reach {url}: {' '.join(str(error).split())[:160]}") from error
    connection = ClientConnection(stream)
    try:
        return await _get(connection, url, parts.netloc, parts.path or "/")
    except (OutboundBroken, HeadError) as error:
        raise FetchFailed(f"{url} did not answer: {error}") from error
    finally:
        await trio.aclose_forcefully(stream)


async def _get(connection: ClientConnection, url: str, host: str, path: str) -> bytes:
    headers = (
        (b"host", host.encode("ascii")),
        (b"accept", b"application/json"),
        (b"user-agent", b"hawse"),
        (b"connection", b"close"),
    )
    await connection.send_request(RequestHead.of(b"GET", path.encode("ascii"), headers))
    head = await connection.receive_head()
    if 300 <= head.status < 400:
        raise FetchFailed(f"{url} redirects, which is not followed")
    if head.status != 200:
        raise FetchFailed(f"{url} answered {head.status}")
    data = bytearray()
    while chunk := await connection.receive_body():
        data += chunk
        if len(data) > ANSWER_BYTES_MAX:
            raise FetchFailed(f"{url} answered with more than {ANSWER_BYTES_MAX} bytes")
    return bytes(data)
