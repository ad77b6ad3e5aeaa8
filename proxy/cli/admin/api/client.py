"""The client of the admin API. It finds the hub through its data folder or the environment.

Synchronous, with the standard library only: a command makes one or two calls, and must start fast.
"""

from __future__ import annotations

import itertools
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

import attrs
import click

from audit.escape import escape_lines
from proxy.agent.https.blocking import HTTPSConnection, next_step, trusting
from proxy.cli.admin.api.inputs import read_file
from proxy.cli.errors import CommandError, ConfigurationFaults
from proxy.cli.output import Object
from proxy.hub.store.local_user import USER_HEADER, local_user
from proxy.process.certificates import fault_of_ca
from proxy.process.untrusted_json import read_json

if TYPE_CHECKING:
    from proxy.cli.admin.api.logins import AdminLogin

URL_VARIABLE = "HAWSE_ADMIN_URL"
TOKEN_VARIABLE = "HAWSE_ADMIN_TOKEN"  # noqa: S105 - the name of a variable
CA_VARIABLE = "HAWSE_ADMIN_CA"
FOLDER_VARIABLE = "HAWSE_HUB_DATA_DIR"
# An operator waits for it. The hub answers in milliseconds.
TIMEOUT_S = 30.0
# Manifests have some 10 KB. A list of 100,000 agents has 40 MB.
ANSWER_BYTES_MAX = 256 * 1024 * 1024
# A system's bundle of public CAs has 220 KB.
CA_BYTES_MAX = 1024 * 1024
# Statuses of a hub that may answer later: it is busy, or its trail or its balancer is away.
_AGAIN = frozenset({429, 502, 503, 504})
NONE: Mapping[str, str] = MappingProxyType({})
# Of a refusal's body, each 64 KiB at most.
ERROR_PIECES_MAX = 16
# Of an answer in plain text, shown in one line.
WORDS_BYTES_MAX = 300


class MissingError(CommandError):
    """What the path names does not exist."""


class UnreachableError(CommandError):
    """The hub was not reached, or cannot answer now, or the connection was cut."""


