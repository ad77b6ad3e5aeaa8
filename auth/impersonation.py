"""The headers that make kube-apiserver act under an identity.

This is the only module that writes them, and no part comes from a client's request. An unfit identity raises:
a request without `Impersonate-User` would run with the relay's own rights.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from auth.principal import IdentityError, check_groups, check_user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AGENT_ID_KEY = "hawse.dev/agent-id"
SESSION_KEY = "hawse.dev/session"

# RFC 9110 token characters, without '%', which introduces an escape.
_KEY_BYTES = frozenset(b"!#$&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
# Visible ASCII with inner spaces: kube-apiserver's HTTP stack trims edges and refuses controls.
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
EXTRA_VALUE_LENGTH_MAX = 1024


def escape_extra_key(key: str) -> str:
    """Escape an extra's key for a header name, as client-go does: `acme.com/project` → `acme.com%2fproject`.

    The escapes are in lower case, like all header names here; the server lower-cases the name before decoding
    it. Raises IdentityError for an empty key, and for one with upper-case letters (the server would see
    another key).
    """
    if not key or key != key.lower():
        raise IdentityError(f"extra key {ascii(key)[:80]} is empty or not in lower case")
    return "".join(chr(byte) if byte in _KEY_BYTES else f"%{byte:02x}" for byte in key.encode("utf-8"))


def impersonation_headers(
    user: str, groups: Sequence[str], extra: Mapping[str, str]
) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers for one identity: the user, then one line per group, then one per key of `extra`.

    Raises IdentityError for a user that is not an agent, for no groups, and for any name or value that a
    header cannot carry exactly. Groups are never joined by commas: a comma would become part of a group's
    name.
    """
    lines = [(b"impersonate-user", check_user(user).encode("ascii"))]
    lines += [(b"impersonate-group", group.encode("ascii")) for group in check_groups(groups)]
    for key, value in extra.items():
        name = f"impersonate-extra-{escape_extra_key(key)}"
        if len(value) > EXTRA_VALUE_LENGTH_MAX or _VALUE.fullmatch(value) is None:
            raise IdentityError(f"the value of extra '{key}' is empty, too long or not plain ASCII")
        lines.append((name.encode("ascii"), value.encode("ascii")))
    return tuple(lines)
