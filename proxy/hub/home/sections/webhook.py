"""The configuration of the webhooks that tell of requests for approval: its keys, and their rules."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

import attrs

from auth.principal import IdentityError, slug
from proxy.hub.store.names import is_never_allowed, is_public
from proxy.process.config import fault_of_file
from proxy.process.stated import content
from tunnel.net.connect import client_context

# Each has a task, and a row for each event of a request.
WEBHOOKS_MAX: Final = 5
# As Standard Webhooks bounds them.
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
_PREFIX: Final = "whsec_"
_KEYS: Final = "base64 of 24 to 64 random bytes, as `openssl rand -base64 32` prints"


@attrs.frozen
class WebhookConfig:
    """A receiver."""

    name: str
    """Names it in the log, in metrics and in the outbox: the same at all hubs on one database."""
    url: str = attrs.field(repr=False)
    """Of https. It may be a secret itself, as those of Slack are, so no message has its path."""
    format: Literal["json", "slack"] = "json"
    secret_file: Path | None = None
    """The key of the signatures. It is read for each message."""
    ca_file: Path | None = None
    """The CA of the receiver's certificate; None: the system's CAs."""
    allow_private_address: bool = False
    """Whether the receiver may be at an address that is not public."""

    @property
    def parts(self) -> SplitResult:
        """The parts of the URL."""
        return urlsplit(self.url)

    @property
    def host(self) -> str:
        """The host of the URL, for people."""
        return self.parts.hostname or ""


def read_secret(file: Path) -> bytes:
    """Return the key in a file; raises OSError, and ValueError without any part of the file."""
    if not os.path.isfile(file):
        # A pipe would make a running hub wait for a writer.
        raise ValueError(f"{file} is not a regular file")
    text = content(file).strip().removeprefix(_PREFIX)
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        secret = b""  # not chained: the cause may quote the secret
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ValueError(f"{file} does not hold {_KEYS}")
    return secret


def faults_of_webhooks(webhooks: Sequence[WebhookConfig]) -> list[str]:
    """Return the violations of the rules that a type cannot express."""
    if len(webhooks) > WEBHOOKS_MAX:
        return [f"webhook: expected at most {WEBHOOKS_MAX}"]
    names: set[str] = set()
    faults = []
    for number, webhook in enumerate(webhooks, 1):
        faults += [f"webhook.{number}.{fault}" for fault in _faults_of(webhook)]
        if webhook.name in names:
            faults.append(f"webhook.{number}.name: the same as an earlier one's")
        names.add(webhook.name)
    return faults


def _faults_of(webhook: WebhookConfig) -> Iterator[str]:
    try:
        slug("name", webhook.name)
    except IdentityError as error:
        yield f"name: {error}"
    if (fault := _fault_of_url(webhook)) is not None:
        yield f"url: {fault}"
    if webhook.secret_file is not None:
        if (fault := _fault_of_secret(webhook.secret_file)) is not None:
            yield f"secret_file: {fault}"
    elif webhook.format == "json":
        yield 'secret_file: missing: a receiver of format = "json" checks the signature'
    if webhook.ca_file is not None and (fault := _fault_of_ca(webhook.ca_file)) is not None:
        yield f"ca_file: {fault}"


def _fault_of_url(webhook: WebhookConfig) -> str | None:
    try:
        parts = webhook.parts
        port = parts.port
    except ValueError:
        return "not a URL"
    url = webhook.url
    plain = re.fullmatch(r"[!-~]{1,2048}", url, re.ASCII) is not None and not {"#", "@", "\\"} & set(url)
    if parts.scheme != "https" or not parts.hostname or not plain or port == 0:
        return "expected https://host/path, without a user name and a fragment"
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        # The addresses of a name are checked at each connection.
        return None
    if is_never_allowed(address):
        return "leads to an address that the hub never connects to"
    if not (webhook.allow_private_address or is_public(address)):
        return "leads to a private address: allow it by allow_private_address = true"
    return None


def _fault_of_secret(file: Path) -> str | None:
    # The second one reads what exists, and a pipe would make it wait.
    if os.path.isfile(file) and (fault := fault_of_file(file)) is not None:
        return fault
    try:
        read_secret(file)
    except ValueError as error:
        return str(error) if os.path.exists(file) else fault_of_file(file)
    return None


def _fault_of_ca(file: Path) -> str | None:
    fault = fault_of_file(file)
    if fault is None:
        try:
            client_context(content(file))
        except (OSError, ValueError):
            fault = f"{file} holds no usable certificate"
    return fault
