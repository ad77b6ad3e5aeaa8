"""A workload's token from its platform: from a file that the platform refreshes, or from GitHub's endpoint.

It is read again for each request to the hub, and never stored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from proxy.agent.https.blocking import trusting
from proxy.agent.https.connection import https_connection
from proxy.agent.local.errors import AgentError, reason
from proxy.process.untrusted_json import read_json

FILE_PREFIX = "file:"
GITHUB = "github"
GITHUB_URL = "ACTIONS_ID_TOKEN_REQUEST_URL"
GITHUB_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the name of a variable
# The hub's own limit.
TOKEN_BYTES_MAX = 8192
ANSWER_BYTES_MAX = 64 * 1024


def platform_token(platform: str, hub: str, environment: Mapping[str, str]) -> str:
    """Return the platform's token for the hub. Raises AgentError, which never holds the token."""
    if platform == GITHUB:
        return _from_github(hub, environment)
    if platform.startswith(FILE_PREFIX):
        return _from_file(platform.removeprefix(FILE_PREFIX))
    raise AgentError(f"the login for {hub} was written by another version: run `hawse login` again")


def _from_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise AgentError(f"cannot read the platform's token {path}: {error.strerror}") from error
    return _checked(data, path)


def _from_github(hub: str, environment: Mapping[str, str]) -> str:
    url, bearer = environment.get(GITHUB_URL, ""), environment.get(GITHUB_TOKEN, "")
    if not url or not bearer:
        raise AgentError(
            f"{GITHUB_URL} is not set: give the job `permissions: id-token: write`, "
            "and run this in one of its steps"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host = None
    if not host or parts.scheme != "https":
        raise AgentError(f"{GITHUB_URL} is not an https:// URL")
    query = f"{parts.query}&" if parts.query else ""
    target = f"{parts.path or '/'}?{query}audience={quote(hub, safe='')}"
    connection, through = https_connection(host, port, trusting(None))
    try:
        # No redirects are followed: the bearer token is for GitHub only.
        headers = {"authorization": f"Bearer {bearer}", "accept": "application/json", "user-agent": "hawse"}
        status, raw = connection.exchange("GET", target, headers, None, body_bytes_max=ANSWER_BYTES_MAX)
    except OSError as error:
        raise AgentError(f"cannot reach {host}{through} for a token: {reason(error)}") from error
    finally:
        connection.close()
    if status != 200:
        raise AgentError(f"{host} answered {status} instead of a token")
    try:
        return _checked(str(read_json(raw)["value"]).encode(), host)
    except (ValueError, LookupError, TypeError):
        raise AgentError(f"{host} answered without a token") from None


def _checked(data: bytes, source: str) -> str:
    token = data.strip()
    if not token or len(token) > TOKEN_BYTES_MAX or not token.isascii() or len(token.split()) != 1:
        raise AgentError(f"{source} did not give a valid platform token")
    return os.fsdecode(token)
