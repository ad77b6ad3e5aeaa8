"""Bytes that no kubectl would send: a raw TLS connection to the hub, with a valid access token at hand."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import urllib.request
from urllib.parse import urlencode

import attrs

from tests.system.world import NAMESPACE, World

DEADLINE_S = 20.0


@attrs.frozen
class Answer:
    """A whole answer, split; `raw` is everything that came on the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes


@attrs.frozen
class RawClient:
    """Speaks to one cluster of the hub, in its own bytes."""

    world: World
    way: str

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.world.folder / "hub" / "tls" / "ca.pem"))

    def token(self) -> str:
        """A fresh access token for the cluster."""
        form = urlencode(
            {"grant_type": "client_credentials", "audience": self.way, "client_secret": self.world.api_key}
        )
        url = f"https://127.0.0.1:{self.world.hub_port}/oauth/token"
        with urllib.request.urlopen(url, form.encode(), DEADLINE_S, context=self.context()) as answer:
            token: str = json.load(answer)["access_token"]
        return token

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.world.hub_port), DEADLINE_S)
        return self.context().wrap_socket(plain, server_hostname="127.0.0.1")

    def send(self, data: bytes) -> bytes:
        """Send bytes and return all that comes until the hub closes."""
        with self.connect() as connection:
            connection.sendall(data)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except (ConnectionError, ssl.SSLError):
                pass  # cut, as a refused request's connection may be
        return received

    def head(self, path: str, *headers: str, method: str = "GET") -> bytes:
        """A well-formed head under the cluster's prefix, with `headers` added, that closes afterwards."""
        lines = [
            f"{method} /clusters/{self.way}{path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.world.hub_port}",
            f"Authorization: Bearer {self.token()}",
            "Connection: close",
            *headers,
        ]
        return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n"

    def get(self, path: str, *headers: str) -> Answer:
        return parse(self.send(self.head(path, *headers)))


def parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status_line.split(" ")[1]), headers, body, raw)


def marked_path() -> tuple[str, str]:
    """A path that nobody else asks for, and the mark by which an audit log shows whether it arrived."""
    mark = "mark-" + secrets.token_hex(6)
    return f"/api/v1/namespaces/{NAMESPACE}/configmaps/{mark}", mark


def arrived(world: World, mark: str) -> list[dict[str, object]]:
    """The API server's audit lines with the mark in them."""
    return [line for line in world.cluster_audit() if mark in json.dumps(line)]
