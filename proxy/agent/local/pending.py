"""The key of an enrolment whose answer from the hub has not arrived yet.

The hub may have used the code and registered the key already. Showing the same code with the same key again
gets the answer again. So each code has its own file until its hub has answered, even if the code was shown to
another hub by mistake.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress

from auth.keys import KeyFormatError, SigningKey
from proxy.agent.local.files import config_folder, read_private, write_private


def is_pending(environment: Mapping[str, str], code: str) -> bool:
    """Whether this code was shown to any hub before, which may have accepted it."""
    return os.path.lexists(_path(environment, code))


def pending_key(environment: Mapping[str, str], code: str) -> SigningKey:
    """Return the key made for this code; a new key is stored first. Raises AgentError."""
    path = _path(environment, code)
    # A damaged key is useless: replace it.
    with suppress(KeyFormatError):
        return SigningKey.from_pem(read_private(path) or b"")
    key = SigningKey.generate()
    write_private(path, key.to_pem())
    return key


def forget_pending_key(environment: Mapping[str, str], code: str) -> None:
    """Remove the pending key: the login holds it now, or the hub refused it."""
    with suppress(OSError):
        os.unlink(_path(environment, code))


def _path(environment: Mapping[str, str], code: str) -> str:
    # The code has 160 random bits, so its hash does not reveal it.
    mark = hashlib.sha256(code.encode("ascii")).hexdigest()
    return os.path.join(config_folder(environment), f"enrolment-{mark[:32]}.pem")
