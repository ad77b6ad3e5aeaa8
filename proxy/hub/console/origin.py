"""The console's origin: which requests are for it, which come from its own pages, and its cookie. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Self
from urllib.parse import urlsplit

import attrs

Headers = Iterable[tuple[bytes, bytes]]

# A cookie holds 256 random bits, in base64 for URLs.
COOKIE_BYTES = 32
_VALUE = re.compile(rb"[A-Za-z0-9_-]{43}")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_CSP: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_FIXED: Final = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
# Half a year. Without subdomains: they may be other services.
_HSTS: Final = b"max-age=15768000"


@attrs.frozen
class Origin:
    """The origin of the console's pages, from `console.public_url`."""

    url: bytes
    """As browsers send it in `Origin`: without a path, and without the scheme's default port."""
    authority: bytes
    """As browsers send it in `Host`."""
    secure: bool
    cookie: bytes
    """The name of the session's cookie."""

    @classmethod
    def of(cls, public_url: str) -> Self:
        """Read a URL that the configuration has checked."""
        parts = urlsplit(public_url)
        secure = parts.scheme == "https"
        authority, port = parts.netloc.lower(), parts.port or _DEFAULT_PORTS[parts.scheme]
        if port == _DEFAULT_PORTS[parts.scheme]:
            authority = authority.removesuffix(f":{port}")
        # Cookies do not know ports: two hubs on loopback would sign each other's people out.
        cookie = "__Host-hawse" if secure else f"hawse-{port}"
        return cls(f"{parts.scheme}://{authority}".encode(), authority.encode(), secure, cookie.encode())

    def is_for_it(self, headers: Headers) -> bool:
        """Return whether a request's `Host` is this origin's."""
        hosts = _values(headers, b"host")
        if len(hosts) != 1:
            return False
        host = hosts[0].lower()
        default = b":443" if self.secure else b":80"
        return host == self.authority or host == self.authority + default

    def cross_site(self, headers: Headers) -> str:
        """Return why a change may come from another site; "" if it comes from a page of this origin."""
        sites = _values(headers, b"sec-fetch-site")
        # Some browsers do not send it, as Safari before 16.4.
        same = sites == [b"same-origin"] if sites else _values(headers, b"origin") == [self.url]
        return "" if same else "The request does not come from a page of this console."

    def is_read_by_another_site(self, headers: Headers) -> bool:
        """Return whether a page of another site asks for data; an address that was typed is no page."""
        return any(site not in {b"same-origin", b"none"} for site in _values(headers, b"sec-fetch-site"))

    def session_in(self, headers: Headers) -> str | None:
        """Return the value of the session's cookie; None if there is none, or more than one."""
        found = [
            value
            for line in _values(headers, b"cookie")
            for name, _, value in (pair.strip().partition(b"=") for pair in line.split(b";"))
            if name == self.cookie
        ]
        return found[0].decode() if len(found) == 1 and _VALUE.fullmatch(found[0]) else None

    def set_cookie(self, value: str) -> str:
        """Return the `Set-Cookie` that begins a session; it ends with the browser's own at the latest."""
        return f"{self.cookie.decode()}={value}; {self._attributes}"

    @property
    def clear_cookie(self) -> str:
        """The `Set-Cookie` that removes the cookie."""
        return f"{self.cookie.decode()}=; Max-Age=0; {self._attributes}"

    @property
    def _attributes(self) -> str:
        # Lax: a link to an event, in a chat, leads to the event.
        return f"Path=/; HttpOnly; SameSite=Lax{'; Secure' if self.secure else ''}"

    def headers(self) -> Mapping[bytes, bytes]:
        """Return the headers that every answer gets."""
        found = {b"content-security-policy": _CSP, **_FIXED}
        if self.secure:
            found[b"strict-transport-security"] = _HSTS
        return found


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for each, value in headers if each == name]
