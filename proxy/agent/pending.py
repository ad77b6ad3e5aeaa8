"""The key of an enrolment that is under way, for an agent that has not had the hub's answer.

The code is used then and the key is registered. Whoever shows that code with that key once more is answered
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress

from auth.keys import KeyFormatError, SigningKey
from proxy.agent.files import config_folder, read_private, write_private
from proxy.foreign_json import read_json

FILE_NAME = "enrolment.json"


def pending_key(environment: Mapping[str, str], hub: str, code: str) -> SigningKey:
    """The key that was made for this code of this hub; a new one is stored first. Raises AgentError."""
    path = _path(environment)
    # The code has 160 random bits: nobody finds it by its hash.
    mark = hashlib.sha256(f"{hub} {code}".encode("ascii")).hexdigest()
    raw = read_private(path)
    # What is damaged, or of another code, is of no use any more.
    with suppress(ValueError, LookupError, TypeError, AttributeError, KeyFormatError):
        document = read_json(raw or b"")
        if document["code_sha256"] == mark:
            return SigningKey.from_pem(document["private_key_pem"].encode("ascii"))
    key = SigningKey.generate()
    stored = {"code_sha256": mark, "private_key_pem": key.to_pem().decode("ascii")}
    write_private(path, json.dumps(stored).encode("ascii"))
    return key


def forget_pending_key(environment: Mapping[str, str]) -> None:
    """Remove it: it is the login's own now."""
    with suppress(OSError):
        os.unlink(_path(environment))


def _path(environment: Mapping[str, str]) -> str:
    return os.path.join(config_folder(environment), FILE_NAME)
