"""Where the API server is, and the relay's own credential for it, fresh from the disk.

In a cluster both come from the pod's service account; outside, from a kubeconfig with a bearer token. The
kubelet rotates the token by swapping a symbolic link, so files are reopened by path and never held open;
the path is looked at once a second at most, by `stat`, and read when something about it changed.

What is refused, and why: a client certificate authenticates the connection and not the request, so one
upgrade that goes wrong would leave a socket that acts as the relay (CVE-2018-1002105). A credential plugin
or an auth provider would run code or fetch tokens from elsewhere. A proxy would see the token. A server
without a pinned CA would be whoever the environment's trust store says.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import attrs
import yaml

from tunnel.net import client_context

log = logging.getLogger(__name__)

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Between two looks at a file on the hot path. The old token stays good for minutes after a rotation.
STAT_INTERVAL_S = 1.0
# A projected token is about 1 KiB, a CA bundle some 10 KiB.
FILE_BYTES_MAX = 1024 * 1024

_TOKEN = re.compile(r"[\x21-\x7e]+")
_Value = TypeVar("_Value")


class ClusterAccessError(Exception):
    """There is no usable way to the API server; the message names the file or key, never its content."""


class WatchedFile(Generic[_Value]):
    """A value parsed from a file, read again when the file at that path is another one or changed.

    Keeps the last good value while the file is away or unreadable, and says so in the log once a fault.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], _Value], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the file for the first time; raises ClusterAccessError."""
        self.path = path
        self._parse = parse
        self._clock = clock
        self._fault = ""
        self._stamp = self._look()
        self._value = self._read()
        self._looked_at = clock()

    def current(self) -> _Value:
        """The value, at most STAT_INTERVAL_S old."""
        if self._clock() - self._looked_at >= STAT_INTERVAL_S:
            self.refresh()
        return self._value

    def refresh(self) -> _Value:
        """Look at the path now and read the file if it changed."""
        self._looked_at = self._clock()
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._value = self._read()
                self._stamp = stamp
                log.info("read %s again: it changed", self.path)
            self._fault = ""
        except ClusterAccessError as error:
            if str(error) != self._fault:
                log.warning("%s; the last good content stays in use", error)
                self._fault = str(error)
        return self._value

    def _look(self) -> tuple[int, int, int, int]:
        # By path, through the symbolic links: a swapped `..data` is another inode.
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise ClusterAccessError(f"{self.path} cannot be read: {error.strerror}") from error
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> _Value:
        try:
            with self.path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ClusterAccessError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(raw) > FILE_BYTES_MAX:
            raise ClusterAccessError(f"{self.path} is larger than {FILE_BYTES_MAX} bytes")
        try:
            return self._parse(raw)
        except ClusterAccessError as error:
            raise ClusterAccessError(f"{self.path}: {error}") from error


@attrs.define(eq=False)
class ClusterAccess:
    """The API server's address, and its credential and trust as the disk has them now."""

    host: str
    port: int
    server_name: str
    _token: WatchedFile[str] = attrs.field(repr=False)
    _tls: WatchedFile[ssl.SSLContext] = attrs.field(repr=False)

    @property
    def authority(self) -> bytes:
        """The Host header."""
        return (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}").encode(
            "ascii"
        )

    def token(self) -> str:
        """The bearer token to send now."""
        return self._token.current()

    def refresh_token(self) -> bool:
        """Look for a newer token at once, after the API server refused this one; whether there is one."""
        before = self._token.current()
        return self._token.refresh() != before

    def ssl_context(self) -> ssl.SSLContext:
        """What a new connection verifies the API server by."""
        return self._tls.current()


def in_cluster(
    environment: Mapping[str, str] | None = None, folder: Path = SERVICE_ACCOUNT_FOLDER
) -> ClusterAccess:
    """Find the API server as a pod does; raises ClusterAccessError."""
    if environment is None:
        environment = os.environ
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", ""),
    )
    if not host or not port:
        raise ClusterAccessError(
            "not in a cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set): "
            "name a kubeconfig by HAWSE_RELAY_KUBECONFIG"
        )
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not re.fullmatch(
        r"[0-9A-Za-z.:-]+", host, re.ASCII
    ):
        raise ClusterAccessError("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are no host and port")
    return ClusterAccess(
        host,
        int(port),
        host,
        WatchedFile(folder / "token", _parse_token),
        WatchedFile(folder / "ca.crt", _parse_ca),
    )