@attrs.frozen
class AdminClient:
    """One hub's admin API. Each call raises CommandError with the next step."""

    url: str
    token: str = attrs.field(repr=False)
    context: ssl.SSLContext = attrs.field(repr=False)
    user: str = ""
    """The user of this machine. Sent only to a hub on this machine."""
    ca_option: str = CA_VARIABLE
    """What names the CA file, for the error of an untrusted certificate."""

    def get(self, *path: str, **query: str | None) -> Object:
        """Read an object or a list. A parameter that is None is left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", path, None, given)

    def post(self, *path: str, body: Mapping[str, object] | None = None, **query: str) -> Object:
        """Create an object, or start an action."""
        return self._call("POST", path, body, query)

    def put(self, *path: str, body: Mapping[str, object] | None = None) -> Object:
        """Set a value."""
        return self._call("PUT", path, body, {})

    def patch(self, *path: str, body: Mapping[str, object]) -> Object:
        """Change part of an object."""
        return self._call("PATCH", path, body, {})

    def delete(self, *path: str) -> Object:
        """Remove an object."""
        return self._call("DELETE", path, None, {})

    @contextmanager
    def stream(
        self, method: str, *path: str, query: Mapping[str, str] = NONE, headers: Mapping[str, str] = NONE
    ) -> Iterator[Iterator[bytes]]:
        """Read an answer in pieces, as they arrive; raises UnreachableError also if it is cut."""
        target = _target(path, query)
        with closing(self._connection()) as connection:
            with self._translated(method, connection):
                status, pieces = connection.stream(method, target, {**self._headers(), **headers})
            arriving = self._arriving(pieces, method, connection)
            if status >= 400:
                answer = b"".join(itertools.islice(arriving, ERROR_PIECES_MAX))
                kind = UnreachableError if status in _AGAIN else CommandError
                raise kind(self._refusal(status, answer))
            yield arriving

    def _arriving(self, pieces: Iterator[bytes], method: str, connection: HTTPSConnection) -> Iterator[bytes]:
        # An error of the caller's, who writes the pieces to a file, is none of the connection.
        while True:
            with self._translated(method, connection):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _call(
        self, method: str, path: tuple[str, ...], body: Mapping[str, object] | None, query: Mapping[str, str]
    ) -> Object:
        target, headers = _target(path, query), self._headers()
        data = None
        if body is not None:
            data = json.dumps(body).encode("ascii")
            headers["content-type"] = "application/json"
        with closing(self._connection()) as connection, self._translated(method, connection):
            status, answer = connection.exchange(
                method, target, headers, data, body_bytes_max=ANSWER_BYTES_MAX
            )
        document = _document(answer)
        if document is None or status >= 400:
            kind = MissingError if status == 404 else CommandError
            raise kind(self._refusal(status, answer))
        if isinstance(notice := document.pop("notice", None), str):
            click.echo(f"hawse: {escape_lines(notice)}", err=True)
        return document

    def _headers(self) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self.token}", "accept": "application/json"}
        return {**headers, USER_HEADER: self.user} if self.user else headers

    def _refusal(self, status: int, answer: bytes) -> str:
        document = _document(answer)
        if document is None:
            return _plain_text_error(self.url, status, answer)
        return _error_text(self.url, status, document)

    def _connection(self) -> HTTPSConnection:
        parts = urlsplit(self.url)
        # This connection ignores proxy variables and .netrc, so the token goes nowhere else.
        return HTTPSConnection(
            parts.hostname or "", parts.port or 443, timeout_s=TIMEOUT_S, context=self.context
        )

    @contextmanager
    def _translated(self, method: str, connection: HTTPSConnection) -> Iterator[None]:
        """Connect, and translate errors of the connection to CommandError."""
        sent = False
        try:
            connection.connect()
            sent = True
            yield
        except ssl.SSLCertVerificationError as error:
            raise CommandError(
                f"the certificate at {self.url} is not trusted ({error.verify_message}): "
                f"{next_step(error, f'name its CA file by {self.ca_option}')}"
            ) from error
        except ConnectionRefusedError as error:
            raise UnreachableError(
                f"nothing listens at {self.url}: start the hub with `hawse hub`"
            ) from error
        except OSError as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                why = f"no answer within {TIMEOUT_S:.0f} s; see the hub's log"
            if sent and method != "GET":
                why += (
                    "; to learn whether the change was made, run `hawse audit list --kind admin.action` there"
                )
            raise UnreachableError(f"cannot reach the admin API at {self.url}: {why}") from error


def _target(path: tuple[str, ...], query: Mapping[str, str]) -> str:
    try:
        # Quoted: a name with a slash or a question mark is only a name that does not exist.
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        return f"{target}?{urlencode(query)}" if query else target
    except UnicodeEncodeError as error:
        # Python decodes other bytes of an argument as lone surrogates.
        raise CommandError(f"the argument {error.object!a} is not UTF-8") from error


def _document(answer: bytes) -> Object | None:
    """Return the answer's object; None if it is none."""
    try:
        document = read_json(answer)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _error_text(url: str, status: int, document: Object) -> str:
    error = document.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    if status == 401 and not (isinstance(error, dict) and error.get("code") == "expired"):
        return (
            f"the hub refused this admin token: set {TOKEN_VARIABLE} to a valid one, "
            "or run this on the hub's machine as the user that runs the hub"
        )
    if not message:
        return f"{url} answered {status}: is it the hub's admin listener?"
    return escape_lines(str(message))


def _plain_text_error(url: str, status: int, answer: bytes) -> str:
    """Return the error of a plain-text answer, which the hub sends if the admin API never saw the request."""
    line = answer[:WORDS_BYTES_MAX].decode("utf-8", "replace").strip()
    # An HTML page has several lines, and begins with a tag.
    if status < 400 or not line or not line.isprintable() or line.startswith("<"):
        return f"{url} does not answer like a hub's admin API (status {status})"
    return f"{url} answered {status}: {line}" + ("; see the hub's log" if status == 500 else "")


