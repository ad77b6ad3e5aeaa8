"""The files of a relay outside a cluster: its configuration, its key, and the hub's keys and CA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from proxy.cli.errors import CommandError
from proxy.cli.output import Object, text

CONFIG = "relay.toml"
KEY = "relay.key"
HUB_KEYS = "hub-keys.json"
HUB_CA = "hub-ca.pem"
FILES = (CONFIG, KEY, HUB_KEYS, HUB_CA)


def relay_files(relay: Object, kubeconfig: Path | None, relay_url: str | None) -> dict[str, str]:
    """Return the files' contents by name. Values are quoted by JSON's rules, which TOML's strings share.

    `relay_url` is the URL that the hub stores for direct mode.
    """
    files = {HUB_KEYS: text(relay, "hub_keys") + "\n"}
    lines = [
        "# Made by `hawse admin cluster add` or `cluster key`. Paths are relative to this file.",
        f"mode = {_quoted(text(relay, 'mode'))}",
        f"cluster_id = {_quoted(text(relay, 'cluster_id'))}",
    ]
    if key := text(relay, "private_key_pem"):
        files[KEY] = key
        lines.append(f"private_key = {_quoted(KEY)}")
    if kubeconfig is not None:
        lines.append(f"kubeconfig = {_quoted(str(kubeconfig.absolute()))}")
    else:
        lines.append('# kubeconfig = "kubeconfig"  # outside the cluster: one with a bearer token')
    lines += ["", "[hub]", f"url = {_quoted(text(relay, 'hub_url'))}", f"keys = {_quoted(HUB_KEYS)}"]
    if key and (ca := text(relay, "hub_ca_pem")):
        files[HUB_CA] = ca
        lines.append(f"ca = {_quoted(HUB_CA)}")
    if text(relay, "mode") == "direct":
        lines += [
            "",
            "# Where the hub reaches this relay, under the name in its --relay-url, and by its port.",
            "[direct]",
            f'listen = "[::]:{urlsplit(relay_url or "").port or 443}"',
            'certificate = "tls.crt"',
            'key = "tls.key"',
        ]
    files[CONFIG] = "\n".join(lines) + "\n"
    return files


def remaining_steps(relay: Object, folder: Path) -> list[str]:
    """Return the steps that a person must still do before relay and hub can connect, one sentence each."""
    if text(relay, "mode") == "direct":
        return [f"put the certificate and key for its own address into {folder}: tls.crt, tls.key"]
    if not text(relay, "hub_ca_pem"):
        return [f"it trusts only public CAs: if the hub uses another, set hub.ca in {CONFIG}"]
    return []


def write_relay_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write each file with mode 0600, without overwriting; raises CommandError."""
    for name, content in files.items():
        try:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
        except OSError as error:
            raise CommandError(f"cannot write {folder / name}: {error.strerror}") from error


def _quoted(value: str) -> str:
    # Not escaped to ASCII: JSON escapes U+10000 and above as surrogates, which TOML refuses. DEL is the one
    # control character that JSON leaves unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
