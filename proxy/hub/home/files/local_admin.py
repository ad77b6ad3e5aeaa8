"""What `hawse admin` on the hub's machine reads from the data folder: its token, and the API's address."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import attrs

from auth.apikey import ApiKeyError, new_api_key, parse
from proxy.hub.home.files.private_files import DataDirError, is_there, read_private, write_private
from proxy.hub.store.local_user import HUB_ID
from proxy.process.untrusted_json import read_json


@attrs.frozen
class AdminEndpoint:
    """The URL of this hub's admin API, and the certificate that it presents."""

    url: str
    certificate_pem: str


@attrs.frozen
class LocalAdmin:
    """The files in the data folder for `hawse admin` on this machine."""

    folder: Path

    @property
    def token_file(self) -> Path:
        return self.folder / "admin-token"

    @property
    def endpoint_file(self) -> Path:
        # A hub writes it last in its start, so it shows that all other files were made.
        return self.folder / "admin.json"

    def hub_id(self) -> str:
        """Return the id of this folder's hub among those on one directory, making it at the first start.

        Raises DataDirError.
        """
        file = self.folder / "hub-id"
        if not is_there(file):
            write_private(file, secrets.token_hex(4).encode("ascii") + b"\n")
        hub_id = read_private(file).decode("ascii", "replace").strip()
        if HUB_ID.fullmatch(hub_id) is None:
            raise DataDirError(f"{file}: damaged; remove it, and start the hub again for a new id")
        return hub_id

    def token(self) -> str | None:
        """Return the token of `hawse admin` on this machine; None when there is none. Raises DataDirError."""
        if not is_there(self.token_file):
            return None
        try:
            return parse(read_private(self.token_file).decode("ascii", "replace").strip())
        except ApiKeyError as error:
            raise DataDirError(
                f"{self.token_file}: {error}; delete it and start the hub again for a new one"
            ) from error

    def make_token(self) -> str:
        """Write a new token for `hawse admin` on this machine; the caller adds it to the store."""
        token = new_api_key(secrets.token_bytes(32))
        write_private(self.token_file, token.encode("ascii") + b"\n")
        return token

    def write_endpoint(self, endpoint: AdminEndpoint) -> None:
        """Write the admin API's address for `hawse admin` on this machine."""
        text = json.dumps({"url": endpoint.url, "certificate_pem": endpoint.certificate_pem}, indent=1)
        write_private(self.endpoint_file, text.encode("utf-8") + b"\n")

    def endpoint(self) -> AdminEndpoint | None:
        """Return where the admin API last listened; None before the first start. Raises DataDirError."""
        file = self.endpoint_file
        if not is_there(file):
            return None
        try:
            document = read_json(read_private(file))
            return AdminEndpoint(str(document["url"]), str(document["certificate_pem"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataDirError(f"{file}: damaged; start the hub again") from error
