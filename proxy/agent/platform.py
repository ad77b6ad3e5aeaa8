"""The token by which a platform says who its workload is: a file that it keeps fresh, or GitHub's endpoint.

It is read anew each time that the hub is asked, and kept nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from http.client import HTTPException
from urllib.parse import quote, urlsplit

from proxy.agent.blocking_https import trusting
from proxy.agent.errors import AgentError, reason
from proxy.agent.https import https_connection
from proxy.process.untrusted_json import read_json

FILE_PREFIX = "file:"
GITHUB = "github"
GITHUB_URL = "ACTIONS_ID_TOKEN_REQUEST_URL"
GITHUB_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the name of a variable
# A hub takes no longer token.
TOKEN_BYTES_MAX = 8192
ANSWER_BYTES_MAX = 64 * 1024


def platform_token(platform: str, hub: str, environment: Mapping[str, str]) -> str:
    """Return the platform's token, meant for the hub. Raises AgentError, which never holds it."""
    if platform == GITHUB:
        return _from_github(hub, environment)
    if platform.startswith(FILE_PREFIX):
        return _from_file(platform.removeprefix(FILE_PREFIX))
    raise AgentError(f"the login for {hub} was written by another hawse: run `hawse login` again")


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
            f"{GITHUB_URL} is not set: the job needs `permissions: id-token: write`, "
            "and this has to run in one of its steps"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host = None
    if not host or parts.scheme != "https":
        raise AgentError(f"{GITHUB_URL} is not https://…")
    query = f"{parts.query}&" if parts.query else ""
    target = f"{parts.path or '/'}?{query}audience={quote(hub, safe='')}"
    connection, through = https_connection(host, port, trusting(None))
    try:
        # Not followed anywhere else: the bearer is GitHub's.
        headers = {"authorization": f"Bearer {bearer}", "accept": "application/json", "user-agent": "hawse"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        status, raw = response.status, response.read(ANSWER_BYTES_MAX)
    except (OSError, HTTPException) as error:
        raise AgentError(f"cannot reach {host}{through} for a token: {reason(error)}") from error
    finally:
        connection.close()
    if status != 200:
        raise AgentError(f"{host} answered {status} instead of giving a token")
    try:
        return _checked(str(read_json(raw)["value"]).encode(), host)
    except (ValueError, LookupError, TypeError):
        raise AgentError(f"{host} answered without a token") from None


def _checked(data: bytes, source: str) -> str:
    token = data.strip()
    if not token or len(token) > TOKEN_BYTES_MAX or not token.isascii() or len(token.split()) != 1:
        raise AgentError(f"what {source} gives is no token of a platform")
    return os.fsdecode(token)
