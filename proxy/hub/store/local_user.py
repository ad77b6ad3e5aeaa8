"""The user of a command on the hub's own machine, as the trail names it: `local:USER`.

`hawse admin` sends the operating system's user with the data folder's own token. The hub accepts a user with
that token only. A process that can read the token can send any user, so the user is not a proof.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping

# The name of the token that a hub makes for `hawse admin` on its own machine. On PostgreSQL the id of the hub
# follows, since hubs with one directory would replace each other's token. A hub on SQLite is alone.
LOCAL_TOKEN_NAME = "local"  # noqa: S105 - a name
HUB_ID = re.compile(r"[0-9a-f]{8}")
_LOCAL_TOKEN = re.compile(rf"{LOCAL_TOKEN_NAME}(-{HUB_ID.pattern})?")
# The header in which a command sends its user.
USER_HEADER = "x-hawse-local-user"

# Names as from useradd, and from directory services (`DOMAIN\user`, `user@domain`). No `:`, since that
# separates the parts of an actor's name.
_NAME = r"[A-Za-z0-9_.@+$\\-]{1,64}"
_USER = re.compile(rf"{_NAME}(\(sudo:{_NAME}\))?", re.ASCII)


def local_token_name(hub_id: str | None) -> str:
    """Return the name of the token of a hub's machine; `hub_id` is None for a hub that is alone."""
    return LOCAL_TOKEN_NAME if hub_id is None else f"{LOCAL_TOKEN_NAME}-{hub_id}"


def is_local_token_name(name: str) -> bool:
    """Return whether only a hub may give this name to a token."""
    return _LOCAL_TOKEN.fullmatch(name) is not None


def is_user(text: str) -> bool:
    """Return whether a hub accepts this as a user's name."""
    return _USER.fullmatch(text) is not None


def local_user(environment: Mapping[str, str]) -> str:
    """Return the real user of this process, with the user that sudo names if it differs."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    if re.fullmatch(_NAME, name) is None:
        name = f"uid-{uid}"
    # Most hubs run as a dedicated user, so without this every operator would have that name.
    behind = environment.get("SUDO_USER", "")
    if behind == name or re.fullmatch(_NAME, behind) is None:
        return name
    return f"{name}(sudo:{behind})"


def local_actor(user: str) -> str:
    """Return the actor's name in the trail. No token has such a name, since names contain no `:`."""
    return f"{LOCAL_TOKEN_NAME}:{user}"
