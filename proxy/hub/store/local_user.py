"""Who runs a command on the hub's own machine, as the trail names him: `local:USER`.

`hawse admin` sends the operating system's user with the data folder's own token. The hub takes the user from
no other token. Who can read that token can also send another user, so the user is a statement, not a proof.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping

# What a hub calls the token that it makes for `hawse admin` on its own machine.
LOCAL_TOKEN_NAME = "local"  # noqa: S105 - a name
# The header in which a command sends its user.
USER_HEADER = "x-hawse-local-user"

# The names that useradd makes, and those of directories (`DOMAIN\user`, `user@domain`). No `:`, since that
# separates the parts of an actor's name.
_NAME = r"[A-Za-z0-9_.@+$\\-]{1,64}"
_USER = re.compile(rf"{_NAME}(\(sudo:{_NAME}\))?", re.ASCII)


def is_user(text: str) -> bool:
    """Whether a hub takes this for a user."""
    return _USER.fullmatch(text) is not None


def local_user(environment: Mapping[str, str]) -> str:
    """The real user of this process, with the user that sudo names where that is another."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    if re.fullmatch(_NAME, name) is None:
        name = f"uid-{uid}"
    # Most hubs run as a user of their own, so without this every operator would be that user.
    behind = environment.get("SUDO_USER", "")
    if behind == name or re.fullmatch(_NAME, behind) is None:
        return name
    return f"{name}(sudo:{behind})"


def local_actor(user: str) -> str:
    """The name of the actor in the trail. No token has such a name, since names hold no `:`."""
    return f"{LOCAL_TOKEN_NAME}:{user}"
