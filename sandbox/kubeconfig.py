"""Writes the kubeconfig files of the sandbox's users."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import yaml


def write(path: Path, *, server: str, ca_pem: bytes, user: str, token: str) -> None:
    """Write a kubeconfig with a bearer token, readable only by its owner."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "sandbox",
                "cluster": {
                    "server": server,
                    "certificate-authority-data": base64.b64encode(ca_pem).decode(),
                },
            }
        ],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": user}}],
        "current-context": "sandbox",
    }
    write_secret(path, yaml.safe_dump(config, sort_keys=False))


def write_secret(path: Path, content: str) -> None:
    """Write a file atomically, readable only by its owner."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    temporary.replace(path)