@attrs.frozen
class Reach:
    """The options that locate a hub. Resolved when a command needs the hub, so `--help` needs none."""

    config_file: Path | None
    data_dir: Path | None
    hub: str | None = None
    """The name of a login."""

    def folder(self) -> Path:
        """The hub's data folder; raises CommandError."""
        from proxy.hub.home.data_folder import stated_data_dir

        if self.data_dir is not None:
            return self.data_dir
        if self.hub is not None:
            raise CommandError(
                "this command needs a data folder on this machine, but --hub names a remote hub: "
                "run it on the hub's machine"
            )
        if self.remote:
            # The URL names another hub, so a data folder on this machine is not what the user means.
            raise CommandError(
                f"this command needs a data folder on this machine, but {URL_VARIABLE} names a remote hub: "
                "run it on the hub's machine, or name the folder with --data-dir"
            )
        found = stated_data_dir(self.config_file, os.environ)
        if found is not None:
            return found
        from proxy.hub.home.config import load
        from proxy.process.config import ConfigError

        try:
            return load(self.config_file).data_dir
        except ConfigError as error:
            raise ConfigurationFaults("hub", error.faults) from error

    @property
    def remote(self) -> bool:
        """Whether --hub or HAWSE_ADMIN_URL names the hub, and no option or variable a folder here."""
        here = self.data_dir or self.config_file or FOLDER_VARIABLE in os.environ
        return self.hub is not None or (bool(os.environ.get(URL_VARIABLE)) and not here)

    def client(self) -> AdminClient:
        """Find the hub; raises CommandError."""
        if self.hub is not None:
            from proxy.cli.admin.api.logins import find_login

            return client_of(find_login(os.environ, self.hub), f"hawse admin login {self.hub} --ca")
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        check_token(token, TOKEN_VARIABLE)
        if url := os.environ.get(URL_VARIABLE):
            return _remote(url.rstrip("/"), token, os.environ.get(CA_VARIABLE))
        return _local(self.folder(), token)


def check_token(token: str, source: str) -> None:
    """Raise CommandError for a text that no header can have. The error for that would print it."""
    if not (token.isascii() and token.isprintable()):
        raise CommandError(f"{source} is not an admin token: it must be one line of ASCII")


def client_of(login: AdminLogin, ca_option: str) -> AdminClient:
    """Return the client of a login; `ca_option` is the option that names another CA."""
    return AdminClient(login.url, login.token, trusting(login.ca_pem), ca_option=ca_option)


def _remote(url: str, token: str, ca: str | None) -> AdminClient:
    if not is_https(url):
        raise CommandError(f"{URL_VARIABLE} must be https://host:port")
    if not token:
        raise CommandError(f"{URL_VARIABLE} is set, but {TOKEN_VARIABLE} is not: set it to an admin token")
    return AdminClient(url, token, trusting(certificates(Path(ca), CA_VARIABLE) if ca else None))


def certificates(ca: Path, option: str) -> str:
    """Read the file of CA certificates that an option names; raises CommandError."""
    pem = read_file(ca, option, CA_BYTES_MAX)
    assert pem is not None
    # System bundles describe their certificates in any language.
    pem = pem.encode("ascii", "ignore").decode("ascii")
    fault = fault_of_ca(pem)
    if fault is not None:
        raise CommandError(f"{option}: {ca} {fault}: name the CA file of the hub's certificate")
    return pem


def is_https(url: str) -> bool:
    """Whether this is https://host or https://host:port."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # The port is not a number or too high, or an IPv6 address is incomplete.
        return False


def _local(folder: Path, token: str) -> AdminClient:
    # Not by way of DataDir, whose signing keys load cryptography.
    from proxy.hub.home.files.local_admin import LocalAdmin
    from proxy.hub.home.files.private_files import DataDirError

    local = LocalAdmin(folder)
    user = "" if token else local_user(os.environ)
    try:
        endpoint = local.endpoint()
        token = token or local.token() or ""
    except DataDirError as error:
        raise CommandError(
            f"{error}: name the hub's data folder with --data-dir, or set {URL_VARIABLE} and {TOKEN_VARIABLE}"
        ) from error
    if endpoint is None or not token:
        raise CommandError(
            f"no hub has run with the data folder {folder}: start `hawse hub`, name its folder with --config "
            f"or --data-dir, or set {URL_VARIABLE} and {TOKEN_VARIABLE}"
        )
    return AdminClient(endpoint.url, token, _pinned(endpoint.certificate_pem), user)


def _pinned(certificate_pem: str) -> ssl.SSLContext:
    """Trust exactly one certificate, regardless of its names and issuer.

    It comes from a folder that is as private as the token, which is stronger than a name check. The
    certificate's name is the hub's public host, while this client dials the loopback address.
    """
    context = trusting(certificate_pem)
    context.check_hostname = False
    return context