def from_kubeconfig(path: Path) -> ClusterAccess:
    """Read the current context of a kubeconfig with a bearer token; raises ClusterAccessError.

    The server's address is fixed from here on; token and CA are read again when their file changes.
    """
    entry = WatchedFile(path, _parse_kubeconfig).current()
    parts = urlsplit(entry.server)
    assert parts.hostname is not None
    if entry.token_file is not None:
        token = WatchedFile(path.parent / entry.token_file, _parse_token)
    else:
        token = WatchedFile(path, lambda raw: _parse_kubeconfig(raw).token)
    if entry.ca_file is not None:
        tls = WatchedFile(path.parent / entry.ca_file, _parse_ca)
    else:
        tls = WatchedFile(path, lambda raw: _parse_ca(_parse_kubeconfig(raw).ca))
    return ClusterAccess(parts.hostname, parts.port or 443, entry.server_name or parts.hostname, token, tls)


@attrs.frozen
class _Entry:
    """What the current context of a kubeconfig comes to."""

    server: str
    server_name: str | None
    ca: bytes = attrs.field(repr=False)
    ca_file: str | None
    token: str = attrs.field(repr=False)
    token_file: str | None


_NO_CERTIFICATE = (
    "a client certificate authenticates the connection and not each request, so a failed upgrade could "
    "leave a socket that acts as the relay; use a service account's bearer token"
)
_NO_BASIC = "basic authentication is gone from Kubernetes; use a service account's bearer token"
# key of a user → why it is no credential for a relay
_REFUSED_USER_KEYS = {
    "client-certificate": _NO_CERTIFICATE,
    "client-key": _NO_CERTIFICATE,
    "exec": "a credential plugin would run another program; use a service account's bearer token",
    "auth-provider": "it would fetch tokens from elsewhere; use a service account's bearer token",
    "username": _NO_BASIC,
    "password": _NO_BASIC,
    "as": "the relay impersonates agents and cannot itself be impersonated",
}
_REFUSED_CLUSTER_KEYS = {
    "insecure-skip-tls-verify": "the relay verifies the API server always; give its CA",
    "proxy-url": "the relay sends its token straight to the API server, through no proxy",
}


def _parse_kubeconfig(raw: bytes) -> _Entry:
    try:
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        # The parser's message quotes the text, which may be a token.
        raise ClusterAccessError("not valid YAML") from exc
    if not isinstance(document, dict):
        raise ClusterAccessError("not a kubeconfig")
    context = _named(document, "contexts", "context", _string(document, "current-context"))
    cluster = _named(document, "clusters", "cluster", _string(context, "cluster"))
    user = _named(document, "users", "user", _string(context, "user"))
    for kind, table, refused in (
        ("cluster", cluster, _REFUSED_CLUSTER_KEYS),
        ("user", user, _REFUSED_USER_KEYS),
    ):
        for key in table:
            name = str(key).removesuffix("-data")
            if table[key] and name in refused:
                raise ClusterAccessError(f"the {kind} has {key}: {refused[name]}")
    server = _string(cluster, "server")
    _check_server(server)
    ca, ca_file = b"", _optional(cluster, "certificate-authority")
    data = _optional(cluster, "certificate-authority-data")
    if data is not None:
        # As client-go has it: data override the file.
        ca, ca_file = _decode(data), None
    elif ca_file is None:
        raise ClusterAccessError(
            "the cluster has no certificate-authority: the relay trusts only a pinned CA"
        )
    token, token_file = "", _optional(user, "tokenFile")
    inline = _optional(user, "token")
    if token_file is None:
        if inline is None:
            raise ClusterAccessError("the user has no token and no tokenFile")
        token = _parse_token(inline.encode("utf-8"))
    return _Entry(server, _optional(cluster, "tls-server-name"), ca, ca_file, token, token_file)


def _named(document: Mapping[object, object], listing: str, key: str, name: str) -> Mapping[object, object]:
    entries = document.get(listing)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(key), dict):
            table: dict[object, object] = entry[key]
            return table
    raise ClusterAccessError(f"{listing} has no entry with the name that is referred to")


def _string(table: Mapping[object, object], key: str) -> str:
    value = _optional(table, key)
    if value is None:
        raise ClusterAccessError(f"{key} is missing")
    return value


def _optional(table: Mapping[object, object], key: str) -> str | None:
    value = table.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ClusterAccessError(f"{key} is not a string")
    return value


def _check_server(server: str) -> None:
    try:
        parts = urlsplit(server)
        valid = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and server.isascii()
    except ValueError:
        valid = False
    if not valid or parts.username is not None or parts.path.rstrip("/") or parts.query or parts.fragment:
        raise ClusterAccessError("server is not https://host or https://host:port")


def _decode(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as exc:
        raise ClusterAccessError("certificate-authority-data is not base64") from exc


def _parse_token(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace").strip()
    if _TOKEN.fullmatch(text) is None:
        raise ClusterAccessError("no token in it: expected one line of plain characters")
    return text


def _parse_ca(raw: bytes) -> ssl.SSLContext:
    try:
        return client_context(raw.decode("ascii"))
    except (ssl.SSLError, ValueError) as exc:
        raise ClusterAccessError("no CA certificate in PEM in it") from exc
