"""The user of a command on the hub's own machine, as the trail names it: `local:USER`.

`hawse admin` sends the operating system's user with the data folder's own token. The hub accepts a user with
that token only. A process that can read the token can send any user, so the user is not a proof.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping

# The name of the token that a hub makes for `hawse admin` on its own machine.
LOCAL_TOKEN_NAME = "local"  # noqa: S105 - a name
# The header in which a command sends its user.
USER_HEADER = "x-hawse-local-user"

# Names as from useradd, and from directory services (`DOMAIN\user`, `user@domain`). No `:`, since that
# separates the parts of an actor's name.
_NAME = r"[A-Za-z0-9_.@+$\\-]{1,64}"
_USER = re.compile(rf"{_NAME}(\(sudo:{_NAME}\))?", re.ASCII)


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
