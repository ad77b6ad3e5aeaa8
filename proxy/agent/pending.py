"""The key of an enrolment that is under way, for an agent that has not had the hub's answer.

The code is used then and the key is registered. Whoever shows that code with that key once more is answered
again. So each code has a file of its own until its hub has answered, whatever other hub it was shown to by
mistake.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress

from auth.keys import KeyFormatError, SigningKey
from proxy.agent.files import config_folder, read_private, write_private


def is_pending(environment: Mapping[str, str], code: str) -> bool:
    """Whether this code was shown before, to whatever hub, and may have been taken."""
    return os.path.lexists(_path(environment, code))


def pending_key(environment: Mapping[str, str], code: str) -> SigningKey:
    """The key that was made for this code; a new one is stored first. Raises AgentError."""
    path = _path(environment, code)
    # What is damaged is of no use any more.
    with suppress(KeyFormatError):
        return SigningKey.from_pem(read_private(path) or b"")
    key = SigningKey.generate()
    write_private(path, key.to_pem())
    return key


def forget_pending_key(environment: Mapping[str, str], code: str) -> None:
    """Remove it: it is the login's own now, or will never be one's."""
    with suppress(OSError):
        os.unlink(_path(environment, code))


def _path(environment: Mapping[str, str], code: str) -> str:
    # The code has 160 random bits: nobody finds it by its hash.
    mark = hashlib.sha256(code.encode("ascii")).hexdigest()
    return os.path.join(config_folder(environment), f"enrolment-{mark[:32]}.pem")
